"""Protocols: the things that are done with a trained run."""
