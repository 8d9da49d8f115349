"""NT-Xent to the last digit: cures for the four places where the plain form loses digits.

1. *Lengths.* The plain form squares each entry: in float32, 1e-30 becomes 0 and 1e30 infinity, and a row of zeros is
   divided by 0. `unit_rows` divides each row by its largest entry first, and `through_norm` by both factors.
2. *The loss.* log Σ − s subtracts two numbers near 1/τ, each rounded; with good embeddings their difference is tiny.
   `margins` subtracts the positive from the logits first, and `log_one_plus` takes log1p of what is left. That
   difference is divided by τ, so the positive's cosine is summed in float64: a product in float32 may err by 3e-6.
3. *The positive's gradient.* P − 1 is rounded where P is nearly 1, and the positive, nearly parallel to u, is mostly
   removed again by (5.11). `by_probabilities` sums P over the negatives instead, and the positive's u is kept in
   float64.
4. *High temperatures.* From τ = 2 on all exponentials are nearly 1, and only their differences count.
   `by_differences` computes those differences.

In float32, with views that nearly agree at τ = 0.05 and N = 127, the plain form errs by 2e-2 in the loss and 1e-2 in
the gradient, this form by 3e-7 and 1e-6 (measured by tests/test_ntxent_rungs.py). It takes as long as a plain form at
N = 256 and 2.4 times as long at 4096 (benchmarks/README.md), and like it holds matrices of shape (2N,2N). The tags are
the equations of docs/05_nt_xent.md.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module

# Temperature from which `by_differences` is used; below it nothing cancels so far that float32 would notice.
HIGH_TEMPERATURE = 2.0


def value_and_grad(za: Array, zb: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Compute the loss and its gradient with respect to both views.

    Shapes: za, zb (N,D) of one float dtype -> loss (), dza (N,D), dzb (N,D), all in that dtype.
    NaN or infinity anywhere in the input makes the loss NaN; a zero row counts as u = 0 and gets
    gradient 0. Callers check their arguments with `values.embeddings`.
    """
    xp = array_module(za)
    n = 2 * len(za)  # anchors
    anchor = xp.arange(n)
    partner = (anchor + len(za)) % n  # rows are [za; zb], so the positive of row i is row i ± N
    z = xp.concatenate([za, zb])  # (n,D)
    exact, norm, scale = unit_rows(z, xp.float64)  # u = z / |z|                         (5.2)
    u = exact.astype(z.dtype)  # (n,D)
    cosine = u @ u.T.copy()  # (n,n); NumPy takes a slower path for u @ u.T              (5.3)
    positive = (exact * exact[partner]).sum(axis=1, keepdims=True).astype(u.dtype)  # (n,1)
    relative, shift = margins(cosine, positive, anchor, partner, temperature)  # (n,n), (n,1)
    high = temperature >= HIGH_TEMPERATURE and n > 2  # one image has no negatives to tell apart
    summed = by_differences(relative, shift, u, exact, partner) if high else by_probabilities(relative, shift, u)
    negatives, repulsion, attraction = summed  # (n,1), (n,D), (n,1)
    loss = log_one_plus(negatives, shift).mean()
    du = repulsion - (attraction + attraction[partner]) * exact[partner]  # (n,D), nτ ×  (5.10)
    dz = through_norm(exact, norm, scale, du / (n * temperature)).astype(z.dtype)  #     (5.11)
    return loss.astype(z.dtype), dz[: len(za)], dz[len(za) :]


# ── 1. Lengths ────────────────────────────────────────────────────────────────────────────────────


def unit_rows(z: Array, dtype: Any = None) -> tuple[Array, Array, Array]:
    """Scale each row to length 1, and return its length as two factors: z = u · norm · scale.

    Shapes: z (n,D) -> u (n,D), norm (n,1) in [1, √D], scale (n,1). A zero row has u = 0, scale = 0.
    The first two are computed in `dtype`, by default that of z.
    """
    xp = array_module(z)
    scale = xp.abs(z).max(axis=1, keepdims=True)  # (n,1)
    scale[scale < xp.finfo(z.dtype).tiny] = 0  # too short to have a direction, or a finite gradient
    scale[scale == xp.inf] = xp.nan  # an embedding overflowed: its row becomes NaN (∞/∞ would warn, too)
    # Entries in [−1, 1]: their squares cannot overflow.
    scaled = z.astype(dtype or z.dtype, copy=False) / xp.where(scale == 0, xp.inf, scale)
    norm = xp.sqrt((scaled * scaled).sum(axis=1, keepdims=True, dtype=xp.float64)).astype(scaled.dtype)  # (n,1)
    norm[scale == 0] = 1
    return scaled / norm, norm, scale


def through_norm(u: Array, norm: Array, scale: Array, du: Array) -> Array:
    """Return the gradient with respect to z, given the one with respect to u = z / |z|: (du − u⟨u,du⟩)/|z|.

    Moving z along u changes only its length, and u does not depend on that: this part of du is removed.
    """
    xp = array_module(u)
    tangent = du - u * (u * du).sum(axis=1, keepdims=True)
    return tangent / norm / xp.where(scale == 0, xp.inf, scale)


