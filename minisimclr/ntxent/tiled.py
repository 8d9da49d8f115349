"""NT-Xent in O(N·D) memory: the fast form on a CPU.

The plain form builds several matrices of shape (2N,2N). At N = 4096 in float32 each takes 256 MiB. The matrix of
cosines is symmetric, so half of its products and exponentials are computed twice.

Here no matrix is ever whole, and each entry is computed once. At N = 4096 a call takes 0.16 s and 146 MiB, or 0.22 s
and 13 MiB if E is computed anew; the plain form, as NumPy users write it, takes 1.2 s and 1,037 MiB. (Two threads,
benchmarks/README.md.) The results are those of `exact.py`, up to rounding. Of few images the whole matrix is computed
in one piece: few.py.

The matrix is computed in tiles that fit a core's cache. Each pair of blocks (I, J) is computed once and serves the rows
of I and those of J:

    1. sums:      E = exp(u_I·u_Jᵀ/τ);  its row sums go to the anchors in I, its column sums to those in J
    2. gradient:  M = P + Pᵀ = E ∘ (w_I ⊕ w_J), one product;  du_I += M u_J  and  du_J += Mᵀ u_I

Step 1 leaves a few vectors of length 2N. Step 2 needs E again: E is kept if it fits into KEEP_BYTES, else it is
computed anew, which costs a third more time and no memory.

Below some τ (0.012 in float32) E would overflow. Then a step 0 finds each anchor's largest cosine, and
the exponent is taken relative to it; E is no longer symmetric, and a tile takes two exponentials.
At a high τ all of E is nearly 1: then a tile holds E − 1, and the contribution of the ones is added at the end.

The pairs of blocks are scheduled in rounds, like a tournament: within a round no block appears twice, so no two threads
write to the same rows. A few rounds run at the same time, each adding to partial sums of its own. The sums therefore
come in the same order on any number of threads, and the result is the same bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from ..backend import Array
from ..processor import blas_at_one_thread, blocks, memory_is_kept, parallel
from . import few
from .exact import HIGH_TEMPERATURE, unit_rows

TILE = 256  # rows of a block: a tile and its weights, 2 · 256 KiB in float32, then stay in a core's L2 cache
SINGLE_THREAD_N = 128  # images up to which one thread is faster: waking another takes as long as a small tile
STRIP = 1024  # rows of a strip, the unit of work where each row is independent; a strip of u stays in the L2 cache
SUM_BYTES = 4 * 2**20  # bytes for the partial du of further rounds; more rounds at a time leave fewer threads waiting
KEEP_BYTES = 160 * 2**20  # bytes that E may take between the two steps; enough for N = 4096 in float32 (132 MiB)
SPARE_BYTES = 32 * 2**20  # bytes that are held between two calls; a training run holds all of E

Pair = tuple[int, int]


def value_and_grad(
    za: Array, zb: Array, temperature: float, keep_bytes: int | None = None
) -> tuple[Array, Array, Array]:
    """Compute the loss and its gradient, as `exact.value_and_grad` does.

    Shapes: za, zb (N,D) of one dtype, float32 or float64 -> loss (), dza (N,D), dzb (N,D).
    Memory: u, (2N,D); two tiles per thread; E if it fits into `keep_bytes`, by default what is held between two calls.
    """
    with blas_at_one_thread():
        keep_bytes = held_bytes() if keep_bytes is None else keep_bytes
        if form(len(za), temperature, za.dtype, keep_bytes) == "whole matrix":
            return few.value_and_grad(za, zb, temperature)
        problem = _Problem(za, zb, temperature, keep_bytes)
        try:
            return problem.solve()
        finally:
            if 0 < problem.room.nbytes <= held_bytes():
                _spare[:] = [problem.room]


def form(images: int, temperature: float, dtype: np.dtype[np.floating], keep_bytes: int) -> str:
    """Name the form that computes a case. `python benchmarks/ntxent.py --choose` measures all of them again.

    The names are "whole matrix", "tiled, E kept" and "tiled, E recomputed". In float32, for 0.013 ≤ τ < 2, they are

        images            a bare call    a training run
        1 … 256           whole matrix   whole matrix      few.py
        257 … 1,984       E kept         E kept            E takes up to 32 MiB
        1,985 … 4,500     recomputed     E kept            up to 160 MiB
        4,501 …           recomputed     recomputed

    The threads and BLAS's kernels are not in the rule: on one thread and two the best form was the same, within
    the spread.
    """
    if few.suits(images, temperature, dtype):
        return "whole matrix"
    kept = not _shifted(images, temperature, dtype) and _bytes_of_e(images, dtype) <= keep_bytes
    return "tiled, E kept" if kept else "tiled, E recomputed"


def held_bytes() -> int:
    """Return the bytes of E that may be held from one call to the next: in a training run more than in a bare call."""
    return KEEP_BYTES if memory_is_kept() else SPARE_BYTES


_spare: list[Array] = []  # at most one array, kept for the next call's E: new memory is slow to touch


def release() -> None:
    """Free the memory that is held ready for the next call's E: SPARE_BYTES at most, in a training run KEEP_BYTES."""
    _spare.clear()


