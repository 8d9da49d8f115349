"""Reverse-mode automatic differentiation: the engine (`autograd`), its guard, its surface, and its ledger."""
