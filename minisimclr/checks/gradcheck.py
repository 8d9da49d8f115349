"""Is a gradient right? Three checks, each of which sees what the others miss.

* gradcheck: every element against a central difference of fourth order,
      ∂f/∂xᵢ ≈ [8(f(x + h·eᵢ) − f(x − h·eᵢ)) − (f(x + 2h·eᵢ) − f(x − 2h·eᵢ))] / 12h,
  whose error is of order h⁴ + ε/h: about eleven digits at best, fewer where f is curved.
* check_direction: one random direction v for each input instead of every element, ⟨∇f, v⟩ against the
  same quotient: for arrays too large to go through element by element.
* check_path: the fundamental theorem of calculus along a segment,
      f(b) − f(a) = ∫₀¹ ⟨∇f(a + t(b−a)), b−a⟩ dt,
  by Gauss–Legendre quadrature. No difference quotient, so nothing cancels: for a smooth f it is exact to
  1e-9 and better, sees a factor of 1.00001, and covers a whole segment instead of a point.

Each returns True or raises GradcheckError. All compute in float64, and measure errors against the size
of the gradient itself, so that a small gradient is held to the same standard as a large one. Given CuPy
arrays, f is computed on the GPU; what is drawn and compared is on the host, the same for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import device_of, is_array, to_device, to_numpy
from ..engine.autograd import Tensor, no_grad

Function = Callable[..., Tensor]
EPS = float(np.finfo(float).eps)
STEP = 1e-4  # relative to the size of the input


class GradcheckError(AssertionError):
    """A gradient that does not agree; the message names the input, the index and both values."""


@dataclass(frozen=True)
class Comparison:
    """What a gradient says and what f does, at the place where they differ most."""

    where: str
    analytic: float
    numeric: float
    scale: float  # the size of the gradient
    noise: float  # how far rounding in f may have moved the numeric value

    @property
    def error(self) -> float:
        """Relative to the size of the gradient, beyond what rounding explains; NaN if either value is."""
        return float(np.maximum(abs(self.numeric - self.analytic) - self.noise, 0) / max(self.scale, 1e-300))

    @property
    def distance(self) -> float:
        """Relative to the gradient, or to what rounding allows to see of it: for reports."""
        return float(abs(self.numeric - self.analytic) / max(self.scale, 1e6 * self.noise, 1e-300))

    def judge(self, tolerance: float) -> bool:
        if not self.error <= tolerance:  # NaN is not
            raise GradcheckError(
                f"{self.where}: analytic {self.analytic:.10g}, numeric {self.numeric:.10g}, "
                f"relative error {self.error:.2g} (allowed {tolerance:g})"
            )
        return True


def gradcheck(
    f: Function, *arrays: Any, step: float = STEP, tolerance: float = 1e-6, elements: int | None = None, seed: int = 0
) -> bool:
    """Compare every element of the gradient of f with a central difference.

    f          takes Tensors, returns a Tensor of any shape: the check is on Σ f·r with r random and fixed
    arrays     where to check, one for each argument of f; computed in float64
    step       h, relative to the largest element of each input; taken longer where a gradient is so small
               beside f that rounding would drown the difference
    tolerance  of the difference, relative to the largest element of that input's gradient
    elements   check only this many elements of each input, drawn at random (default: all)

    Raises GradcheckError.
    """
    return compare_elements(f, *arrays, step=step, elements=elements, seed=seed).judge(tolerance)


def check_direction(f: Function, *arrays: Any, step: float = STEP, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Compare the slope of f along a random direction, one input at a time, with a central difference."""
    return compare_direction(f, *arrays, step=step, seed=seed).judge(tolerance)


def check_path(f: Function, start: Any, end: Any, *, nodes: int = 20, tolerance: float = 1e-9, seed: int = 0) -> bool:
    """Compare f(end) − f(start) with the integral of the slope in between; f must be smooth on the segment.

    start, end  one array, or a tuple with one for each argument of f
    nodes       of the Gauss–Legendre rule; 20 are exact for polynomials up to degree 39
    tolerance   relative to the integral of |slope|

    If the two differ, the rule may have been too coarse for a steep f: it is applied to halves and quarters of the
    segment before the gradient is blamed. The rule's own error then vanishes; a wrong gradient's stays.
    """
    for panels in (1, 2, 4):
        comparison = compare_path(f, start, end, nodes=nodes, panels=panels, seed=seed)
        if comparison.error <= tolerance:
            break
    return comparison.judge(tolerance)


# ── The comparisons ───────────────────────────────────────────────────────────────────────────────


def compare_elements(
    f: Function, *arrays: Any, step: float = STEP, elements: int | None = None, seed: int = 0
) -> Comparison:
    """The element whose gradient is furthest from its difference quotient."""
    project = _Projection(f, arrays, seed)
    rng = np.random.default_rng([seed, 2])
    found = []
    for k, (array, gradient) in enumerate(zip(project.points, project.gradients(project.points))):
        places = list(np.ndindex(array.shape))
        if elements is not None and elements < len(places):
            places = [places[i] for i in rng.choice(len(places), elements, replace=False)]
        scale = float(np.abs(gradient[np.isfinite(gradient)]).max(initial=0))
        slopes = [project.slope(k, _unit(array.shape, place), step, scale) for place in places]
        scale = max([scale, *(abs(slope) for slope, _ in slopes)])
        found += [
            Comparison(f"input {k}, index {place}", float(gradient[place]), slope, scale, noise)
            for place, (slope, noise) in zip(places, slopes)
        ]
    return _worst(found)


