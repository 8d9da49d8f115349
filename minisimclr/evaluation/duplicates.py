"""Near duplicates: pairs of images whose representations point almost the same way."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_numpy
from ..processor import parallel
from ..values import by_default, number, shown, whole
from .embed import Matrix
from .knn import unit_rows

BLOCK = 512  # rows that are compared at once with as many others: 1 MiB of similarities, which a core's cache holds
ROUNDING = 1e-6  # by which float32 may miss the cosine of two equal rows, so that above=1 finds those


class Duplicates(NamedTuple):
    """Pairs of rows that are alike, the most similar first."""

    pairs: NDArray[np.int64]  # (P,2), the smaller index first
    similarities: Matrix  # (P,)
    found: int  # number of pairs above the bar, of which P are kept


@by_default
def duplicates(h: Array, above: float = 0.99, most: int = 10_000) -> Duplicates:
    """Find the pairs of rows whose cosine similarity is at least `above`.

    The N²/2 similarities are computed a block at a time and none is kept below the bar, nor more than about twice
    `most`; `found` still counts them all. The rows may be on a GPU.

    >>> h = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.01], [0.0, 3.0]])
    >>> found = duplicates(h, above=0.999)
    >>> found.pairs.tolist(), found.found
    ([[1, 3], [0, 2]], 2)

    Shapes: h (N,D) -> pairs (P,2), similarities (P,), with P ≤ most
    Raises: ValueError for anything but a matrix of finite numbers, for `above` outside −1…1, or `most` below 1.
    """
    xp = array_module(h)
    most, above = whole("most", most, 1), float(number("above", above))
    if not -1 <= above <= 1:
        raise ValueError(f"above is a cosine, in −1…1, not {above}")
    if h.ndim != 2 or h.dtype.kind not in "fiu" or not bool(xp.isfinite(h).all()):
        raise ValueError(f"h must be a matrix (N,D) of finite numbers, not {shown(h)}")
    u = unit_rows(xp, h)  # (N,D): a product of rows is their cosine
    bar = above - ROUNDING
    kept = _Best(most)

    def compare(block: tuple[slice, slice]) -> None:
        rows, columns = block
        similarity = to_numpy(u[rows] @ u[columns].T)  # (512,512)
        i, j = np.nonzero(similarity >= bar)
        similar = np.minimum(similarity[i, j], 1)  # (pairs of this block,)
        i, j = i + rows.start, j + columns.start
        once = i < j  # neither a row with itself, nor the same pair twice
        kept.add(np.stack([i[once], j[once]], axis=1), similar[once])

    starts = range(0, len(u), BLOCK)
    parallel(compare, ((slice(a, a + BLOCK), slice(b, b + BLOCK)) for a in starts for b in starts if a <= b))
    return kept.result()


class _Best:
    """The most similar pairs of those that were added, whatever the order in which threads add them."""

    def __init__(self, most: int) -> None:
        self.most, self.found, self.waiting = most, 0, 0
        self.parts: list[tuple[NDArray[np.int64], Matrix]] = [(np.empty((0, 2), np.int64), np.empty(0, np.float32))]
        self.lock = threading.Lock()

    def add(self, pairs: NDArray[np.int64], similarities: Matrix) -> None:
        with self.lock:
            self.parts.append((pairs, similarities))
            self.found += len(pairs)
            self.waiting += len(pairs)
            if self.waiting > self.most:  # so that memory stays within that of twice `most` pairs and a block
                self._drop()

    def _drop(self) -> None:
        """Keep the `most` pairs of largest similarity; among equals, those of the smallest indices."""
        pairs = np.concatenate([part[0] for part in self.parts])
        similarities = np.concatenate([part[1] for part in self.parts])
        order = np.lexsort((pairs[:, 1], pairs[:, 0], -similarities))[: self.most]
        self.parts, self.waiting = [(pairs[order], similarities[order])], 0

    def result(self) -> Duplicates:
        self._drop()
        return Duplicates(*self.parts[0], self.found)
