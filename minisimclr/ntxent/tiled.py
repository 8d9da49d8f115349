"""NT-Xent in O(N·D) memory: the fast version on a CPU, equal to `loss.py` up to rounding.

The (2N, 2N) matrix of cosines is never whole. It is visited in tiles that fit a core's cache, and as it
is symmetric, each pair of blocks (I, J) is computed once and serves the rows of I and those of J:

    1. sums:      E = exp(u_I·u_Jᵀ/τ);  its row sums go to the anchors in I, its column sums to those in J
    2. gradient:  M = P + Pᵀ = E ∘ (w_I ⊕ w_J), one product;  du_I += M u_J  and  du_J += Mᵀ u_I

Between the two stand a few vectors of length 2N. Step 2 needs E again: it is kept where it fits into
KEEP_BYTES, else computed anew, which costs a third more time and no memory.

Below some τ (0.012 in float32) E would overflow. Then a step 0 finds each anchor's largest cosine, and
the exponent is taken relative to it; E is no longer symmetric, and a tile takes two exponentials.
At a high τ all of E is nearly 1: then a tile holds E − 1, and what is common to all is added at the end.

The tiles are worked on in rounds, like a tournament: within a round no block plays twice, so no two
threads write to the same rows. A few rounds are played at once, each adding to sums of its own. The sums
therefore come in the same order on any number of threads, and the result is the same bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from ..backend import Array
from ..processor import blas_at_one_thread, blocks, parallel
from .exact import FLAT, unit_rows

TILE = 256  # rows of a block: the tile and its weights, 2 · 256 KiB in float32, stay in a core's L2 cache
ALONE = 128  # up to this N one thread is faster: to wake another takes as long as a small tile
STRIP = 1024  # rows of a strip, where each row is on its own
SUM_BYTES = 4 * 2**20  # room for the sums of du of further rounds that are played at once
KEEP_BYTES = 160 * 2**20  # room for E up to N = 4096 in float32 (130 MiB)

Pair = tuple[int, int]


def value_and_grad(
    za: Array, zb: Array, temperature: float, keep_bytes: int = KEEP_BYTES
) -> tuple[Array, Array, Array]:
    """The loss and its gradient, as `loss.value_and_grad` computes them.

    Shapes: za, zb (N, D) of one dtype, float32 or float64 -> loss (), dza (N, D), dzb (N, D).
    Memory: u (2N, D), and per thread two tiles; E of up to `keep_bytes`.
    """
    with blas_at_one_thread():
        problem = _Problem(za, zb, temperature, keep_bytes)
        try:
            return problem.solve()
        finally:
            if 0 < problem.room.nbytes <= KEEP_BYTES:
                _spare[:] = [problem.room]


_spare: list[Array] = []  # at most one array: in a training loop, E goes where the last step's E was


def release() -> None:
    """Give back the memory, at most KEEP_BYTES, that waits for the next call's E."""
    _spare.clear()


def _room(size: int) -> Array:
    """So many bytes: the spare ones, if they are enough and no other thread has them, else new ones."""
    try:
        room = _spare.pop()
    except IndexError:
        room = np.empty(0, np.uint8)
    return room if room.size >= size else np.empty(size, np.uint8)


