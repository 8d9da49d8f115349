"""The margin triplet, of the paper's Table 4: a positive is nearer by a margin."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Tensor, Vjp, primitive
from ..values import not_negative, truth
from .pairs import positives, shares, unit_rows


def triplet(za: Any, zb: Any, margin: float = 0.4, semi_hard: bool = False) -> Tensor:
    """Average max(c⁻ − c⁺ + m, 0) over the anchors, with cosines c; the negatives of an anchor share alike.

    semi_hard  True takes one negative an anchor: the nearest that is farther than the positive

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    dc⁻ = g·w/2N where the hinge is open, dc⁺ = −Σ dc⁻, w the share of the negative
    Raises: ValueError for a margin that is negative or not finite; ValueError and TypeError as `nt_xent` does.
    Source: Chen et al. 2020, Table 2; semi-hard negatives: their §5.1, after Schroff et al. 2015. For Table 4 they take
            the negatives from one view only (their appendix B.10); here they are from both, as for NT-Xent.

    >>> import numpy as np
    >>> round(triplet(np.eye(2), np.eye(2), margin=1.25).item(), 4)  # 0 − 1 + 1.25
    0.25
    """
    margin, semi_hard = not_negative("margin", margin), truth("semi_hard", semi_hard)
    u, _ = unit_rows(za, zb)
    return triplet_of_units(u, margin=margin, semi_hard=semi_hard)


@primitive
def triplet_of_units(xp: Any, u: Array, *, margin: float, semi_hard: bool) -> tuple[Array, Vjp]:
    """Compute the margin triplet of unit rows.

    Shapes: u (2N,D) -> scalar
    VJP:    du = (G + Gᵀ)u, G the derivative by the cosines
    """
    n = len(u)
    cosines = u @ u.T  # (2N,2N)
    anchor, positive = positives(xp, n)
    w = shares(xp, cosines, semi_hard)  # (2N,2N)
    hinge = cosines - cosines[anchor, positive][:, None] + margin  # (2N,2N)
    loss = (w * xp.maximum(hinge, 0)).sum(axis=1).mean()  # scalar

    def vjp(g: Array) -> Array:
        G = w * (hinge > 0)  # (2N,2N): a triple whose margin is kept has no say
        G[anchor, positive] = -G.sum(axis=1)  # (2N,): each open hinge pulls the positive, too
        return (G + G.T) @ u * (g / n)  # (2N,D)

    return loss, vjp
