"""Solutions of chapter 12: a gradient that one check accepts, and a quotient of sixth order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minisimclr as ms


@ms.primitive
def sines_with_a_blind_spot(xp: Any, v: Any) -> Any:
    """The sum of the sines of v (2,), with a gradient that is wrong at right angles to the diagonal.

    Along the diagonal the two errors, +1 and −1, cancel in ⟨∇f, b − a⟩: the integral is right.
    """
    return xp.sin(v).sum(), lambda g: g * (xp.cos(v) + xp.asarray([1.0, -1.0]))


def sixth_order(f: Callable[[float], float], x: float, h: float) -> float:
    """The slope of f from differences over h, 2h and 3h, with weights that cancel h² and h⁴.

    A symmetric difference over kh is 2kh·f′ + 2(kh)³/6·f‴ + 2(kh)⁵/120·f⁽⁵⁾ + …. The weights w₁, w₂, w₃ must solve
    Σ k·wₖ = 1/2, Σ k³·wₖ = 0, Σ k⁵·wₖ = 0.
    """
    k = np.array([1, 2, 3])
    weights = np.linalg.solve(np.stack([k, k**3, k**5]).astype(float), [0.5, 0, 0])  # 45/60, −9/60, 1/60
    return float(sum(w * (f(x + j * h) - f(x - j * h)) for w, j in zip(weights, k)) / h)
