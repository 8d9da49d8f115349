"""NT-Xent of a batch that processes share: own rows against all columns.

The loss of an anchor needs the embeddings of all views, so every rank must know them: (2N,D) numbers, a small message.
But no rank needs the whole matrix of cosines. With n of the N images, a rank computes 2n of its 2N rows, and two
things that it gathers complete them:

    u       the unit rows of all ranks                       to compare its anchors with
    level   positive + τ·loss of all anchors, 2N numbers     P of the others' anchors is exp((cosine − level)/τ)

For the gradient (5.10) needs P_ij and P_ji: row i, in which i is the anchor, and column i, in which i is a choice of
the others. Both are functions of the same cosine, so no gradient is sent back from rank to rank, and time and memory
of the loss are shared and not repeated. Both views of an image live on one rank, and so does every positive.

The result is the gradient of the *whole* loss, the mean over all 2N anchors, by this rank's embeddings. The gradients
of the weights are then summed over the ranks, and divided by nothing: 1/2N is in each of them already.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..collective import Ranks, all_rows
from ..engine.autograd import Tensor, Vjp, primitive
from ..processor import parallel, pieces
from ..values import computing_dtype
from . import exact
from .exact import HIGH_TEMPERATURE, through_norm, unit_rows

STRIP = 256  # anchors of a strip, the unit of work of a thread; with 8,192 columns it takes 8 MiB in float32


def nt_xent(za: Any, zb: Any, temperature: float = 0.1, *, ranks: Ranks) -> Tensor:
    """Compute NT-Xent of all ranks' embeddings, of which za and zb are those of this rank.

    Shapes: za (n,D), zb (n,D) -> scalar, the same on every rank; from it the gradient of this rank's rows flows back
    """
    return nt_xent_of_some_rows(za, zb, temperature=temperature, ranks=ranks)


@primitive
def nt_xent_of_some_rows(xp: ModuleType, za: Array, zb: Array, *, temperature: float, ranks: Any) -> tuple[Array, Vjp]:
    """The operation behind `nt_xent`.

    Shapes: za (n,D), zb (n,D) -> scalar, the same on every rank
    VJP:    dza = g·∂L/∂za, dzb = g·∂L/∂zb, of this rank's rows alone
    """
    value, dza, dzb = value_and_grad(za, zb, temperature, ranks)  # scalar, (n,D), (n,D)
    return value, lambda g: ((g * dza).astype(za.dtype), (g * dzb).astype(zb.dtype))


def value_and_grad(za: Array, zb: Array, temperature: float, ranks: Ranks) -> tuple[Array, Array, Array]:
    """Compute the loss of the whole batch, and its gradient by this rank's rows.

    Shapes: za (n,D), zb (n,D) -> loss (), dza (n,D), dzb (n,D)
    A row of zeros counts as u = 0, with gradient 0; NaN in any rank's rows makes the loss of every rank NaN.
    """
    xp, n = array_module(za), len(za)
    # From τ = 2 on only the differences of the exponentials count (exact.py, 4.); float64 has digits enough for them.
    wide = xp.float64 if temperature >= HIGH_TEMPERATURE else computing_dtype(za, zb)
    u, norm, scale = unit_rows(xp.concatenate([za, zb]).astype(wide))  # (2n,D)          (5.2)
    anchors = _Anchors(u, ranks)
    positive = anchors.positives()  # (2n,)
    loss, missing = _losses(anchors, positive, temperature)  # (2n,), (2n,)
    du = _pushed(anchors, positive + temperature * loss, temperature, ranks)  # (2n,D)

    # (5.11) removes any multiple of u, so the positive may be taken relative to u: of views that agree, a small vector.
    side = xp.where(positive < 0, -1, 1)[:, None].astype(wide)  # (2n,1)
    du -= (missing + missing[anchors.partner])[:, None] * (u[anchors.partner] - side * u)  # (2n,D)  (5.10)
    count = len(anchors.everyone)  # 2N, of the whole batch
    dz = through_norm(u, norm, scale, du / (count * temperature))  # (2n,D)              (5.11)
    whole = ranks.all_reduce(xp.asarray(loss.sum(dtype=xp.float64))) / count  # the mean over all 2N anchors
    return xp.asarray(whole, dtype=xp.result_type(za.dtype, zb.dtype)), dz[:n], dz[n:]


def contrastive_accuracy(za: Array, zb: Array, ranks: Ranks | None = None) -> Array:
    """Return the share of the anchors whose nearest neighbour is their positive, of all ranks' embeddings.

    Shapes: za (n,D), zb (n,D) -> (), still on its device; without other ranks it is that of exact.py
    """
    if ranks is None or ranks.size == 1:
        return exact.contrastive_accuracy(za, zb)
    xp = array_module(za)
    anchors = _Anchors(unit_rows(xp.concatenate([za, zb]))[0], ranks)
    positive, hits = anchors.positives(), xp.empty(2 * len(za))  # (2n,) each

    def count(rows: slice) -> None:
        hits[rows] = positive[rows] > anchors.negatives(rows).max(axis=1)

    _in_strips(xp, count, len(hits))
    return xp.asarray(ranks.all_reduce(xp.asarray(hits.sum())) / len(anchors.everyone))


class _Anchors:
    """The anchors of this rank, and all rows that they are compared with.

    u (2n,D)         unit rows of this rank, [views a; views b]     everyone (2N,D)  unit rows of all ranks, alike
    partner (2n,)    of each anchor, its positive among these       place (2n,)      of each anchor, its row in everyone
    """

    def __init__(self, u: Array, ranks: Ranks) -> None:
        self.xp, n = array_module(u), len(u) // 2
        self.u = u
        self.everyone, self.place = _all_views(ranks, u)
        self.partner = (self.xp.arange(2 * n) + n) % (2 * n)  # both views of an image are on one rank

    def positives(self) -> Array:
        """Return the cosine of each anchor with its positive, (2n,); summed in float64, as exact.py, 2. says."""
        return (self.u * self.u[self.partner]).sum(axis=1, dtype=self.xp.float64).astype(self.u.dtype)

    def negatives(self, rows: slice) -> Array:
        """Return the cosines of some anchors with all rows, −∞ where one meets itself or its positive: (r,2N)."""
        cosine = self.u[rows] @ self.everyone.T  # (r,2N)                                (5.3)
        anchor = self.xp.arange(len(cosine))
        # Added and not assigned: NaN − ∞ is NaN, so a NaN is never masked away.
        cosine[anchor, self.place[rows]] += -self.xp.inf
        cosine[anchor, self.place[self.partner[rows]]] += -self.xp.inf
        return cosine


def _losses(anchors: _Anchors, positive: Array, temperature: float) -> tuple[Array, Array]:
    """Compute the loss of each anchor of this rank, and what is missing from the probability of its positive, (2n,)."""
    xp = anchors.xp
    loss, missing = xp.empty_like(positive), xp.empty_like(positive)  # (2n,) each

    def of_some(rows: slice) -> None:
        cosine = anchors.negatives(rows)  # (r,2N)
        top = cosine.max(axis=1)  # (r,); subtracted, so that no exponential overflows
        total = xp.exp((cosine - top[:, None]) / temperature).sum(axis=1)  # (r,)
        odds = xp.log(total) + (top - positive[rows]) / temperature  # (r,), log Σ exp(margin)
        with np.errstate(invalid="ignore"):  # NaN stays NaN
            loss[rows] = xp.logaddexp(0, odds)  #                                        (5.5)
        missing[rows] = xp.exp(odds - loss[rows])  #                                     (5.8)

    _in_strips(xp, of_some, len(loss))
    return loss, missing


def _pushed(anchors: _Anchors, level: Array, temperature: float, ranks: Ranks) -> Array:
    """Compute what the negatives add to du (5.10) of each anchor of this rank: 2Nτ times that, (2n,D)."""
    xp = anchors.xp
    all_levels = _all_views(ranks, level[:, None])[0][:, 0]  # (2N,)
    du = xp.empty_like(anchors.u)  # (2n,D)

    def of_some(rows: slice) -> None:
        cosine = anchors.negatives(rows)  # (r,2N)
        p = xp.exp((cosine - level[rows, None]) / temperature)  # (r,2N), P_ij: this rank's anchors choose  (14.3)
        p += xp.exp((cosine - all_levels) / temperature)  # (r,2N), P_ji: the others choose them         (14.3)
        du[rows] = p @ anchors.everyone  # (r,D)

    _in_strips(xp, of_some, len(du))
    return du


def _all_views(ranks: Ranks, rows: Array) -> tuple[Array, Array]:
    """Gather rows of both views; return all of them as [views a; views b], and the places of those of this rank.

    Shapes: rows (2n,D), [views a; views b] of this rank -> (2N,D), places (2n,)
    """
    xp, n = array_module(rows), len(rows) // 2
    # Side by side, so that both views of an image travel together.
    pairs, own = all_rows(ranks, xp.concatenate([rows[:n], rows[n:]], axis=1))  # (N,2D)
    D = rows.shape[1]
    first = xp.arange(own.start, own.stop)  # (n,)
    return xp.concatenate([pairs[:, :D], pairs[:, D:]]), xp.concatenate([first, first + len(pairs)])


def _in_strips(xp: Any, task: Callable[[slice], None], count: int) -> None:
    """Run a task for all anchors of this rank, strip by strip: on a CPU on all threads, on a GPU as one strip."""
    parallel(task, pieces(xp, count, STRIP))