def _room(size: int) -> Array:
    """Return `size` bytes or more: the spare array if it is large enough and no other thread has it, else new ones."""
    try:
        room = _spare.pop()
    except IndexError:
        room = np.empty(0, np.uint8)
    return room if room.size >= size else np.empty(size, np.uint8)


class _Problem:
    """The state of one call: the arrays that all tiles read and write."""

    def __init__(self, za: Array, zb: Array, temperature: float, keep_bytes: int) -> None:
        images, width = za.shape
        n = 2 * images
        self.images, self.temperature, self.dtype = images, temperature, za.dtype
        self.base = int(temperature >= HIGH_TEMPERATURE and images > 1)  # a tile holds E − base: see exact.py, 4.
        self.blocks = _blocks(images)
        self.half = len(self.blocks) // 2  # the partners of block I are the rows of block I ± half
        self.rounds = rounds(len(self.blocks))
        self.views = (za, zb)
        self.strips = [(view, rows) for view in (0, 1) for rows in blocks(images, STRIP)]
        self.u = np.empty((n, width), za.dtype)  # (2N,D)
        self.exact = np.empty((n, width)) if self.base else self.u  # (2N,D), float64 where exact.py needs it
        self.norm = np.empty((n, 1), self.exact.dtype)
        self.scale = np.empty((n, 1), za.dtype)
        self.du = np.empty((n, width), za.dtype)  # (2N,D), becomes dz in place
        self.shifted = _shifted(images, temperature, za.dtype)
        at_once = 1 if self.shifted else min(len(self.rounds), 1 + SUM_BYTES // self.du.nbytes)
        # Rounds that run at the same time add to parts of their own, one for each.
        self.dus = [self.du, *np.empty((at_once - 1, n, width), za.dtype)]
        self.negatives = np.zeros((at_once, n))  # Σ E over the negatives
        pairs = [pair for pairs in self.rounds for pair in pairs]
        self.kept: dict[Pair, Array] = {}  # E of each pair of blocks, flat, if there is room
        self.room = np.empty(0, np.uint8)
        if not self.shifted and (size := _bytes_of_e(images, za.dtype)) <= keep_bytes:
            self.room = _room(size)
            self.kept = dict(zip(pairs, self.room[:size].view(za.dtype).reshape(len(pairs), -1)))

    def solve(self) -> tuple[Array, Array, Array]:
        """Run the steps of this file's docstring one after the other, each over all tiles."""
        images, temperature = self.images, self.temperature
        n = 2 * images
        parallel(self.normalize, self.strips)
        a, b = self.exact[:images], self.exact[images:]
        # Vectors of length 2N are cheap: they are kept in float64.
        cosine = np.einsum("nd,nd->n", a, b, dtype=np.float64)
        positive = np.concatenate([cosine, cosine])  # the cosine of each anchor with its positive

        # The exponent of a tile is (cosine − top)/τ.
        self.top = positive.astype(self.dtype) if self.shifted else np.zeros(n, self.dtype)
        if self.shifted:
            self.each_pair(self.largest)
        self.each_pair(self.sums)
        negatives = self.base * (n - 2) + self.negatives.sum(axis=0)

        with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = −∞ is right for N = 1; NaN stays NaN
            odds = np.log(negatives) + (self.top - positive) / temperature  # log Σ exp(margin)
            loss = np.logaddexp(0, odds)  #                                           (5.5)
        q = np.exp(odds - loss)  # 1 − the probability of the positive                (5.8)
        # level = positive + τ·loss, so that exp((cosine − level)/τ) is the softmax probability.
        level = positive + temperature * loss
        self.level = level.astype(self.dtype)
        weight = np.exp(0 if self.shifted else -level / temperature)  # unused with a shift, where it may overflow
        self.weight = np.asarray(weight, self.dtype)
        self.each_pair(self.gradient)

        if self.base:
            self.common, self.common_sums = weight[:, None], (self.exact.sum(axis=0), weight @ self.exact)
        attraction = q + self.base * weight
        dtype = self.exact.dtype
        self.attraction = np.concatenate([attraction[:images] + attraction[images:]] * 2)[:, None].astype(dtype)
        self.side = np.where(positive < 0, -1, 1)[:, None].astype(dtype)
        parallel(self.finish, self.strips)
        return loss.mean().astype(self.dtype), self.du[:images], self.du[images:]

    def each_pair(self, task: Callable[[Pair, int, bool], None]) -> None:
        """Call task(pair, place, fresh) for every pair of blocks.

        place: which of the partial sums this pair adds to.
        fresh: True in the first rounds, when the partial sums are overwritten instead of added to.
        """
        for first in range(0, len(self.rounds), len(self.dus)):
            now = enumerate(self.rounds[first : first + len(self.dus)])
            turns = [(pair, place, first == 0) for place, pairs in now for pair in pairs]
            if self.images > SINGLE_THREAD_N:
                parallel(lambda turn: task(*turn), turns)
            else:
                for turn in turns:
                    task(*turn)

    # ── A strip of rows of one view ───────────────────────────────────────────────────────────────

    def normalize(self, strip: tuple[int, slice]) -> None:
        """Fill u, norm and scale of the strip's rows."""
        view, rows = strip
        here, _ = self.places(strip)
        exact, self.norm[here], self.scale[here] = unit_rows(self.views[view][rows], self.exact.dtype)  # (5.2)
        self.exact[here] = exact
        if self.base:
            self.u[here] = exact

    def finish(self, strip: tuple[int, slice]) -> None:
        """Add the positives to du, and turn it into dz, in place.

        We may subtract ±u from a positive: (5.11) removes every multiple of u. If the views nearly agree (or oppose
        each other), the difference is small and exact, and so is the rounding of what is added.
        """
        rows, partners = self.places(strip)
        u, du = self.exact[rows], self.du[rows]
        for part in self.dus[1:]:
            du += part[rows]
        if self.base:
            du = du + self.common[rows] * self.common_sums[0] + self.common_sums[1]  #    (5.13)
        part = u * self.side[rows]
        np.subtract(self.exact[partners], part, out=part)
        part *= self.attraction[rows]
        du -= part  #                                                                 (5.10)
        # These are the steps of exact.through_norm, each in place.
        np.multiply(u, np.vecdot(u, du)[:, None], out=part)
        du -= part
        du /= self.norm[rows] * du.dtype.type(2 * self.images * self.temperature)
        scale = self.scale[rows]
        np.divide(du, np.where(scale == 0, np.inf, scale), out=self.du[rows], casting="same_kind")  # (5.11)

    def places(self, strip: tuple[int, slice]) -> tuple[slice, slice]:
        """Return the places of a strip's rows, and of their partners, among the 2N."""
        view, rows = strip
        other = slice(rows.start + self.images, rows.stop + self.images)
        return (other, rows) if view else (rows, other)

    # ── One pair of blocks ────────────────────────────────────────────────────────────────────────

    def cosines(self, pair: Pair, out: Array, factor: float = 1) -> Array:
        """Compute one tile of cosines, times a factor. Where an anchor meets itself or its positive, put −∞: E is 0."""
        i, j = pair
        rows = self.u[self.blocks[i]]
        if factor != 1:
            rows = rows * self.dtype.type(factor)
        np.matmul(rows, self.u[self.blocks[j]].T, out=out)
        if j in (i, i + self.half):  # on the diagonal of such a tile each row meets itself, or its partner
            np.fill_diagonal(out, 0 if self.base else -np.inf)  # a tile that holds E − 1 takes 0: e⁰ − 1 = 0
        return out

    def exponentials(self, pair: Pair, out: Array) -> Array:
        """Compute one tile of E, or of E − 1 at a high temperature."""
        cosine = self.cosines(pair, out, 1 / self.temperature)
        return (np.expm1 if self.base else np.exp)(cosine, out=cosine)

    def relative(self, cosine: Array, level: Array, out: Array) -> Array:
        """Compute exp((cosine − level)/τ)."""
        np.subtract(cosine, level, out=out)
        out *= self.dtype.type(1 / self.temperature)
        return np.exp(out, out=out)

    def largest(self, pair: Pair, place: int, fresh: bool) -> None:
        """Find the largest cosine of each anchor: step 0, for a small τ."""
        I, J = self.rows(pair)
        cosine = self.cosines(pair, self.tile(pair)[0])
        np.maximum(self.top[I], cosine.max(axis=1), out=self.top[I])
        np.maximum(self.top[J], cosine.max(axis=0), out=self.top[J])

    def sums(self, pair: Pair, place: int, fresh: bool) -> None:
        """Add up exp((cosine − top)/τ) over the negatives of each anchor: step 1."""
        I, J = self.rows(pair)
        negatives = self.negatives[place]
        one, two, _ = self.tile(pair)
        if self.shifted:
            cosine = self.cosines(pair, one)
            by_column = self.relative(cosine, self.top[J], out=two)
            if I != J:
                negatives[J] += _column_sums(by_column)
            e = self.relative(cosine, self.top[I][:, None], out=one)
            negatives[I] += _row_sums(e)
        else:
            e = self.exponentials(pair, self.kept_tile(pair) if self.kept else one)
            negatives[I] += _row_sums(e)
            if I != J:
                negatives[J] += _column_sums(e)

    def gradient(self, pair: Pair, place: int, fresh: bool) -> None:
        """Multiply P + Pᵀ of the tile by the unit rows of J for the anchors in I, and the reverse: step 2."""
        I, J = self.rows(pair)
        m, other, product = self.tile(pair)
        if self.shifted:
            cosine = self.cosines(pair, m)
            self.relative(cosine, self.level[J], out=other)
            self.relative(cosine, self.level[I][:, None], out=m)
            m += other
        else:
            e = self.kept_tile(pair) if self.kept else self.exponentials(pair, m)
            np.add(self.weight[I][:, None], self.weight[J], out=other)
            m = np.multiply(e, other, out=other)  #                                   (5.12)
        du = self.dus[place]
        for rows, columns, weights in ((I, J, m), (J, I, m.T)) if I != J else ((I, J, m),):
            if fresh:
                np.matmul(weights, self.u[columns], out=du[rows])
            else:
                _add(du[rows], np.matmul(weights, self.u[columns], out=product[: len(weights)]))

    def rows(self, pair: Pair) -> tuple[slice, slice]:
        return self.blocks[pair[0]], self.blocks[pair[1]]

    def shape(self, pair: Pair) -> tuple[int, int]:
        I, J = self.rows(pair)
        return I.stop - I.start, J.stop - J.start

    def kept_tile(self, pair: Pair) -> Array:
        rows, columns = self.shape(pair)
        return self.kept[pair][: rows * columns].reshape(rows, columns)

    def tile(self, pair: Pair) -> tuple[Array, Array, Array]:
        """Return this thread's scratch arrays: two of the tile's shape, and one for TILE rows of a product."""
        width = self.u.shape[1]
        if getattr(_scratch, "key", None) != (TILE, width, self.dtype):
            _scratch.key = (TILE, width, self.dtype)
            _scratch.arrays = [np.empty(TILE * size, self.dtype) for size in (TILE, TILE, width)]
        one, two, product = _scratch.arrays
        rows, columns = self.shape(pair)
        size = rows * columns
        return one[:size].reshape(rows, columns), two[:size].reshape(rows, columns), product.reshape(TILE, width)


_scratch = threading.local()


def _add(total: Array, part: Array) -> None:
    total += part  # `array[rows] += part` would also copy the rows onto themselves


def _row_sums(e: Array) -> Array:
    return e @ np.ones(e.shape[1], e.dtype)  # four times as fast as e.sum(axis=1)


def _column_sums(e: Array) -> Array:
    return np.ones(e.shape[0], e.dtype) @ e


def _shifted(images: int, temperature: float, dtype: np.dtype[np.floating]) -> bool:
    """Return False if exp(1/τ), summed over 2N rows, stays below the largest number: then no shift is needed."""
    return 1 / temperature + math.log(2 * images) > math.log(np.finfo(dtype).max) - 2


def _bytes_of_e(images: int, dtype: np.dtype[np.floating]) -> int:
    """Return the size of E if it is kept: each pair of blocks has a place that the largest tile fits."""
    count = len(_blocks(images))
    side = max(rows.stop - rows.start for rows in _blocks(images))
    return int(count * (count + 1) // 2 * side * side * dtype.itemsize)


def _blocks(images: int) -> list[slice]:
    """Cut each view into blocks of at most TILE rows, all of nearly one size: first one view's, then the other's."""
    count = max(-(-images // TILE), 2 if images > SINGLE_THREAD_N else 1)  # three pairs are too few for two threads
    edges = [images * k // count for k in range(count + 1)]
    one = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return one + [slice(images + rows.start, images + rows.stop) for rows in one]


@functools.cache
def rounds(players: int) -> list[list[Pair]]:
    """List all pairs (i ≤ j) of an even number of players, in rounds in which everybody plays exactly once.

    The schedule is that of a chess tournament: the last player stays, the others rotate. The pairs of a player with
    itself come at the end: those tiles are the quickest, and fill the gaps when several rounds run at the same time.
    """
    others = players - 1
    schedule = []
    for r in range(others):
        pairs = [(r, others)] + [((r + k) % others, (r - k) % others) for k in range(1, players // 2)]
        schedule.append([(min(pair), max(pair)) for pair in pairs])
    return [*schedule, [(i, i) for i in range(players)]]
