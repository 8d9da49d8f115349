"""Solutions of the exercises of chapter 0, SimCLR in an hour."""

from __future__ import annotations

import math


def chance_level(n: int) -> float:
    """Exercise 1: the loss of a network that guesses.

    If all embeddings are equal, an anchor gives the same probability to each of the 2N − 1 other views.

    >>> round(chance_level(256), 2)
    6.24
    """
    return math.log(2 * n - 1)


def perfect_but_orthogonal(n: int, temperature: float) -> float:
    """Exercise 1: the loss if the two views of an image agree and different images are orthogonal.

    The positive has cosine 1, each of the 2N − 2 negatives cosine 0. Dividing the fraction by the positive's term
    leaves log(1 + (2N − 2)·e^(−1/τ)).

    >>> round(perfect_but_orthogonal(2, temperature=0.5), 4)
    0.2395
    >>> round(perfect_but_orthogonal(256, temperature=0.1), 4)
    0.0229
    """
    return math.log1p((2 * n - 2) * math.exp(-1 / temperature))


def with_the_anchor_at_zero(n: int, temperature: float) -> float:
    """Exercise 2: the same batch, when the anchor's similarity to itself is set to 0 instead of left out.

    The term e⁰ = 1 stays in the sum, as if there were one more orthogonal negative.

    >>> round(with_the_anchor_at_zero(2, temperature=0.5), 4)
    0.3408
    """
    return math.log1p((2 * n - 1) * math.exp(-1 / temperature))
