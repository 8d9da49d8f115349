"""Nearest neighbours: how good is a representation?"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, to_numpy
from ..processor import blocks, parallel
from .embed import Matrix


def nearest(train_h: Array, test_h: Array, k: int) -> tuple[Matrix, Matrix]:
    """The k training rows of largest cosine similarity to each test row, nearest first.

    Shapes: train_h (M,D), test_h (N,D) -> indices (N,k), similarities (N,k), both on the host
    """
    xp = array_module(train_h, test_h)
    train_u, test_u = _unit_rows(train_h), _unit_rows(test_h)
    indices = xp.empty((len(test_u), k), xp.int64)
    similarities = xp.empty((len(test_u), k), xp.float32)

    def run(rows: slice) -> None:
        similarity = test_u[rows] @ train_u.T  # (100,M)
        best = xp.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = xp.argsort(-xp.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        indices[rows] = xp.take_along_axis(best, order, axis=1)
        similarities[rows] = xp.take_along_axis(similarity, indices[rows], axis=1)

    parallel(run, blocks(len(test_u), 100))
    return to_numpy(indices), to_numpy(similarities)


def knn_accuracy(
    train_h: Array, train_y: Matrix, test_h: Array, test_y: Matrix, k: int = 20, temperature: float = 0.1
) -> float:
    """Share of test rows whose class wins the vote of their k nearest training rows.

    Neighbours are found by cosine similarity s and vote with weight exp(s/temperature), as in Wu et al. 2018.
    The rows may be on a GPU, where they are then compared; labels are on the host.
    """
    check_features(train_h, train_y, test_h, test_y)
    if not 1 <= k <= len(train_h):
        raise ValueError(f"k must lie in 1…{len(train_h)}, the number of training rows, not {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    indices, similarities = nearest(train_h, test_h, k)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    votes = np.zeros((len(test_h), int(train_y.max()) + 1))
    np.add.at(votes, (np.arange(len(test_h))[:, None], train_y[indices]), weights)
    return float((votes.argmax(axis=1) == test_y).mean())


def _unit_rows(h: Array) -> Array:
    xp = array_module(h)
    h = xp.asarray(h, dtype=xp.float32)
    return h / xp.maximum(xp.linalg.norm(h, axis=1, keepdims=True), float(xp.finfo(xp.float32).tiny))


def check_features(train_h: Array, train_y: Matrix, test_h: Array, test_y: Matrix) -> None:
    if train_h.ndim != 2 or test_h.ndim != 2 or train_h.shape[1] != test_h.shape[1]:
        raise ValueError(f"features must be (N,D) with one D, not {train_h.shape} and {test_h.shape}")
    if len(train_h) != len(train_y) or len(test_h) != len(test_y):
        raise ValueError(
            f"one label per row expected: {len(train_h)} rows and {len(train_y)} labels for training, "
            f"{len(test_h)} and {len(test_y)} for testing"
        )
