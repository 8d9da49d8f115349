"""Solutions of chapter 7: solarize, and the flip as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np


def solarize(x: Any, threshold: float = 0.5) -> Any:
    """Invert what is brighter than the threshold: (…,3) in [0,1] -> the same.

    It belongs after the jitter: otherwise the threshold would not act on what the other steps have made, and the jitter
    would soften its edges. A network that sees it learns to ignore which side of an edge is the brighter one.
    """
    return np.where(x > threshold, 1 - x, x)


def mirror(size: int) -> Any:
    """The matrix J that reverses the order of `size` pixels: ones on the other diagonal."""
    return np.eye(size)[::-1]
