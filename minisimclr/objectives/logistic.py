"""NT-logistic, of the paper's Table 4: a classifier says of each pair if it is positive."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Tensor, Vjp, primitive
from ..values import truth
from .pairs import positives, shares, unit_rows


def nt_logistic(za: Any, zb: Any, temperature: float = 0.1, semi_hard: bool = False) -> Tensor:
    """Average −log σ(s⁺) − log σ(−s⁻) over the anchors, with s = cosine/τ; the negatives of an anchor share alike.

    semi_hard  True takes one negative an anchor: the nearest that is farther than the positive

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    ds⁺ = −g·σ(−s⁺)/2N, ds⁻ = g·w·σ(s⁻)/2N, w the share of the negative
    Raises: ValueError and TypeError as `nt_xent` does.
    Source: Chen et al. 2020, Table 2; semi-hard negatives: their §5.1. Negatives are from both views, unlike theirs in
            Table 4 (their appendix B.10).

    >>> import numpy as np
    >>> round(nt_logistic(np.eye(2), np.eye(2), temperature=0.5).item(), 4)  # log(1 + e⁻²) + log 2
    0.8201
    """
    semi_hard = truth("semi_hard", semi_hard)
    u, temperature = unit_rows(za, zb, temperature)
    return nt_logistic_of_units(u, temperature=temperature, semi_hard=semi_hard)


@primitive
def nt_logistic_of_units(xp: Any, u: Array, *, temperature: float, semi_hard: bool) -> tuple[Array, Vjp]:
    """Compute NT-logistic of unit rows.

    Shapes: u (2N,D) -> scalar
    VJP:    du = (G + Gᵀ)u/τ, G the derivative by the logits
    """
    n = len(u)
    cosines = u @ u.T  # (2N,2N)
    anchor, positive = positives(xp, n)
    w = shares(xp, cosines, semi_hard)  # (2N,2N)
    logits = cosines / temperature  # (2N,2N)
    pull = xp.logaddexp(0, -logits[anchor, positive])  # (2N,): −log σ(s), which never overflows
    push = (w * xp.logaddexp(0, logits)).sum(axis=1)  # (2N,)

    def vjp(g: Array) -> Array:
        G = w * xp.exp(-xp.logaddexp(0, -logits))  # (2N,2N): σ(s⁻), as e^(log σ)
        G[anchor, positive] = xp.exp(-pull) - 1  # −σ(−s⁺) = σ(s⁺) − 1
        return (G + G.T) @ u * (g / (n * temperature))  # (2N,D): each row is an anchor, and in others' columns

    return (pull + push).mean(), vjp
