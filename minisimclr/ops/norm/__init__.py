"""Normalisation: batch norm over all but the last axis, and rows of unit length."""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp, primitive
from .fused import batch_norm, moments

__all__ = ["batch_norm", "l2_normalize", "moments"]


@primitive
def l2_normalize(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Scale each row to unit length; a row of zeros stays zero.

    Shapes: x (N,D) -> u (N,D)
    VJP:    dx = (g − u⟨u,g⟩)/|x|, and 0 for a row of zeros                                        (5.11)
    """
    largest = xp.abs(x).max(axis=1, keepdims=True)  # divided out first: squares neither overflow nor vanish
    empty = largest == 0
    scaled = x / xp.where(empty, 1, largest)
    norm = xp.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
    u = scaled / xp.where(empty, 1, norm)

    def vjp(g: Array) -> Array:
        across = g - u * (u * g).sum(axis=1, keepdims=True)
        return xp.where(empty, 0, across / xp.where(empty, 1, norm) / xp.where(empty, 1, largest))

    return u, vjp
