"""Solutions of chapter 4: layer norm, and the statistics of a batch that lies on two machines."""

from __future__ import annotations

from typing import Any

import minisimclr as ms


@ms.primitive
def layer_norm(xp: Any, x: Any, scale: Any, shift: Any, *, eps: float = 1e-5) -> Any:
    """Normalize each row of x (N,D), then scale (D,) and shift (D,).

    The derivation of (4.7) knows nothing of rows and columns: it holds for whatever is normalized together. What
    changes is where γ stands. In batch norm it is one number for all that is normalized together, and could be taken
    out of the sums; here it differs from entry to entry, and so belongs to the gradient that enters them, γ·g.
    """
    centred = x - x.mean(axis=1, keepdims=True)  # (N,D)
    sigma = xp.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps)  # (N,1)
    xhat = centred / sigma  # (N,D)

    def vjp(g: Any) -> Any:
        scaled = scale * g  # (N,D)
        along_one = scaled.mean(axis=1, keepdims=True)  # (N,1) the two sums, over M = D entries
        along_xhat = (scaled * xhat).mean(axis=1, keepdims=True)
        return (scaled - along_one - xhat * along_xhat) / sigma, (g * xhat).sum(axis=0), g.sum(axis=0)

    return scale * xhat + shift, vjp


def combined(a: tuple[int, Any, Any], b: tuple[int, Any, Any]) -> tuple[int, Any, Any]:
    """Count, mean (C,) and biased variance (C,) of two parts together, from those of each: (4.10).

    In the backward pass the machines exchange the two sums of (4.4), Σ g and Σ g·x̂, added over both; everything else
    in (4.7) belongs to a single row.
    """
    count = a[0] + b[0]
    shares = [part[0] / count for part in (a, b)]
    mean = shares[0] * a[1] + shares[1] * b[1]
    variance = sum(share * (part[2] + (part[1] - mean) ** 2) for share, part in zip(shares, (a, b)))
    return count, mean, variance
