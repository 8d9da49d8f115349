"""The decoupled loss (Yeh et al. 2021): NT-Xent without the positive in its denominator."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Tensor, Vjp, primitive
from .pairs import positives, unit_rows


def decoupled(za: Any, zb: Any, temperature: float = 0.1) -> Tensor:
    """Average −s⁺ + log Σ exp(s⁻) over the anchors, with s = cosine/τ, the sum over the 2N − 2 negatives alone.

    In NT-Xent an easy positive makes the whole gradient of an anchor small, that of its negatives too, all the more
    in small batches. Here the pull of the positive is always the same.

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    ds⁺ = −g/2N, ds⁻ = g·softmax(s⁻)/2N
    Raises: ValueError for a single image, which has no negatives; ValueError and TypeError as `nt_xent` does.
    Source: Yeh et al. 2021, Eq. 6, without its weights.

    >>> import numpy as np
    >>> round(decoupled(np.eye(2), np.eye(2), temperature=0.5).item(), 4)  # −2 + log 2
    -1.3069
    """
    u, temperature = unit_rows(za, zb, temperature)
    if len(u.data) < 4:
        raise ValueError("the decoupled loss needs two images or more: a single one has no negatives")
    return decoupled_of_units(u, temperature=temperature)


@primitive
def decoupled_of_units(xp: Any, u: Array, *, temperature: float) -> tuple[Array, Vjp]:
    """Compute the decoupled loss of unit rows.

    Shapes: u (2N,D) -> scalar
    VJP:    du = (G + Gᵀ)u/τ, G the derivative by the logits
    """
    n = len(u)
    anchor, positive = positives(xp, n)
    logits = u @ u.T / temperature  # (2N,2N)
    pull = logits[anchor, positive]  # (2N,), a copy
    logits[anchor, anchor] = logits[anchor, positive] = -xp.inf  # only negatives are left
    top = logits.max(axis=1, keepdims=True)  # (2N,1)
    e = xp.exp(logits - top)  # (2N,2N)
    total = e.sum(axis=1, keepdims=True)  # (2N,1)
    loss = (xp.log(total[:, 0]) + top[:, 0] - pull).mean()  # scalar

    def vjp(g: Array) -> Array:
        G = e / total  # (2N,2N), the softmax over the negatives
        G[anchor, positive] = -1
        return (G + G.T) @ u * (g / (n * temperature))  # (2N,D)

    return loss, vjp