# ── 2. The loss ───────────────────────────────────────────────────────────────────────────────────


def margins(cosine: Array, positive: Array, anchor: Array, partner: Array, temperature: float) -> tuple[Array, Array]:
    """Return each anchor's logits relative to its positive's, shifted so that no exponential overflows.

    Shapes: cosine (n,n), positive (n,1), anchor (n,), partner (n,) -> relative (n,n), shift (n,1) in float64.
    Every relative logit is ≤ 0, and the shift is ≥ 0.
    The shift is 0 where the positive beats all negatives: then nothing is subtracted that `log_one_plus` would miss.
    """
    xp = array_module(cosine)
    margin = (cosine - positive) / temperature  # (n,n)                                  (5.4)
    # We add −∞ rather than assign it: NaN − ∞ is NaN, so a NaN is never masked away.
    margin[anchor, anchor] += -xp.inf  # an anchor is not its own negative …
    margin[anchor, partner] += -xp.inf  # … and neither is its positive
    shift = xp.maximum(margin.max(axis=1, keepdims=True), 0).astype(xp.float64)  # (n,1)
    return margin - shift.astype(cosine.dtype), shift


def log_one_plus(negatives: Array, shift: Array) -> Array:
    """Return each anchor's loss, log(1 + Σ e^margin), from the sum that was taken of shifted margins.

    Shapes: negatives (n,1), shift (n,1) -> (n,1).
    """
    xp = array_module(negatives)
    return shift + xp.log1p(negatives + xp.expm1(-shift))  #                             (5.6), (5.5)


# ── 3. The positive's gradient ────────────────────────────────────────────────────────────────────


def by_probabilities(relative: Array, shift: Array, u: Array) -> tuple[Array, Array, Array]:
    """Sum over the negatives. The weight of the positive, 1 − P, is the sum of their P: no digits cancel.

    Shapes: relative (n,n), shift (n,1), u (n,D) -> negatives (n,1), repulsion (n,D), attraction (n,1).
    negatives: Σ e^relative; repulsion: what the negatives add to du; attraction: the weight of the positive, 1 − P.
    """
    xp = array_module(u)
    e = xp.exp(relative)  # (n,n), every entry in [0, 1]
    negatives = e.sum(axis=1, keepdims=True, dtype=xp.float64)  # (n,1)
    total = negatives + xp.exp(-shift)  # (n,1), the softmax's denominator, the positive included
    p = e / total.astype(u.dtype)  # (n,n), the probability of each negative             (5.7)
    q = negatives / total  # (n,1), 1 − the probability of the positive                  (5.8)
    # The cosine of i and j serves both anchors, hence p + pᵀ.
    return negatives, (p + p.T) @ u, q  #                                                (5.9), (5.10)


# ── 4. High temperatures ──────────────────────────────────────────────────────────────────────────


def by_differences(relative: Array, shift: Array, u: Array, exact: Array, partner: Array) -> tuple[Array, Array, Array]:
    """Sum like `by_probabilities` where all exponentials are close to 1: we store e = exp − 1, and add the 1 apart.

    Shapes: relative (n,n), shift (n,1), u, exact (n,D), partner (n,) -> the same three as `by_probabilities`.
    The 1 is common to all negatives, so its share of the repulsion is two vectors of length D, taken in float64.
    """
    xp = array_module(u)
    n = len(u)
    anchor = xp.arange(n)
    e = xp.expm1(relative)  # (n,n), every entry in [−1, 0]
    e[anchor, anchor] = e[anchor, partner] = 0  # these two are no negatives
    negatives = (n - 2) + e.sum(axis=1, keepdims=True, dtype=xp.float64)  # (n,1)
    total = negatives + xp.exp(-shift)  # (n,1)
    rest = e / total.astype(u.dtype)  # (n,n), what tells the probabilities apart …
    common = 1 / total  # (n,1), … and what they have in common: P = common + rest       (5.7)
    common_sum = common * exact.sum(axis=0) + (common * exact).sum(axis=0)  # (n,D)      (5.13)
    repulsion = (rest + rest.T) @ u + common_sum  # (n,D)
    # `common_sum` runs over all rows, so it wrongly includes each anchor's positive: `common` is added to the weight of
    # the positive, which takes it out again.
    return negatives, repulsion, negatives / total + common


# ── Contrastive accuracy ──────────────────────────────────────────────────────────────────────────


def contrastive_accuracy(za: Array, zb: Array) -> Array:
    """Return the share of the 2N anchors whose nearest neighbour by cosine is their positive; chance is 1/(2N−1).

    Shapes: za, zb (N,D) -> (), still on its device. A tie counts as a miss: collapsed rows score 0.
    """
    xp = array_module(za)
    u = unit_rows(xp.concatenate([za, zb]))[0]  # (2N,D)
    anchor = xp.arange(len(u))
    partner = (anchor + len(za)) % len(u)
    cosine = u @ u.T.copy()  # (2N,2N)
    positive = cosine[anchor, partner]  # (2N,)
    cosine[anchor, anchor] = -xp.inf
    cosine[anchor, partner] = -xp.inf
    return (positive > cosine.max(axis=1)).mean()
