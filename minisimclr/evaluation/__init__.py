"""Measures of a representation, on a frozen encoder: nearest neighbours, and a linear classifier.

Both look at h, computed with running statistics; the encoder does not change.
"""

from .embed import embed
from .knn import knn_accuracy, nearest
from .probe import LinearProbe, fit_linear_probe, linear_probe

__all__ = ["LinearProbe", "embed", "fit_linear_probe", "knn_accuracy", "linear_probe", "nearest"]
