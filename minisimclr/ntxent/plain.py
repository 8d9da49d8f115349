"""NT-Xent, the loss of SimCLR, in its plain form: composed first, then by hand.

Two random views of each of N images give 2N embeddings z, and each of them is an *anchor* in turn. Its *positive* is
the other view of its image; the remaining 2N − 2 embeddings are its *negatives*. The loss of an anchor is the
cross-entropy of picking its positive among all others by cosine similarity, at a temperature τ:

    ℓᵢ = −log [ exp(cos(zᵢ, z_p(i))/τ) / Σ_{k≠i} exp(cos(zᵢ, z_k)/τ) ],    L = Σᵢ ℓᵢ / 2N          (5.1)

Rows are [views a; views b], so the positive of row i is row p(i) = i ± N. The sum leaves out the anchor itself, k = i,
and nothing else; the mean is over all 2N anchors.

Source: Chen et al. 2020, Eq. 1 and Algorithm 1. The tags (5.1), (5.2) … are equations of docs/05_nt_xent.md, which
derives each of them. The plain forms lose digits in four places; exact.py names each of these, with its cure.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import ops
from ..backend import Array, array_module
from ..engine.autograd import Tensor, Vjp, primitive

# ── First rung: composed ──────────────────────────────────────────────────────────────────────────


def nt_xent_composed(za: Any, zb: Any, temperature: float) -> Tensor:
    """Compose the loss from operations that we already have; autograd finds the gradient.

    Shapes: za (N,D), zb (N,D) -> scalar
    A row of zeros counts as u = 0. Small losses come out as the difference of two large numbers: see exact.py.
    Source: Chen et al. 2020, Eq. 1: (5.1).
    """
    N = len(za)
    z = ops.concatenate(za, zb)  # (2N,D)
    u = ops.l2_normalize(z)  # (2N,D), rows of length 1                                  (5.2)
    logits = u @ u.T / temperature  # (2N,2N), all cosines over τ                        (5.3)

    # An anchor must not choose itself: with a logit of −∞ its own probability is e^−∞ = 0.
    # (A logit of 0, as one sees it elsewhere, would leave e⁰ = 1 in the denominator.)
    xp = array_module(logits.data)
    not_itself = xp.diag(xp.full(2 * N, -xp.inf, logits.dtype))  # (2N,2N)
    positive = (xp.arange(2 * N) + N) % (2 * N)  # (2N,), the right answer of each anchor

    # A multiple-choice question with 2N − 1 answers: that is cross-entropy, and already the mean over anchors.
    return ops.cross_entropy(logits + not_itself, labels=positive)  # scalar             (5.1)


# ── Second rung: by hand ──────────────────────────────────────────────────────────────────────────


@primitive
def nt_xent_plain(xp: ModuleType, za: Array, zb: Array, *, temperature: float) -> tuple[Array, Vjp]:
    """The loss and its gradient by hand, each line one equation of the chapter.

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    dz = (du − u⟨u,du⟩)/|z|,  du = (G + Gᵀ)u,  G = g·(P − Y)/2Nτ,  P the softmax, Y the one-hot positives
    A row of zeros has no direction: here it divides by zero, NumPy warns and the result is NaN. Rows so short or long
    that their squares leave the range of the dtype do the same. The form in exact.py counts a row of zeros as u = 0,
    with gradient 0, and knows no limit of length.
    """
    N = len(za)
    z = xp.concatenate([za, zb])  # (2N,D)
    length = xp.sqrt((z * z).sum(axis=1, keepdims=True))  # (2N,1)
    u = z / length  # (2N,D)                                                             (5.2)
    logits = u @ u.T / temperature  # (2N,2N)                                            (5.3)
    anchor = xp.arange(2 * N)  # (2N,)
    positive = (anchor + N) % (2 * N)  # (2N,)
    logits[anchor, anchor] = -xp.inf  # an anchor must not choose itself
    logits -= logits.max(axis=1, keepdims=True)  # softmax does not change, and exp cannot overflow
    e = xp.exp(logits)  # (2N,2N)
    total = e.sum(axis=1, keepdims=True)  # (2N,1)
    # −log P of the positive, without forming P first, which may be 0:
    loss = (xp.log(total[:, 0]) - logits[anchor, positive]).mean()  # scalar            (5.1)
    p = e / total  # (2N,2N), the probability that each anchor gives to each row         (5.7)

    def vjp(g: Array) -> tuple[Array, Array]:
        dlogits = p.copy()
        dlogits[anchor, positive] -= 1  # P − Y: what is missing from the right answer   (5.9)
        dlogits *= g / (2 * N)  # each anchor has a share of 1/2N in the mean
        # The logit of i and k depends on both rows: uᵢ is anchor in row i, and a choice in column i.
        du = (dlogits + dlogits.T) @ u / temperature  # (2N,D)                           (5.10)
        # Moving z along itself does not turn u: that part of du is removed.
        dz = (du - u * (u * du).sum(axis=1, keepdims=True)) / length  # (2N,D)           (5.11)
        return dz[:N], dz[N:]  # (N,D) each

    return loss, vjp
