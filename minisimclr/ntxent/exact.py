"""NT-Xent, the loss of SimCLR, and its gradient by hand: the readable version.

Two augmented views of each of N images give 2N embeddings, the *anchors*. Each anchor has one
*positive*, the other view of its image; the remaining 2N − 2 embeddings are its *negatives*. The loss
is the cross-entropy of picking the positive among all of them by cosine similarity, at a temperature τ
(Chen et al. 2020, Eq. 1 and Algorithm 1: (5.1)).

The tags (5.1), (5.2) … are the equations of docs/05_nt_xent.md, where each is derived. What differs
from the textbook form is only the order of operations, chosen so that nothing is lost to rounding:

* each row is divided by its largest entry before its norm is taken: lengths of 1e-30 and 1e30 work;
* the positive is subtracted from the logits first, and log(1 + Σ) is log1p(Σ): with good embeddings
  Σ is tiny, and `logsumexp − positive` would be the difference of two nearly equal numbers;
* 1 − P of the positive is the sum of P over the negatives, for the same reason;
* the exponent is shifted only where a negative beats the positive, so no temperature overflows;
* at a high temperature, where all probabilities are nearly equal, their differences are computed.

This version holds matrices of shape (2N, 2N). `tiled.py` computes the same in O(N·d) memory.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module

FLAT = 2.0  # what counts as a high temperature


def value_and_grad(za: Array, zb: Array, temperature: float) -> tuple[Array, Array, Array]:
    """The loss and its gradient with respect to both views.

    Shapes: za, zb (N, D) of one float dtype -> loss (), dza (N, D), dzb (N, D), all in that dtype.
    NaN or infinity anywhere in the input makes the loss NaN; a zero row counts as u = 0 and gets
    gradient 0. Callers check their arguments with `ntxent.check`.
    """
    xp = array_module(za)
    n = 2 * len(za)  # anchors
    anchor = xp.arange(n)
    partner = (anchor + len(za)) % n  # rows are [za; zb], so the positive of row i is row i ± N
    z = xp.concatenate([za, zb])  # (n, D)

    # The value: each anchor's logits, relative to the logit of its positive.
    exact, norm, scale = unit_rows(z, xp.float64)  # u = z / |z|                      (5.2)
    u = exact.astype(z.dtype)
    cosine = u @ u.T.copy()  # (n, n); NumPy takes a slower path for u @ u.T          (5.3)
    positive = cosine[anchor, partner][:, None]  # (n, 1)
    margin = (cosine - positive) / temperature  #                                     (5.4)
    # We add −∞ rather than assign it: NaN − ∞ is NaN, so a NaN is never masked away.
    margin[anchor, anchor] += -xp.inf  # an anchor is not its own negative …
    margin[anchor, partner] += -xp.inf  # … and neither is its positive
    shift = xp.maximum(margin.max(axis=1, keepdims=True), 0).astype(xp.float64)  # 0 where the positive wins
    relative = margin - shift.astype(z.dtype)  # (n, n), every entry ≤ 0
    base, e = 0, xp.exp(relative)  # (n, n), every entry in [0, 1]
    if temperature >= FLAT and n > 2:  # all are nearly 1, and what counts is how they differ
        base, e = 1, xp.expm1(relative)  # so a negative's is base + e                (5.13)
        e[anchor, anchor] = e[anchor, partner] = 0
    negatives = base * (n - 2) + e.sum(axis=1, keepdims=True, dtype=xp.float64)  # (n, 1)
    loss = (shift + xp.log1p(negatives + xp.expm1(-shift))).mean()  #                 (5.6)

    # The gradient, in three steps: to the cosines, to the unit rows, to the embeddings.
    total = negatives + xp.exp(-shift)  # the softmax's denominator, the positive included
    p = e / total.astype(z.dtype)  # (n, n), the probability of each negative …       (5.7)
    even = base / total  # (n, 1), … is p + even
    q = negatives / total  # (n, 1), 1 − the probability of the positive              (5.8)
    # Step 2 sums over a cosine's two rows, hence p + pᵀ and q + q[partner]. If the two views nearly agree, the
    # positive is nearly parallel to u, and step 3 will remove most of it: in float64, or its rounding would remain.
    pull = q + even  # `common` lets every anchor's partner be among its negatives: taken out here
    common = even * exact.sum(axis=0) + (even * exact).sum(axis=0)  # (n, D)
    du = (p + p.T) @ u + common - (pull + pull[partner]) * exact[partner]  # (5.9), (5.10)
    dz = through_norm(exact, norm, scale, du / (n * temperature)).astype(z.dtype)  #  (5.11)
    loss = loss.astype(z.dtype)
    return loss, dz[: len(za)], dz[len(za) :]


def unit_rows(z: Array, dtype: Any = None) -> tuple[Array, Array, Array]:
    """Each row scaled to length 1, and its length as two factors: z = u · norm · scale.

    Shapes: z (n, D) -> u (n, D), norm (n, 1) in [1, √D], scale (n, 1). A zero row has u = 0, scale = 0.
    The two are computed in `dtype`, by default that of z.
    """
    xp = array_module(z)
    scale = xp.abs(z).max(axis=1, keepdims=True)
    scale[scale < xp.finfo(z.dtype).tiny] = 0  # too short to have a direction, or a finite gradient
    scale[scale == xp.inf] = xp.nan  # an embedding that overflowed: say so (∞/∞ would warn besides)
    # Entries in [−1, 1]: their squares cannot overflow.
    scaled = z.astype(dtype or z.dtype, copy=False) / xp.where(scale == 0, xp.inf, scale)
    norm = xp.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
    norm[scale == 0] = 1
    return scaled / norm, norm, scale


def through_norm(u: Array, norm: Array, scale: Array, du: Array) -> Array:
    """The gradient with respect to z, given the one with respect to u = z / |z|: (du − u⟨u, du⟩) / |z|.

    Moving along u changes only the length, which normalising undoes: that part of du is removed.
    """
    xp = array_module(u)
    tangent = du - u * (u * du).sum(axis=1, keepdims=True)
    return tangent / norm / xp.where(scale == 0, xp.inf, scale)


def contrastive_accuracy(za: Array, zb: Array) -> Array:
    """The share of the 2N anchors whose nearest neighbour by cosine is their positive; chance 1/(2N−1).

    Shapes: za, zb (N, D) -> (), still on its device. A tie counts as a miss: collapsed rows score 0.
    """
    xp = array_module(za)
    u = unit_rows(xp.concatenate([za, zb]))[0]
    anchor = xp.arange(len(u))
    partner = (anchor + len(za)) % len(u)
    cosine = u @ u.T.copy()
    positive = cosine[anchor, partner]
    cosine[anchor, anchor] = -xp.inf
    cosine[anchor, partner] = -xp.inf
    return (positive > cosine.max(axis=1)).mean()
