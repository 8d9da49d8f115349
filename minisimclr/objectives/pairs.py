"""The parts that objectives share: unit embeddings, and the negatives of each anchor."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import Array
from ..engine.autograd import Tensor
from ..values import embeddings


def unit_rows(za: Any, zb: Any, temperature: Any = 1.0) -> tuple[Tensor, float]:
    """Return u, all 2N embeddings at length 1, the views a first; and the temperature as a float.

    Shapes: za (N,D), zb (N,D), arrays or tensors -> (2N,D)
    Raises: ValueError and TypeError as `nt_xent` does.
    """
    a, b = (z.data if isinstance(z, Tensor) else z for z in (za, zb))  # (N,D) each
    _, _, temperature = embeddings(a, b, temperature)
    return ops.l2_normalize(ops.concatenate(za, zb)), temperature  # (2N,D)


def positives(xp: Any, n: int) -> tuple[Array, Array]:
    """Return the numbers of n anchors and of their positives, the other views of their images: int (n,) each."""
    anchor = xp.arange(n)  # (2N,)
    return anchor, (anchor + n // 2) % n


def shares(xp: Any, cosines: Array, semi_hard: bool) -> Array:
    """Return the share of each negative in its anchor's push: (2N,2N), rows that sum to 1, or to 0 without negatives.

    All 2N − 2 negatives share alike. With `semi_hard` one of them alone counts: the nearest of those that are farther
    than the positive (Schroff et al. 2015). If every negative is nearer than the positive, there is none.
    """
    n = len(cosines)
    anchor, positive = positives(xp, n)
    negative = xp.ones((n, n), bool)
    negative[anchor, anchor] = negative[anchor, positive] = False
    if not semi_hard:
        return negative / xp.asarray(max(n - 2, 1), cosines.dtype)
    semi = negative & (cosines < cosines[anchor, positive][:, None])  # (2N,2N)
    nearest = xp.where(semi, cosines, -xp.inf).argmax(axis=1)  # (2N,), 0 where there is none
    chosen = xp.zeros_like(cosines)
    chosen[anchor, nearest] = 1
    return chosen * semi  # (2N,2N)