def compare_direction(f: Function, *arrays: Any, step: float = STEP, seed: int = 0) -> Comparison:
    """The input along whose direction gradient and difference quotient are furthest apart."""
    project = _Projection(f, arrays, seed)
    rng = np.random.default_rng([seed, 1])
    found = []
    for k, gradient in enumerate(project.gradients(project.points)):
        # random, but uphill, plus the gradient itself: so the slope along it never vanishes by chance
        direction = rng.standard_normal(gradient.shape)
        length = float(np.linalg.norm(gradient))
        if length > 0:
            direction *= np.copysign(1 / np.linalg.norm(direction), (gradient * direction).sum())
            direction += gradient / length
        direction /= np.abs(direction).max(initial=1e-300)
        analytic = float((gradient * direction).sum())
        slope, noise = project.slope(k, direction, step, abs(analytic))
        found.append(
            Comparison(f"input {k}, along a random direction", analytic, slope, max(abs(slope), abs(analytic)), noise)
        )
    return _worst(found)


def compare_path(f: Function, start: Any, end: Any, *, nodes: int = 20, panels: int = 1, seed: int = 0) -> Comparison:
    """The change of f along a segment (the numeric value) and the integral of the gradient (the analytic)."""
    project = _Projection(f, start if isinstance(start, tuple) else (start,), seed)
    starts, ends = project.points, _on_host(end if isinstance(end, tuple) else (end,))
    if [a.shape for a in starts] != [b.shape for b in ends]:
        raise ValueError("check_path: start and end must have the same shapes")
    places, weights = np.polynomial.legendre.leggauss(nodes)  # on [−1, 1]; now on each panel of [0, 1]
    places = ((places + 1) / 2 + np.arange(panels)[:, None]).ravel() / panels
    weights = np.tile(weights / 2, panels) / panels
    integral = size = 0.0
    for place, weight in zip(places, weights):
        here = [a + place * (b - a) for a, b in zip(starts, ends)]
        slope = sum(float((g * (b - a)).sum()) for g, a, b in zip(project.gradients(here), starts, ends))
        integral += float(weight) * slope
        size += float(weight) * abs(slope)
    before, after = project.values(starts), project.values(ends)
    change = project.sum(after - before)
    noise = 10 * EPS * project.sum(np.abs(after) + np.abs(before))
    return Comparison("along the path", integral, change, max(size, abs(change)), noise)


def _worst(found: list[Comparison]) -> Comparison:
    return max(found, key=lambda c: (np.isnan(c.error), c.error), default=Comparison("no elements", 0, 0, 0, 0))


def _unit(shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    """The direction in which one element alone moves."""
    direction = np.zeros(shape)
    direction[place] = 1
    return direction


def _on_host(arrays: Any) -> list[Any]:
    return [np.array(to_numpy(a) if is_array(a) else a, dtype=float) for a in arrays]


class _Projection:
    """f made a scalar, Σ f·r with r random and fixed; its inputs in float64, on the device that they came from."""

    def __init__(self, f: Function, arrays: Any, seed: int) -> None:
        self.f, self.points, self.device = f, _on_host(arrays), device_of(*arrays)
        self.weights = np.random.default_rng(seed).uniform(0.5, 1.5, self.values(self.points).shape)

    def values(self, arrays: list[Any]) -> Any:
        with no_grad():
            return to_numpy(self.f(*(Tensor(to_device(np.asarray(a), self.device)) for a in arrays)).data)

    def sum(self, values: Any) -> float:
        return float((values * self.weights).sum())

    def gradients(self, arrays: list[Any]) -> list[Any]:
        leaves = [Tensor(to_device(np.asarray(a), self.device), requires_grad=True) for a in arrays]
        self.f(*leaves).backward(to_device(np.asarray(self.weights), self.device))
        return [np.zeros(leaf.shape) if leaf.grad is None else to_numpy(leaf.grad) for leaf in leaves]

    def slope(self, k: int, direction: Any, step: float, expected: float) -> tuple[float, float]:
        """The slope when input k moves along `direction`, and how far rounding may have moved it.

        The step grows, within bounds, until rounding is a millionth of the slope that is expected. Differences
        are taken output by output: what does not change has no rounding.
        """

        def moved(h: float) -> Any:
            return self.values([*self.points[:k], self.points[k] + h * direction, *self.points[k + 1 :]])

        size = float(np.abs(self.points[k]).max(initial=0))
        h, longest = step * (size or 1e-3), 25 * step * max(size, 1e-3)
        while True:
            ahead, behind = moved(h), moved(-h)
            near, far = ahead - behind, moved(2 * h) - moved(-2 * h)
            noise = 10 * EPS * self.sum((np.abs(ahead) + np.abs(behind)) * ((near != 0) | (far != 0))) / h
            if h >= longest or (near.any() and noise <= 1e-6 * expected):
                return self.sum(8 * near - far) / (12 * h), noise
            h *= 5
