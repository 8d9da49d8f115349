"""Measures that need no labels: alignment, uniformity, effective rank and spread.

    alignment    the mean squared distance of the two views of an image, on the unit sphere: 0 if views agree
    uniformity   the logarithm of the mean of e^(−2·distance²) over pairs of images: 0 in collapse, with many images
                 −4 at best
    rank         the number of directions that the features use: 1 to D
    spread       the mean deviation of a feature on the unit sphere, times √D: 0 in collapse, about 1 if spread evenly

The loss alone cannot tell a network that has collapsed from one that learns slowly. These can.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..values import finite_rows
from .knn import unit_rows

Features = NDArray[np.floating]


def alignment(a: Features, b: Features) -> float:
    """Compute the mean squared distance between the two views of an image, (10.5).

    >>> alignment(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]))
    2.0

    Shapes: a, b (N,D): row i of both are views of image i
    Source: Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity".
    """
    if a.shape != b.shape:
        raise ValueError(f"the two views must have one shape, not {a.shape} and {b.shape}")
    u, v = (unit_rows(np, finite_rows(name, h)) for name, h in (("a", a), ("b", b)))  # (N,D)
    return float(np.square(u - v).sum(axis=1).mean())


def uniformity(h: Features) -> float:
    """Compute log mean e^(−2·distance²) over pairs of different rows, (10.6).

    >>> round(uniformity(np.eye(2)), 6)  # the squared distance is 2
    -4.0

    Shapes: h (N,D) with N ≥ 2; all N² similarities are kept
    Source: Wang & Isola 2020.
    """
    u = unit_rows(np, finite_rows("h", h)).astype(float)  # (N,D)
    if len(u) < 2:
        raise ValueError("uniformity needs two rows at least")
    similarity = np.minimum(u @ u.T, 1)  # (N,N); |u − v|² = 2 − 2⟨u,v⟩
    pairs = np.exp(-4 * (1 - similarity))
    np.fill_diagonal(pairs, 0)
    return float(np.log(pairs.sum() / (len(u) * (len(u) - 1))))


def effective_rank(h: Features) -> float:
    """Compute e to the entropy of the normalized singular values, (10.7): how many directions the features use.

    >>> round(effective_rank(np.eye(4)), 6), round(effective_rank(np.ones((4, 3))), 6)
    (4.0, 1.0)

    Shapes: h (N,D) -> a number from 1 to min(N,D)
    Source: Roy & Vetterli 2007, "The effective rank"; Garrido et al. 2023, "RankMe".
    """
    values = np.linalg.svd(finite_rows("h", h).astype(float), compute_uv=False)
    if not values.sum():
        return 1.0  # all zero: no direction is less than one
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def spread(h: Features) -> float:
    """Compute the mean standard deviation of the coordinates of unit rows, times √D, (10.8).

    >>> spread(np.ones((5, 3)))
    0.0

    Shapes: h (N,D)
    Source: Chen & He 2021, "Exploring simple siamese representation learning", §4.1.
    """
    u = unit_rows(np, finite_rows("h", h)).astype(float)  # (N,D)
    return float(u.std(axis=0).mean() * np.sqrt(u.shape[1]))
