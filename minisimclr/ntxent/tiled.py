"""NT-Xent in O(N·D) memory: the fast version on a CPU, equal to `loss.py` up to rounding.

The (2N, 2N) matrix of cosines is never whole. It is visited in tiles that fit a core's cache, and as it
is symmetric, each pair of blocks (I, J) is computed once and serves the rows of I and those of J:

    1. sums:      E = exp(u_I·u_Jᵀ/τ);  its row sums go to the anchors in I, its column sums to those in J
    2. gradient:  M = P + Pᵀ = E ∘ (w_I ⊕ w_J), one product;  du_I += M u_J  and  du_J += Mᵀ u_I

Between the two stand a few vectors of length 2N. Step 2 needs E again: it is kept where it fits into
KEEP_BYTES, else computed anew, which costs a third more time and no memory.

Below some τ (0.012 in float32) E would overflow. Then a step 0 finds each anchor's largest cosine, and
the exponent is taken relative to it; E is no longer symmetric, and a tile takes two exponentials.

The tiles are worked on in rounds, like a tournament: within a round no block plays twice, so no two
threads write to the same rows. The sums therefore come in the same order on any number of threads, and
the result is the same bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from ..backend import Array, blas_at_one_thread, blocks, parallel
from .loss import unit_rows

TILE = 256  # rows of a block: the tile and its weights, 2 · 256 KiB in float32, stay in a core's L2 cache
ALONE = 128  # up to this N one thread is faster: to wake another takes as long as a small tile
STRIP = 1024  # rows of a strip, where each row is on its own
KEEP_BYTES = 160 * 2**20  # room for E up to N = 4096 in float32 (130 MiB)


def value_and_grad(
    za: Array, zb: Array, temperature: float, keep_bytes: int = KEEP_BYTES
) -> tuple[Array, Array, Array]:
    """The loss and its gradient, as `loss.value_and_grad` computes them.

    Shapes: za, zb (N, D) of one dtype, float32 or float64 -> loss (), dza (N, D), dzb (N, D).
    Memory: u (2N, D), and per thread two tiles; E of up to `keep_bytes`.
    """
    with blas_at_one_thread():
        return _Problem(za, zb, temperature, keep_bytes).solve()


class _Problem:
    """One call: the arrays that the tiles share."""

    def __init__(self, za: Array, zb: Array, temperature: float, keep_bytes: int) -> None:
        images, width = za.shape
        self.images, self.temperature, self.dtype = images, temperature, za.dtype
        self.blocks = _blocks(images)
        self.half = len(self.blocks) // 2  # the partners of block I are the rows of block I ± half
        self.rounds = _rounds(len(self.blocks))
        self.views = (za, zb)
        self.strips = [(view, rows) for view in (0, 1) for rows in blocks(images, STRIP)]
        self.u = np.empty((2 * images, width), za.dtype)
        self.norm = np.empty((2 * images, 1), za.dtype)
        self.scale = np.empty((2 * images, 1), za.dtype)
        self.du = np.zeros((2 * images, width), za.dtype)  # becomes dz in place
        # exp(1/τ) summed over 2N rows must stay below the largest number: then no shift is needed.
        self.shifted = 1 / temperature + math.log(2 * images) > math.log(np.finfo(za.dtype).max) - 2
        side = max(rows.stop - rows.start for rows in self.blocks)
        pairs = [pair for pairs in self.rounds for pair in pairs]
        self.kept: dict[tuple[int, int], Array] = {}  # E of each pair of blocks, flat, if there is room
        if not self.shifted and len(pairs) * side * side * za.itemsize <= keep_bytes:
            # One large array comes in large pages, six times as fast as many small ones.
            self.kept = dict(zip(pairs, np.empty((len(pairs), side * side), za.dtype)))

    def solve(self) -> tuple[Array, Array, Array]:
        n, u, temperature = 2 * self.images, self.u, self.temperature
        parallel(self.normalize, self.strips)
        a, b = u[: self.images], u[self.images :]
        # Vectors of length 2N are cheap: they are kept in float64.
        cosine = np.einsum("nd,nd->n", a, b, dtype=np.float64)
        positive = np.concatenate([cosine, cosine])  # of each anchor with its positive

        # The exponent of a tile is (cosine − top)/τ.
        self.top = positive.astype(self.dtype) if self.shifted else np.zeros(n, self.dtype)
        if self.shifted:
            self.each_pair(self.largest)
        self.negatives = np.zeros(n)
        self.each_pair(self.sums)

        with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = −∞ is right for N = 1; NaN stays NaN
            odds = np.log(self.negatives) + (self.top - positive) / temperature  # log Σ exp(margin)
            loss = np.logaddexp(0, odds)  #                                           (5.5)
        q = np.exp(odds - loss)  # 1 − the probability of the positive                (5.8)
        # P = exp((cosine − level)/τ): the factor that turns E into probabilities, as an offset of the cosine
        level = positive + temperature * loss
        self.level = level.astype(self.dtype)
        self.weight = np.exp((self.top - level) / temperature).astype(self.dtype)
        self.each_pair(self.gradient)

        self.pull = np.concatenate([q[: self.images] + q[self.images :]] * 2)[:, None].astype(self.dtype)
        self.side = np.where(positive < 0, -1, 1)[:, None].astype(self.dtype)
        parallel(self.finish, self.strips)
        return loss.mean().astype(self.dtype), self.du[: self.images], self.du[self.images :]

    def each_pair(self, task: Callable[[tuple[int, int]], None]) -> None:
        for pairs in self.rounds:
            if self.images > ALONE:
                parallel(task, pairs)
            else:
                for pair in pairs:
                    task(pair)

    # ── A strip of rows of one view ───────────────────────────────────────────────────────────────

    def normalize(self, strip: tuple[int, slice]) -> None:
        view, rows = strip
        here, _ = self.places(strip)
        self.u[here], self.norm[here], self.scale[here] = unit_rows(self.views[view][rows])  # (5.2)

    def finish(self, strip: tuple[int, slice]) -> None:
        """du, so far without the positives, becomes dz, in place."""
        rows, partners = self.places(strip)
        u, du = self.u[rows], self.du[rows]
        part = u * self.side[rows]
        np.subtract(self.u[partners], part, out=part)
        part *= self.pull[rows]
        du -= part  #                                                                 (5.10)
        # As loss.through_norm, step by step.
        np.multiply(u, np.vecdot(u, du)[:, None], out=part)
        du -= part
        du /= self.norm[rows] * self.dtype.type(2 * self.images * self.temperature)
        scale = self.scale[rows]
        du /= np.where(scale == 0, np.inf, scale)  #                                  (5.11)

    def places(self, strip: tuple[int, slice]) -> tuple[slice, slice]:
        """Where a strip's rows, and their partners, stand among the 2N."""
        view, rows = strip
        other = slice(rows.start + self.images, rows.stop + self.images)
        return (other, rows) if view else (rows, other)

    # ── One pair of blocks ────────────────────────────────────────────────────────────────────────

    def cosines(self, pair: tuple[int, int], out: Array, factor: float = 1) -> Array:
        """One tile of cosines, times a factor; −∞ for an anchor with itself or with its positive."""
        i, j = pair
        rows = self.u[self.blocks[i]]
        if factor != 1:
            rows = rows * self.dtype.type(factor)
        np.matmul(rows, self.u[self.blocks[j]].T, out=out)
        if j in (i, i + self.half):  # on the diagonal of this tile each row meets itself, or its partner
            np.fill_diagonal(out, -np.inf)
        return out

    def exponentials(self, pair: tuple[int, int], out: Array) -> Array:
        cosine = self.cosines(pair, out, 1 / self.temperature)
        return np.exp(cosine, out=cosine)

    def relative(self, cosine: Array, level: Array, out: Array) -> Array:
        """exp((cosine − level)/τ)."""
        np.subtract(cosine, level, out=out)
        out *= self.dtype.type(1 / self.temperature)
        return np.exp(out, out=out)

    def largest(self, pair: tuple[int, int]) -> None:
        """Step 0, for a small τ: the largest cosine of each anchor."""
        I, J = self.rows(pair)
        cosine = self.cosines(pair, self.tile(pair)[0])
        np.maximum(self.top[I], cosine.max(axis=1), out=self.top[I])
        np.maximum(self.top[J], cosine.max(axis=0), out=self.top[J])

    def sums(self, pair: tuple[int, int]) -> None:
        """Step 1: Σ exp((cosine − top)/τ) over the negatives of each anchor."""
        I, J = self.rows(pair)
        one, two, _ = self.tile(pair)
        if self.shifted:
            cosine = self.cosines(pair, one)
            by_column = self.relative(cosine, self.top[J], out=two)
            if I != J:
                self.negatives[J] += _column_sums(by_column)
            e = self.relative(cosine, self.top[I][:, None], out=one)
            self.negatives[I] += _row_sums(e)
        else:
            e = self.exponentials(pair, self.kept_tile(pair) if self.kept else one)
            self.negatives[I] += _row_sums(e)
            if I != J:
                self.negatives[J] += _column_sums(e)

    def gradient(self, pair: tuple[int, int]) -> None:
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
            np.multiply(e, other, out=m)  #                                           (5.12)
        _add(self.du[I], np.matmul(m, self.u[J], out=product[: len(m)]))
        if I != J:
            _add(self.du[J], np.matmul(m.T, self.u[I], out=product[: len(m.T)]))

    def rows(self, pair: tuple[int, int]) -> tuple[slice, slice]:
        return self.blocks[pair[0]], self.blocks[pair[1]]

    def shape(self, pair: tuple[int, int]) -> tuple[int, int]:
        I, J = self.rows(pair)
        return I.stop - I.start, J.stop - J.start

    def kept_tile(self, pair: tuple[int, int]) -> Array:
        rows, columns = self.shape(pair)
        return self.kept[pair][: rows * columns].reshape(rows, columns)

    def tile(self, pair: tuple[int, int]) -> tuple[Array, Array, Array]:
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
    count = -(-images // TILE)
    edges = [images * k // count for k in range(count + 1)]
    one = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return one + [slice(images + rows.start, images + rows.stop) for rows in one]


@functools.cache
def _rounds(players: int) -> list[list[tuple[int, int]]]:
    """All pairs (i ≤ j) of an even number of players, in rounds in which nobody plays twice.

    First each with itself; then the schedule of a chess tournament: the last one stays, the others rotate.
    """
    others = players - 1
    rounds = [[(i, i) for i in range(players)]]
    for r in range(others):
        pairs = [(r, others)] + [((r + k) % others, (r - k) % others) for k in range(1, players // 2)]
        rounds.append([(min(pair), max(pair)) for pair in pairs])
    return rounds
