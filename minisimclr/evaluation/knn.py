"""Nearest neighbours: in a good representation, images of one class lie close together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_numpy
from ..processor import blocks, parallel
from ..values import by_default, features_and_labels, number, whole
from .embed import Matrix


@by_default
def nearest(train_h: Array, test_h: Array, k: int) -> tuple[Matrix, Matrix]:
    """Find the k training rows of largest cosine similarity to each test row, nearest first.

    Shapes: train_h (M,D), test_h (N,D) -> indices (N,k), similarities (N,k), both on the host
    """
    xp = array_module(train_h, test_h)
    train_u, test_u = unit_rows(xp, train_h), unit_rows(xp, test_h)  # (M,D), (N,D): a product is now a cosine
    # Every block of test rows writes its own rows of these two arrays, so threads can search blocks side by side.
    indices = xp.empty((len(test_u), k), xp.int64)
    similarities = xp.empty((len(test_u), k), xp.float32)

    def search(rows: slice) -> None:
        similarity = test_u[rows] @ train_u.T  # (100,M)
        # A partition finds the k largest without sorting all M; then only these k are sorted.
        best = xp.argpartition(-similarity, k - 1, axis=1)[:, :k]  # (100,k)
        order = xp.argsort(-xp.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        indices[rows] = xp.take_along_axis(best, order, axis=1)  # (100,k)
        similarities[rows] = xp.take_along_axis(similarity, indices[rows], axis=1)

    parallel(search, blocks(len(test_u), 100))  # 100 rows at a time: all N×M similarities may not fit in memory
    return to_numpy(indices), to_numpy(similarities)  # (N,k) each


@by_default
def knn_accuracy(
    train_h: Array,
    train_y: NDArray[np.int64],
    test_h: Array,
    test_y: NDArray[np.int64],
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Compute the fraction of test rows whose class wins the vote of their k nearest training rows.

    Neighbours are found by cosine similarity s, and each votes with weight exp(s/temperature).
    The rows may be on a GPU, where they are then compared; labels are on the host.

    >>> train_h = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> knn_accuracy(train_h, np.array([0, 0, 1]), np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([0, 1]), k=2)
    1.0

    Shapes: train_h (M,D), train_y (M,), test_h (N,D), test_y (N,) -> a number in [0,1]
    Raises: ValueError for shapes that do not fit, k outside 1…M, or a temperature that is not positive.
    Source: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", §3.4.
    """
    train_h, train_y, test_h, test_y = features_and_labels(train_h, train_y, test_h, test_y)
    k, temperature = whole("k", k), float(number("temperature", temperature))
    if not 1 <= k <= len(train_h):
        raise ValueError(f"k must lie in 1…{len(train_h)}, the number of training rows, not {k}")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be positive, not {temperature}")
    return float((votes_won(train_h, train_y, test_h, k, temperature) == test_y).mean())


def votes_won(train_h: Array, train_y: NDArray[np.int64], test_h: Array, k: int, temperature: float) -> Matrix:
    """Return the class that wins the vote of each test row's neighbours: int64 (N,)."""
    indices, similarities = nearest(train_h, test_h, k)  # (N,k) each
    # Subtracting the largest similarity of a row scales all its votes alike, and exp cannot overflow.
    weights = np.exp((similarities - similarities[:, :1]) / temperature)  # (N,k)
    votes = np.zeros((len(test_h), int(train_y.max()) + 1))  # (N,classes)
    np.add.at(votes, (np.arange(len(test_h))[:, None], train_y[indices]), weights)  # a class may win several votes
    return np.asarray(votes.argmax(axis=1))  # at a tie the class with the smaller number wins


def unit_rows(xp: Any, h: Array) -> Array:
    """Scale each row to length 1: (N,D) -> float32 (N,D); a row of zeros stays zero."""
    h = xp.asarray(h, dtype=xp.float32)  # (N,D); half precision would tie similarities that differ
    largest = xp.abs(h).max(axis=1, keepdims=True)  # (N,1); the squares of the numbers of a short row would vanish
    h = h / xp.where(largest > 0, largest, 1)  # the largest entry is ±1, so that the norm is at least 1
    return h / xp.maximum(xp.linalg.norm(h, axis=1, keepdims=True), 1)  # or 0, for a row of zeros
