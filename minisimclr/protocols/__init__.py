"""Protocols: comparisons and other things to do with a trained run."""
