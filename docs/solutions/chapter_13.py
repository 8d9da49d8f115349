"""Solutions of chapter 13: what a depthwise convolution gains, Amdahl's rule, and where symmetry begins to pay."""

from __future__ import annotations

import math


def gains_of_depthwise(C: int, ridge: float, K: int = 3) -> tuple[float, float]:
    """Return how many times fewer multiply–adds, and how many times less time by (13.5), both for one step.

    A full convolution takes K²C² multiply–adds a pixel, and its output is copied eight times, four bytes a number.
    The depthwise one takes K²C and the 1×1 one C², and both outputs are copied. `ridge` is π/β: a byte that is copied
    takes as long as that many multiply–adds.

    >>> products, time = gains_of_depthwise(C=64, ridge=5.5)
    >>> round(products, 1), round(time, 1)
    (7.9, 3.3)
    """
    full, parts = 3 * K * K * C * C, 3 * (K * K * C + C * C)
    copies = 8 * 4 * C * ridge  # of one output, in multiply–adds
    return full / parts, (full + copies) / (parts + 2 * copies)


def amdahl(one: float, two: float, threads: float) -> float:
    """Return the time on some threads, from those on one and on two, if handing out is free.

    From T₁ = Ts + Tw and T₂ = Ts + Tw/2 follow Tw = 2(T₁ − T₂) and Ts = 2T₂ − T₁. With any number of threads the
    time stays above Ts.

    >>> amdahl(one=1.3, two=0.8, threads=8), amdahl(one=1.3, two=0.8, threads=math.inf)
    (0.425, 0.3)
    """
    shared = 2 * (one - two)
    return round(one - shared + shared / threads, 12)


def symmetry_pays_from(call: float, products: float, exponentials: float, d: int = 128) -> int:
    """Return the number of images N from which a hundred calls with symmetry beat thirty without it.

    Without symmetry the floor is 2n²d multiply–adds and n² exponentials, with it 3n²d/2 and n²/2 by (13.8). What is
    saved, n²/2 · (d/π + 1/ε), must be worth 70 calls. `products` and `exponentials` are the rates of one thread.

    >>> symmetry_pays_from(call=1.5e-6, products=125e9, exponentials=3e9)
    197
    """
    n = math.sqrt(2 * 70 * call / (d / products + 1 / exponentials))
    return math.ceil(n / 2)
