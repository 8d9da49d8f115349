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

import itertools
import math
import threading
from collections.abc import Callable

import numpy as np

from ..backend import Array, blas_at_one_thread, parallel
from .loss import unit_rows

TILE = 256  # rows of a block: the tile and its weights, 2 · 256 KiB in float32, stay in a core's L2 cache
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
        self.z = (za, zb)
        self.u = np.empty((2 * images, width), za.dtype)
        self.norm = np.empty((2 * images, 1), za.dtype)
        self.scale = np.empty((2 * images, 1), za.dtype)
        self.du = np.zeros((2 * images, width), za.dtype)  # becomes dz in place
        # exp(1/τ) summed over 2N rows must stay below the largest number: then no shift is needed.
        self.shifted = 1 / temperature + math.log(2 * images) > math.log(np.finfo(za.dtype).max) - 2
        self.kept = {} if self.shifted else self.room_for_all_tiles(keep_bytes)

    def solve(self) -> tuple[Array, Array, Array]:
        n, u, temperature = 2 * self.images, self.u, self.temperature
        parallel(self.normalize, range(len(self.blocks)))
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
        parallel(self.finish, range(len(self.blocks)))
        return loss.mean().astype(self.dtype), self.du[: self.images], self.du[self.images :]

    def each_pair(self, task: Callable[[tuple[int, int]], None]) -> None:
        for pairs in self.rounds:
            parallel(task, pairs)

    def room_for_all_tiles(self, keep_bytes: int) -> dict[tuple[int, int], Array]:
        """An array for E of each pair of blocks, or none if they take more than `keep_bytes`."""
        pairs = [pair for pairs in self.rounds for pair in pairs]
        shapes = [[rows.stop - rows.start for rows in self.rows(pair)] for pair in pairs]
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        if ends[-1] * self.dtype.itemsize > keep_bytes:
            return {}
        whole = np.empty(ends[-1], self.dtype)  # at once: a large array comes in large pages, six times as fast
        return {pair: flat.reshape(shape) for pair, flat, shape in zip(pairs, np.split(whole, ends[:-1]), shapes)}

    # ── One block of rows ─────────────────────────────────────────────────────────────────────────

    def normalize(self, i: int) -> None:
        rows = self.blocks[i]
        view, first = (0, 0) if i < self.half else (1, self.images)
        z = self.z[view][rows.start - first : rows.stop - first]
        self.u[rows], self.norm[rows], self.scale[rows] = unit_rows(z)  #             (5.2)

    def finish(self, i: int) -> None:
        """du, so far without the positives, becomes dz, in place."""
        rows, partners = self.blocks[i], self.blocks[(i + self.half) % len(self.blocks)]
        u, du = self.u[rows], self.du[rows]
        part = self.tile((i, i))[2][: len(u)]
        np.multiply(u, self.side[rows], out=part)
        np.subtract(self.u[partners], part, out=part)
        part *= self.pull[rows]
        du -= part  #                                                                 (5.10)
        # As loss.through_norm, step by step.
        np.multiply(u, np.vecdot(u, du)[:, None], out=part)
        du -= part
        du /= self.norm[rows] * self.dtype.type(2 * self.images * self.temperature)
        scale = self.scale[rows]
        du /= np.where(scale == 0, np.inf, scale)  #                                  (5.11)

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
            e = self.exponentials(pair, self.kept.get(pair, one))
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
            e = self.kept[pair] if self.kept else self.exponentials(pair, m)
            np.add(self.weight[I][:, None], self.weight[J], out=other)
            np.multiply(e, other, out=m)  #                                           (5.12)
        _add(self.du[I], np.matmul(m, self.u[J], out=product[: len(m)]))
        if I != J:
            _add(self.du[J], np.matmul(m.T, self.u[I], out=product[: len(m.T)]))

    def rows(self, pair: tuple[int, int]) -> tuple[slice, slice]:
        return self.blocks[pair[0]], self.blocks[pair[1]]

    def tile(self, pair: tuple[int, int]) -> tuple[Array, Array, Array]:
        """This thread's scratch: two arrays of the tile's shape, and one for TILE rows of a product."""
        rows, columns = (self.blocks[k].stop - self.blocks[k].start for k in pair)
        width = self.u.shape[1]
        if getattr(_scratch, "key", None) != (width, self.dtype, TILE):
            _scratch.key = (width, self.dtype, TILE)
            _scratch.arrays = [np.empty(TILE * size, self.dtype) for size in (TILE, TILE, width)]
        one, two, product = _scratch.arrays
        shape = (rows, columns)
        size = rows * columns
        return one[:size].reshape(shape), two[:size].reshape(shape), product.reshape(TILE, width)


_scratch = threading.local()


def _add(total: Array, part: Array) -> None:
    total += part  # `array[rows] += part` would copy the rows onto themselves besides


def _row_sums(e: Array) -> Array:
    return e @ np.ones(e.shape[1], e.dtype)  # four times as fast as e.sum(axis=1)


def _column_sums(e: Array) -> Array:
    return np.ones(e.shape[0], e.dtype) @ e


def _blocks(images: int) -> list[slice]:
    """Blocks of at most TILE rows, of like size, of one view; then the same of the other view."""
    count = max(-(-images // TILE), min(2, images // 128))
    edges = [images * k // count for k in range(count + 1)]
    one = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return one + [slice(images + rows.start, images + rows.stop) for rows in one]


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
