"""The plain form of batch norm: each channel's statistics, the formula, its gradient.

A feature map (H,W,N,C) is seen as M = H·W·N rows of C channels. Each channel is normalized by its own mean and
variance, then scaled and shifted by two numbers that are learned:

    x̂ = (x − mean)/σ,  σ = √(variance + ε),  y = scale·x̂ + shift

In training mean and variance are those of the batch itself, so every x moves them. In evaluation they are the
running statistics, constants that training has collected.
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp


def moments(xp: Any, x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel.

    Shapes: x (…,C) -> mean (C,), variance (C,)
    """
    rows = tuple(range(x.ndim - 1))  # every axis but the channels
    mean = x.mean(axis=rows)  # (C,)
    centred = x - mean  # (…,C)
    # We do not compute E[x²] − E[x]², which loses its digits where the mean is large beside the deviations.
    return mean, (centred * centred).mean(axis=rows)


def batch_norm(
    xp: Any, x: Array, scale: Array, shift: Array, *, mean: Array, variance: Array, eps: float, totals: Any
) -> tuple[Array, Vjp]:
    """Normalize each channel, then scale and shift it. `totals` is None if mean and variance are constants.

    Shapes: x (…,C), scale (C,), shift (C,) -> y (…,C)
    VJP:    dscale = Σ g·x̂,  dshift = Σ g  (4.4),  dx by (4.7)
    """
    # totals(dshift, dscale, M) adds these up over all processes that share the batch.
    rows, M = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    sigma = xp.sqrt(variance + eps)  # (C,); ε keeps a constant channel from dividing by 0
    xhat = (x - mean) / sigma  # (…,C)

    def vjp(g: Array) -> tuple[Array, Array, Array]:  # g (…,C)
        dshift, dscale = g.sum(axis=rows), (g * xhat).sum(axis=rows)  # (C,), (C,)  (4.4)
        if totals is not None:
            # Other processes may have rows of the batch, too. Then these are the sums over all rows, else the same.
            all_shift, all_scale, all_M = totals(dshift, dscale, M)  # (C,), (C,), rows
            # Moving all x alike, or stretching them, leaves x̂ as it is. So we take both directions out of g.
            g = g - (all_shift + xhat * all_scale) / all_M  # (…,C)  (4.7)
        return scale / sigma * g, dscale, dshift

    return scale * xhat + shift, vjp
