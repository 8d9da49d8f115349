"""Softmax cross-entropy: for the labelled stage (fine-tuning); NT-Xent has a room of its own, ntxent/."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Vjp, primitive


@primitive
def cross_entropy(xp: Any, logits: Array, *, labels: Array) -> tuple[Array, Vjp]:
    """Mean of −log softmax(logits)[label] over the rows, with the row maximum taken out first.

    Shapes: logits (N,K), labels integer (N,) in 0…K−1 -> scalar
    VJP:    dlogits = g·(P − Y)/N,  P the softmax, Y the one-hot labels
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: logits (N,K) and labels (N,) expected, not {logits.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, not {labels.dtype}")
    if not len(labels) or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"cross_entropy: labels in 0…{logits.shape[1] - 1} expected, at least one")
    rows = xp.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    sums = exponentials.sum(axis=1)
    value = (xp.log(sums) - shifted[rows, labels]).mean()

    def vjp(g: Array) -> Array:
        dlogits = exponentials / sums[:, None]
        dlogits[rows, labels] -= 1
        return dlogits * (g / len(rows))

    return value, vjp
