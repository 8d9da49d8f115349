"""Solutions of chapter 11: differences between paired runs, and the best of many tries."""

from __future__ import annotations

import numpy as np


def paired(a: list[float], b: list[float]) -> tuple[float, float]:
    """Return the mean of a − b, seed by seed, and its standard error.

    What a seed does to both (the order of the images, the drawings of a data set) cancels in each difference. So the
    differences spread less than the accuracies, if the two go up and down together.

    >>> mean, error = paired([70.0, 74.0, 72.0], [69.0, 72.5, 70.5])
    >>> round(mean, 2), round(error, 2)
    (1.33, 0.17)
    """
    difference = np.subtract(a, b)
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def best_of(tries: int, mean: float = 70.0, spread: float = 2.0, runs: int = 100_000) -> float:
    """Return what the best of some seeds shows on average: luck, not skill.

    For ten tries it is 1.54 spreads above the truth, three points here: as much as many a paper's improvement.

    >>> round(best_of(10), 1)
    73.1
    """
    drawn = np.random.default_rng(0).normal(mean, spread, (runs, tries))
    return float(drawn.max(axis=1).mean())
