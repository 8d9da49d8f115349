"""SupCon, the supervised loss (Khosla et al. 2020): all images of a class are positives."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import Array
from ..engine.autograd import Tensor, Vjp, primitive
from ..values import embeddings


def supcon(z: Any, *, labels: Array, temperature: float = 0.1) -> Tensor:
    """Average −mean log P(positive) over the anchors, P the softmax over all others; rows of one label are positives.

    With two rows of each label this is NT-Xent: `supcon(concatenate(za, zb), labels=[0 … N−1, 0 … N−1])`. With more,
    the mean over the positives stands outside the logarithm (L_out of the paper). A row whose label no other has is
    no anchor, but still a negative of the others.

    Shapes: z (M,D), labels integer (M,) -> scalar
    VJP:    ds = g·(P − Y)/A, Y = 1/|positives| at each positive, A the number of anchors
    Raises: ValueError if no two rows share a label; ValueError and TypeError for what `nt_xent` refuses.
    Source: Khosla et al. 2020, Eq. 2.

    >>> import numpy as np
    >>> views = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    >>> round(supcon(views, labels=np.array([0, 1, 0, 1]), temperature=0.5).item(), 5)
    0.23954
    """
    data = z.data if isinstance(z, Tensor) else z
    _, _, temperature = embeddings(data, data, temperature)
    return supcon_of_units(ops.l2_normalize(z), labels=labels, temperature=temperature)


@primitive
def supcon_of_units(xp: Any, u: Array, *, labels: Array, temperature: float) -> tuple[Array, Vjp]:
    """Compute SupCon of unit rows.

    Shapes: u (M,D), labels integer (M,) -> scalar
    VJP:    du = (G + Gᵀ)u/τ, G the derivative by the logits
    """
    if labels.shape != u.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"supcon: integer labels {u.shape[:1]} expected, not {labels.dtype} {labels.shape}")
    same = labels[:, None] == labels  # (M,M)
    rows = xp.arange(len(u))
    same[rows, rows] = False  # a row is not its own positive …
    count = same.sum(axis=1, keepdims=True)  # (M,1) positives of each row
    anchors = int((count > 0).sum())
    if not anchors:
        raise ValueError("supcon: no two rows share a label, so there is no positive")
    logits = u @ u.T / temperature  # (M,M)
    logits[rows, rows] = -xp.inf  # … and must not choose itself
    logits = logits - logits.max(axis=1, keepdims=True)
    e = xp.exp(logits)  # (M,M)
    total = e.sum(axis=1, keepdims=True)  # (M,1)
    y = same / xp.maximum(count, 1).astype(u.dtype)  # (M,M): each positive's share of its anchor
    losses = xp.where(count > 0, xp.log(total), 0)[:, 0] - (y * xp.where(same, logits, 0)).sum(axis=1)  # (M,)

    def vjp(g: Array) -> Array:
        G = xp.where(count > 0, e / total, 0) - y  # P − Y
        return (G + G.T) @ u * (g / (anchors * temperature))  # (M,D)

    return losses.sum() / anchors, vjp
