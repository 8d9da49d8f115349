"""Softmax cross-entropy: how surprised a classifier is by the right answers.

NT-Xent, the loss of SimCLR, is this loss with the 2N embeddings of a batch as the classes; its forms live in ntxent/.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Vjp, primitive


@primitive
def cross_entropy(xp: Any, logits: Array, *, labels: Array) -> tuple[Array, Vjp]:
    """Average −log softmax(logits)[label] over the rows.

    Shapes: logits (N,K), labels integer (N,) in 0…K−1 -> scalar
    VJP:    dlogits = g·(P − Y)/N,  P the softmax, Y the one-hot labels
    Raises: ValueError for shapes that do not fit and labels out of range, TypeError for labels that are no integers

    >>> import numpy as np
    >>> from minisimclr import Tensor, ops
    >>> round(ops.cross_entropy(Tensor([[0.0, 0.0]]), labels=np.array([1])).item(), 4)  # log 2: two equal guesses
    0.6931
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: logits (N,K) and labels (N,) expected, not {logits.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, not {labels.dtype}")
    # A negative label would count from the end, as NumPy's indices do, and train the wrong class.
    if not len(labels) or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"cross_entropy: labels in 0…{logits.shape[1] - 1} expected, at least one")
    rows = xp.arange(len(logits))  # (N,)
    # Softmax stays the same if a row is shifted. With the largest entry of a row at 0 no exponential overflows.
    shifted = logits - logits.max(axis=1, keepdims=True)  # (N,K)
    exponentials = xp.exp(shifted)  # (N,K)
    sums = exponentials.sum(axis=1)  # (N,)
    value = (xp.log(sums) - shifted[rows, labels]).mean()  # scalar; −log of a quotient is a difference of logs

    def vjp(g: Array) -> Array:
        dlogits = exponentials / sums[:, None]  # (N,K), the softmax P
        dlogits[rows, labels] -= 1  # P − Y
        return dlogits * (g / len(rows))  # (N,K): each row has a share of 1/N in the mean

    return value, vjp
