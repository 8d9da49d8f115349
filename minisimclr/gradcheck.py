"""Is a gradient right? Three checks, each of which sees what the others miss.

* gradcheck: every element against a central difference,
      ∂f/∂xᵢ ≈ (f(x + h·eᵢ) − f(x − h·eᵢ)) / 2h,
  whose error is of order h² + ε/h: about ten digits at best, fewer where f is curved.
* check_direction: one random direction v instead of every element, ⟨∇f, v⟩ against the same quotient:
  for arrays too large to go through element by element.
* check_path: the fundamental theorem of calculus along a segment,
      f(b) − f(a) = ∫₀¹ ⟨∇f(a + t(b−a)), b−a⟩ dt,
  by Gauss–Legendre quadrature. No difference quotient, so nothing cancels: for a smooth f it is exact to
  1e-9 and better, sees a factor of 1.00001, and covers a whole segment instead of a point.

Each returns True or raises GradcheckError. All compute in float64, and measure errors against the size
of the gradient itself, so that a small gradient is held to the same standard as a large one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .autograd import Tensor, no_grad

Function = Callable[..., Tensor]


class GradcheckError(AssertionError):
    """A gradient that does not agree; the message names the input, the index and both values."""


def gradcheck(f: Function, *arrays: Any, step: float = 1e-6, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Compare every element of the gradient of f with a central difference.

    f          takes Tensors, returns a Tensor of any shape: the check is on Σ f·r with r random and fixed
    arrays     where to check, one for each argument of f; computed in float64
    step       h, relative to the size of each input's elements
    tolerance  of the difference, relative to the largest element of that input's gradient

    Raises GradcheckError.
    """
    points, scalar = _prepared(f, arrays, seed)
    for k, (array, analytic) in enumerate(zip(points, _gradients(scalar, points))):
        h = step * max(1e-3, float(np.abs(array).max(initial=0)))
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            numeric[index] = (_moved(scalar, points, k, index, +h) - _moved(scalar, points, k, index, -h)) / (2 * h)
        # a gradient that is 0 everywhere is compared with what rounding in f makes of a difference
        noise = np.finfo(float).eps * abs(_value(scalar, points)) / h
        scale = max(float(np.abs(numeric).max(initial=0)), float(np.abs(analytic).max(initial=0)), 1e-300)
        error = np.abs(numeric - analytic)
        if not (error <= tolerance * scale + 10 * noise).all():
            worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), array.shape)
            raise GradcheckError(
                f"input {k}, index {tuple(int(i) for i in worst)}: analytic {analytic[worst]:.10g}, "
                f"numeric {numeric[worst]:.10g}, relative error {error[worst] / scale:.2g} (allowed {tolerance:g})")
    return True


def check_direction(f: Function, *arrays: Any, step: float = 1e-6, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Compare the slope of f along a random direction, all inputs moving together, with a central difference."""
    points, scalar = _prepared(f, arrays, seed)
    rng = np.random.default_rng([seed, 1])
    direction = [rng.standard_normal(a.shape) * max(1e-3, float(np.abs(a).max(initial=0))) for a in points]
    products = [float(np.vdot(g, v)) for g, v in zip(_gradients(scalar, points), direction)]
    analytic = sum(products)
    ahead = _value(scalar, [a + step * v for a, v in zip(points, direction)])
    behind = _value(scalar, [a - step * v for a, v in zip(points, direction)])
    numeric = (ahead - behind) / (2 * step)
    noise = np.finfo(float).eps * max(abs(ahead), abs(behind)) / step
    scale = max(abs(numeric), abs(analytic), 1e-300)
    if not abs(numeric - analytic) <= tolerance * scale + 10 * noise:
        raise GradcheckError(f"along a random direction: analytic {analytic:.10g}, numeric {numeric:.10g}, "
                             f"relative error {abs(numeric - analytic) / scale:.2g} (allowed {tolerance:g})")
    return True


def check_path(f: Function, start: Any, end: Any, *, nodes: int = 20, tolerance: float = 1e-9, seed: int = 0) -> bool:
    """Compare f(end) − f(start) with the integral of the slope in between; f must be smooth on the segment.

    start, end  one array, or a tuple with one for each argument of f
    nodes       of the Gauss–Legendre rule; 20 are exact for polynomials up to degree 39
    tolerance   relative to the integral of |slope|
    """
    starts, scalar = _prepared(f, start if isinstance(start, tuple) else (start,), seed)
    ends = [np.array(a, float) for a in (end if isinstance(end, tuple) else (end,))]
    places, weights = np.polynomial.legendre.leggauss(nodes)  # on [−1, 1]
    integral = size = 0.0
    for place, weight in zip((places + 1) / 2, weights / 2):
        here = [a + place * (b - a) for a, b in zip(starts, ends)]
        slope = sum(float(np.vdot(g, b - a)) for g, a, b in zip(_gradients(scalar, here), starts, ends))
        integral += weight * slope
        size += weight * abs(slope)
    change = _value(scalar, ends) - _value(scalar, starts)
    noise = np.finfo(float).eps * (abs(_value(scalar, ends)) + abs(_value(scalar, starts)))
    if not abs(change - integral) <= tolerance * max(size, abs(change)) + 10 * noise:
        error = abs(change - integral) / max(size, abs(change))
        raise GradcheckError(f"along the path: f changes by {change:.12g}, the gradient integrates to {integral:.12g}, "
                             f"relative error {error:.2g} (allowed {tolerance:g})")
    return True


def _prepared(f: Function, arrays: Any, seed: int) -> tuple[list[Any], Function]:
    """The inputs in float64, and f made a scalar: its elements weighted by fixed random numbers."""
    arrays = [np.array(a, dtype=float) for a in arrays]
    with no_grad():
        shape = f(*map(Tensor, arrays)).shape
    weights = np.random.default_rng(seed).uniform(0.5, 1.5, shape)
    return arrays, lambda *tensors: (f(*tensors) * weights).sum()


def _value(scalar: Function, arrays: list[Any]) -> float:
    with no_grad():
        return scalar(*map(Tensor, arrays)).item()


def _moved(scalar: Function, arrays: list[Any], k: int, index: tuple[int, ...], h: float) -> float:
    """The value with one element moved by h."""
    moved = arrays[k].copy()
    moved[index] += h
    return _value(scalar, [*arrays[:k], moved, *arrays[k + 1:]])


def _gradients(scalar: Function, arrays: list[Any]) -> list[Any]:
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    scalar(*leaves).backward()
    return [np.zeros(leaf.shape) if leaf.grad is None else leaf.grad for leaf in leaves]
