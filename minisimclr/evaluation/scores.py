"""Scores of predictions: accuracy, its uncertainty, and which classes are confused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of test rows by their class and the class that they were given.

    >>> found = confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
    >>> found.counts.tolist(), found.accuracy, found.per_class
    ([[1, 1], [0, 2]], 0.75, 0.75)
    """

    counts: Labels  # (K,K): counts[i, j] rows of class i were given class j

    @property
    def accuracy(self) -> float:
        """The fraction of the rows that were given their class."""
        return float(np.trace(self.counts) / self.counts.sum())

    @property
    def per_class(self) -> float:
        """The mean over the classes of the fraction of their rows that was right: every class counts alike."""
        rows = self.counts.sum(axis=1)
        return float((np.diag(self.counts)[rows > 0] / rows[rows > 0]).mean())

    @property
    def majority(self) -> float:
        """The accuracy of whoever always names the largest class of the test rows."""
        return float(self.counts.sum(axis=1).max() / self.counts.sum())

    def confused(self, most: int = 3) -> list[tuple[int, int, float]]:
        """Return the pairs (class, class given) that are confused most often, each with its share of the class."""
        rows = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        share = np.where(np.eye(len(rows), dtype=bool), 0.0, self.counts / rows)  # (K,K)
        first = np.argsort(-share, axis=None, kind="stable")[:most]
        return [(int(k) // len(rows), int(k) % len(rows), float(share.flat[k])) for k in first if share.flat[k] > 0]


def confusion(labels: Labels, predicted: Labels, classes: int) -> Confusion:
    """Count the rows by their label and the class that they were given.

    Shapes: labels (N,), predicted (N,), both below K = classes
    Raises: ValueError if there are no rows.
    """
    if not len(labels):
        raise ValueError("an accuracy needs at least one image")
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return Confusion(counts)


def uncertainty(accuracy: float, count: int) -> float:
    """Return the uncertainty of an accuracy on `count` test images, by the choice of these images alone.

    It is half the width of Wilson's interval at one standard error (10.4). At 0 and at 1 it is not 0.

    >>> round(uncertainty(0.6, 10_000), 4), round(uncertainty(1.0, 100), 4)
    (0.0049, 0.005)
    """
    return math.sqrt(accuracy * (1 - accuracy) / count + 1 / (4 * count**2)) / (1 + 1 / count)