class _Problem:
    """One call: the arrays that the tiles share."""

    def __init__(self, za: Array, zb: Array, temperature: float, keep_bytes: int) -> None:
        images, width = za.shape
        n = 2 * images
        self.images, self.temperature, self.dtype = images, temperature, za.dtype
        self.base = int(temperature >= FLAT and images > 1)  # a tile holds E − base
        self.blocks = _blocks(images)
        self.half = len(self.blocks) // 2  # the partners of block I are the rows of block I ± half
        self.rounds = rounds(len(self.blocks))
        self.views = (za, zb)
        self.strips = [(view, rows) for view in (0, 1) for rows in blocks(images, STRIP)]
        self.u = np.empty((n, width), za.dtype)
        self.exact = np.empty((n, width)) if self.base else self.u  # as in loss.py, float64 where it decides
        self.norm = np.empty((n, 1), self.exact.dtype)
        self.scale = np.empty((n, 1), za.dtype)
        self.du = np.empty((n, width), za.dtype)  # becomes dz in place
        # exp(1/τ) summed over 2N rows must stay below the largest number: then no shift is needed.
        self.shifted = 1 / temperature + math.log(n) > math.log(np.finfo(za.dtype).max) - 2
        at_once = 1 if self.shifted else min(len(self.rounds), 1 + SUM_BYTES // self.du.nbytes)
        self.dus = [self.du, *np.empty((at_once - 1, n, width), za.dtype)]  # one for each round played at once
        self.negatives = np.zeros((at_once, n))
        side = max(rows.stop - rows.start for rows in self.blocks)
        pairs = [pair for pairs in self.rounds for pair in pairs]
        size = len(pairs) * side * side * za.itemsize
        self.kept: dict[Pair, Array] = {}  # E of each pair of blocks, flat, if there is room
        self.room = np.empty(0, np.uint8)
        if not self.shifted and size <= keep_bytes:
            self.room = _room(size)
            self.kept = dict(zip(pairs, self.room[:size].view(za.dtype).reshape(len(pairs), -1)))

    def solve(self) -> tuple[Array, Array, Array]:
        images, temperature = self.images, self.temperature
        n = 2 * images
        parallel(self.normalize, self.strips)
        a, b = self.exact[:images], self.exact[images:]
        # Vectors of length 2N are cheap: they are kept in float64.
        cosine = np.einsum("nd,nd->n", a, b, dtype=np.float64)
        positive = np.concatenate([cosine, cosine])  # of each anchor with its positive

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
        # P = exp((cosine − level)/τ): the factor that turns E into probabilities, as an offset of the cosine
        level = positive + temperature * loss
        self.level = level.astype(self.dtype)
        weight = np.exp((self.top - level) / temperature)
        self.weight = weight.astype(self.dtype)
        self.each_pair(self.gradient)

        if self.base:
            self.even, self.common = weight[:, None], (self.exact.sum(axis=0), weight @ self.exact)
        pull = q + self.base * weight
        dtype = self.exact.dtype
        self.pull = np.concatenate([pull[:images] + pull[images:]] * 2)[:, None].astype(dtype)
        self.side = np.where(positive < 0, -1, 1)[:, None].astype(dtype)
        parallel(self.finish, self.strips)
        return loss.mean().astype(self.dtype), self.du[:images], self.du[images:]

    def each_pair(self, task: Callable[[Pair, int, bool], None]) -> None:
        """task(pair, place, fresh) for every pair: it adds to the sums number `place`, or starts them if fresh."""
        for first in range(0, len(self.rounds), len(self.dus)):
            now = enumerate(self.rounds[first : first + len(self.dus)])
            turns = [(pair, place, first == 0) for place, pairs in now for pair in pairs]
            if self.images > ALONE:
                parallel(lambda turn: task(*turn), turns)
            else:
                for turn in turns:
                    task(*turn)

    # ── A strip of rows of one view ───────────────────────────────────────────────────────────────

    def normalize(self, strip: tuple[int, slice]) -> None:
        view, rows = strip
        here, _ = self.places(strip)
        exact, self.norm[here], self.scale[here] = unit_rows(self.views[view][rows], self.exact.dtype)  # (5.2)
        self.exact[here] = exact
        if self.base:
            self.u[here] = exact

    def finish(self, strip: tuple[int, slice]) -> None:
        """du, so far without the positives, becomes dz, in place."""
        rows, partners = self.places(strip)
        u, du = self.exact[rows], self.du[rows]
        for part in self.dus[1:]:
            du += part[rows]
        if self.base:
            du = du + self.even[rows] * self.common[0] + self.common[1]  #            (5.13)
        part = u * self.side[rows]
        np.subtract(self.exact[partners], part, out=part)
        part *= self.pull[rows]
        du -= part  #                                                                 (5.10)
        # As loss.through_norm, step by step.
        np.multiply(u, np.vecdot(u, du)[:, None], out=part)
        du -= part
        du /= self.norm[rows] * du.dtype.type(2 * self.images * self.temperature)
        scale = self.scale[rows]
        np.divide(du, np.where(scale == 0, np.inf, scale), out=self.du[rows], casting="same_kind")  # (5.11)

    def places(self, strip: tuple[int, slice]) -> tuple[slice, slice]:
        """Where a strip's rows, and their partners, stand among the 2N."""
        view, rows = strip
        other = slice(rows.start + self.images, rows.stop + self.images)
        return (other, rows) if view else (rows, other)

    # ── One pair of blocks ────────────────────────────────────────────────────────────────────────

    def cosines(self, pair: Pair, out: Array, factor: float = 1) -> Array:
        """One tile of cosines, times a factor; an anchor with itself or its positive: −∞, so that E is 0."""
        i, j = pair
        rows = self.u[self.blocks[i]]
        if factor != 1:
            rows = rows * self.dtype.type(factor)
        np.matmul(rows, self.u[self.blocks[j]].T, out=out)
        if j in (i, i + self.half):  # on the diagonal of this tile each row meets itself, or its partner
            np.fill_diagonal(out, 0 if self.base else -np.inf)  # e⁰ − 1 is 0 as well
        return out

    def exponentials(self, pair: Pair, out: Array) -> Array:
        cosine = self.cosines(pair, out, 1 / self.temperature)
        return (np.expm1 if self.base else np.exp)(cosine, out=cosine)

    def relative(self, cosine: Array, level: Array, out: Array) -> Array:
        """exp((cosine − level)/τ)."""
        np.subtract(cosine, level, out=out)
        out *= self.dtype.type(1 / self.temperature)
        return np.exp(out, out=out)

    def largest(self, pair: Pair, place: int, fresh: bool) -> None:
        """Step 0, for a small τ: the largest cosine of each anchor."""
        I, J = self.rows(pair)
        cosine = self.cosines(pair, self.tile(pair)[0])
        np.maximum(self.top[I], cosine.max(axis=1), out=self.top[I])
        np.maximum(self.top[J], cosine.max(axis=0), out=self.top[J])

    def sums(self, pair: Pair, place: int, fresh: bool) -> None:
        """Step 1: Σ exp((cosine − top)/τ) over the negatives of each anchor."""
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
        """Step 2: P + Pᵀ of the tile, times the unit rows, both ways."""
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
        """This thread's scratch: two arrays of the tile's shape, and one for TILE rows of a product."""
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
    total += part  # `array[rows] += part` would copy the rows onto themselves besides


def _row_sums(e: Array) -> Array:
    return e @ np.ones(e.shape[1], e.dtype)  # four times as fast as e.sum(axis=1)


def _column_sums(e: Array) -> Array:
    return np.ones(e.shape[0], e.dtype) @ e


def _blocks(images: int) -> list[slice]:
    """Blocks of at most TILE rows, of like size, of one view; then the same of the other view."""
    count = max(-(-images // TILE), 2 if images > ALONE else 1)  # three pairs are too few for two threads
    edges = [images * k // count for k in range(count + 1)]
    one = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return one + [slice(images + rows.start, images + rows.stop) for rows in one]


@functools.cache
def rounds(players: int) -> list[list[Pair]]:
    """All pairs (i ≤ j) of an even number of players, in rounds in which everybody plays exactly once.

    The schedule of a chess tournament: the last one stays, the others rotate. Each with itself comes at
    the end: those tiles are the quickest, and fill the gaps when several rounds are played at once.
    """
    others = players - 1
    schedule = []
    for r in range(others):
        pairs = [(r, others)] + [((r + k) % others, (r - k) % others) for k in range(1, players // 2)]
        schedule.append([(min(pair), max(pair)) for pair in pairs])
    return [*schedule, [(i, i) for i in range(players)]]
