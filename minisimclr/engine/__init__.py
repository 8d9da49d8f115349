"""Reverse-mode automatic differentiation: the engine (`autograd`), its guard, and its ledger."""
