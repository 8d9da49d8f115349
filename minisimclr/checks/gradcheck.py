"""Three checks of a gradient, each of which finds errors that the others miss.

* gradcheck compares every element with a central difference of fourth order,
      ∂f/∂xᵢ ≈ [8(f(x + h·eᵢ) − f(x − h·eᵢ)) − (f(x + 2h·eᵢ) − f(x − 2h·eᵢ))] / 12h,
  whose error is of order h⁴ + ε/h: about eleven digits at best, fewer where f is curved.
* check_direction takes one random direction v for each input, instead of every element. It compares ⟨∇f, v⟩ with
  the same quotient, and serves for arrays that are too large to be checked element by element.
* check_path uses the fundamental theorem of calculus along a segment,
      f(b) − f(a) = ∫₀¹ ⟨∇f(a + t(b−a)), b−a⟩ dt,
  with Gauss–Legendre quadrature. There is no difference quotient, so nothing cancels. For a smooth f the check is
  exact to 1e-9, detects a gradient that is too large by a factor of 1.00001, and covers a whole segment.

Each returns True or raises GradcheckError. All compute in float64, and measure errors against the size
of the gradient itself, so that a small gradient is held to the same standard as a large one. Given CuPy
arrays, f is computed on the GPU. Random numbers are drawn, and results compared, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import device_of, is_array, to_device, to_numpy
from ..engine.autograd import Tensor, no_grad
from ..values import not_negative, plain_array, whole

Function = Callable[..., Tensor]
EPS = float(np.finfo(float).eps)  # the relative rounding error of float64, 2e-16
STEP = 1e-4  # the step h, relative to the size of the input; near the best balance of h⁴ against ε/h


class GradcheckError(AssertionError):
    """The error for a gradient that does not agree; its message names the input, the index and both values."""


@dataclass(frozen=True)
class Comparison:
    """The gradient beside the change of f itself, at the place where the two differ most."""

    where: str  # the input and the index, for the message
    analytic: float  # the value from the gradient
    numeric: float  # the value from f alone
    scale: float  # the size of the gradient
    noise: float  # the largest change of the numeric value that rounding in f explains

    @property
    def error(self) -> float:
        """The difference beyond what rounding explains, divided by the gradient's size; NaN if either value is NaN."""
        # np.maximum, because max() would lose a NaN; 1e-300, because 0/0 should be 0 where both values are 0
        return float(np.maximum(abs(self.numeric - self.analytic) - self.noise, 0) / max(self.scale, 1e-300))

    @property
    def reported_error(self) -> float:
        """The difference divided by the gradient's size, or by the smallest gradient that can be measured."""
        # The larger of the two: a gradient of 1e-12 beside an f of 1 is beyond what rounding lets us see.
        return float(abs(self.numeric - self.analytic) / max(self.scale, 1e6 * self.noise, 1e-300))

    def require(self, tolerance: float) -> bool:
        """Return True if the error is within the tolerance; raise GradcheckError otherwise, also for NaN."""
        if not self.error <= not_negative("tolerance", tolerance):  # and not `>`, which a NaN would pass
            raise GradcheckError(
                f"{self.where}: analytic {self.analytic:.10g}, numeric {self.numeric:.10g}, "
                f"relative error {self.error:.2g} (allowed {tolerance:g})"
            )
        return True


def gradcheck(
    f: Function, *arrays: Any, step: float = STEP, tolerance: float = 1e-6, elements: int | None = None, seed: int = 0
) -> bool:
    """Compare every element of the gradient of f with a central difference.

    f          takes Tensors and returns a Tensor of any shape; we check Σ f·r with r random and fixed
    arrays     the point at which to check, one array for each argument of f; computed in float64
    step       h, relative to the largest element of each input; it grows where a gradient is so small
               beside f that rounding would drown the difference
    tolerance  the largest difference allowed, relative to the largest element of that input's gradient
    elements   the number of elements to check in each input, drawn at random (default: all)
    Raises: GradcheckError if gradient and difference disagree.

    >>> gradcheck(lambda x: x * x * x, np.array([1.0, 2.0]))
    True
    >>> gradcheck(lambda x: x.detach() * x, np.array([1.0, 2.0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    minisimclr.checks.gradcheck.GradcheckError: input 0, index (1,): analytic 1.5..., numeric 3.0... (allowed 1e-06)
    """
    return compare_elements(f, *arrays, step=step, elements=elements, seed=seed).require(tolerance)


def check_direction(f: Function, *arrays: Any, step: float = STEP, tolerance: float = 1e-6, seed: int = 0) -> bool:
    """Compare the slope of f along a random direction, one input at a time, with a central difference.

    The arguments are those of `gradcheck`. Raises: GradcheckError if slope and difference disagree.

    >>> check_direction(lambda x, y: x @ y, np.ones((40, 30)), np.ones((30, 20)))
    True
    """
    return compare_direction(f, *arrays, step=step, seed=seed).require(tolerance)


def check_path(f: Function, start: Any, end: Any, *, nodes: int = 20, tolerance: float = 1e-9, seed: int = 0) -> bool:
    """Compare f(end) − f(start) with the integral of the slope in between; f must be smooth on the segment.

    start, end  one array, or a tuple with one for each argument of f
    nodes       the number of nodes of the Gauss–Legendre rule; 20 are exact for polynomials up to degree 39
    tolerance   the largest difference allowed, relative to the integral of |slope|
    Raises: GradcheckError if the two sides disagree; ValueError if start and end have different shapes.

    If the two sides differ, the rule may have been too coarse for a steep f. We apply it to halves and quarters of
    the segment before we blame the gradient: the rule's error then vanishes, the error of a wrong gradient stays.

    >>> check_path(lambda x: x * x * x, np.array([1.0, 2.0]), np.array([3.0, -1.0]))
    True
    """
    for panels in (1, 2, 4):  # the segment whole, in halves, in quarters
        comparison = compare_path(f, start, end, nodes=nodes, panels=panels, seed=seed)
        if comparison.error <= not_negative("tolerance", tolerance):
            break
    return comparison.require(tolerance)


def compare_elements(
    f: Function, *arrays: Any, step: float = STEP, elements: int | None = None, seed: int = 0
) -> Comparison:
    """Find the element whose gradient is furthest from its difference quotient."""
    project = _Projection(f, arrays, seed)
    rng = np.random.default_rng([seed, 2])  # a stream of its own; [seed, 1] draws directions
    found = []
    for k, (array, gradient) in enumerate(zip(project.points, project.gradients(project.points))):
        places = list(np.ndindex(array.shape))
        if elements is not None and whole("elements", elements, 1) < len(places):  # 0 would pass any gradient
            places = [places[i] for i in rng.choice(len(places), elements, replace=False)]
        # One scale serves the whole gradient, so that an element of 0 does not lead to a division by 0.
        scale = float(np.abs(gradient[np.isfinite(gradient)]).max(initial=0))
        # One central difference for each element: four values of f, or more where the step must grow.
        slopes = [project.slope(k, _unit(array.shape, place), step, scale) for place in places]
        # A gradient of zeros has no size. The error is then relative to the slopes that were found instead.
        scale = max([scale, *(abs(slope) for slope, _ in slopes)])
        found += [
            Comparison(f"input {k}, index {place}", float(gradient[place]), slope, scale, noise)
            for place, (slope, noise) in zip(places, slopes)
        ]
    return _worst(found)


def compare_direction(f: Function, *arrays: Any, step: float = STEP, seed: int = 0) -> Comparison:
    """Find the input along whose direction gradient and difference quotient are furthest apart."""
    project = _Projection(f, arrays, seed)
    rng = np.random.default_rng([seed, 1])
    found = []
    for k, gradient in enumerate(project.gradients(project.points)):
        # A random direction, turned uphill, plus the gradient itself: the slope along it never vanishes by chance.
        direction = rng.standard_normal(gradient.shape)
        length = float(np.linalg.norm(gradient))  # 0 if f ignores this input: then any direction will do
        if length > 0:
            direction *= np.copysign(1 / np.linalg.norm(direction), (gradient * direction).sum())
            direction += gradient / length  # both of length 1
        direction /= np.abs(direction).max(initial=1e-300)  # so that the step h means the same as for one element
        analytic = float((gradient * direction).sum())  # ⟨∇f, v⟩
        slope, noise = project.slope(k, direction, step, abs(analytic))
        found.append(
            Comparison(f"input {k}, along a random direction", analytic, slope, max(abs(slope), abs(analytic)), noise)
        )
    return _worst(found)


def compare_path(f: Function, start: Any, end: Any, *, nodes: int = 20, panels: int = 1, seed: int = 0) -> Comparison:
    """Compute the change of f along a segment (the numeric value) and the integral of the gradient (the analytic)."""
    project = _Projection(f, start if isinstance(start, tuple) else (start,), seed)
    starts, ends = project.points, _on_host(end if isinstance(end, tuple) else (end,))
    if [a.shape for a in starts] != [b.shape for b in ends]:
        raise ValueError("check_path: start and end must have the same shapes")
    places, weights = np.polynomial.legendre.leggauss(nodes)  # on [−1, 1]; we need them on each panel of [0, 1]
    places = ((places + 1) / 2 + np.arange(panels)[:, None]).ravel() / panels  # (panels·nodes,)
    weights = np.tile(weights / 2, panels) / panels  # (panels·nodes,)
    integral = size = 0.0  # ∫ slope and ∫ |slope|
    for place, weight in zip(places, weights):
        here = [a + place * (b - a) for a, b in zip(starts, ends)]  # a point of the segment, one array an input
        slope = sum(float((g * (b - a)).sum()) for g, a, b in zip(project.gradients(here), starts, ends))
        integral += float(weight) * slope
        size += float(weight) * abs(slope)  # what the error is relative to: slopes of both signs may cancel
    before, after = project.values(starts), project.values(ends)
    change = project.sum(after - before)  # the left side of the theorem
    # Nothing is divided by a small step h here, so rounding is a few ε of the two values themselves.
    noise = 10 * EPS * project.sum(np.abs(after) + np.abs(before))
    return Comparison("along the path", integral, change, max(size, abs(change)), noise)


def _worst(found: list[Comparison]) -> Comparison:
    # Comparing with NaN is always False. So we look for NaN first: it is worse than any number.
    return max(found, key=lambda c: (np.isnan(c.error), c.error), default=Comparison("no elements", 0, 0, 0, 0))


def _unit(shape: tuple[int, ...], place: tuple[int, ...]) -> Any:
    """Return the direction in which one element alone moves."""
    direction = np.zeros(shape)
    direction[place] = 1
    return direction


def _on_host(arrays: Any) -> list[Any]:
    return [np.array(to_numpy(plain_array(a)) if is_array(a) else plain_array(a), dtype=float) for a in arrays]


class _Projection:
    """A scalar made of f: Σ f·r, with r random and fixed. It is computed in float64, on the device of `arrays`."""

    def __init__(self, f: Function, arrays: Any, seed: int) -> None:
        self.f, self.points, self.device = f, _on_host(arrays), device_of(*arrays)
        # r is not 1 everywhere, because Σ f alone would be blind to errors that cancel in the sum.
        self.weights = np.random.default_rng(seed).uniform(0.5, 1.5, self.values(self.points).shape)  # r, shape of f

    def values(self, arrays: list[Any]) -> Any:
        with no_grad():  # values alone: nothing needs recording
            return to_numpy(self.f(*(Tensor(to_device(np.asarray(a), self.device)) for a in arrays)).data)

    def sum(self, values: Any) -> float:
        return float((values * self.weights).sum())  # Σ values·r

    def gradients(self, arrays: list[Any]) -> list[Any]:
        """Let autograd find the gradient of Σ f·r, one NumPy array for each input."""
        # A leaf that f does not use gets no gradient at all; that is a gradient of zero.
        leaves = [Tensor(to_device(np.asarray(a), self.device), requires_grad=True) for a in arrays]
        self.f(*leaves).backward(to_device(np.asarray(self.weights), self.device))
        return [np.zeros(leaf.shape) if leaf.grad is None else to_numpy(leaf.grad) for leaf in leaves]

    def slope(self, k: int, direction: Any, step: float, expected: float) -> tuple[float, float]:
        """Return the slope when input k moves along `direction`, and the part of it that rounding may explain.

        The step h grows by factors of five, within bounds, until rounding is a millionth of the slope that is
        expected. We difference each output separately, so that outputs which do not depend on this input add no
        rounding noise.
        """

        def moved(h: float) -> Any:
            return self.values([*self.points[:k], self.points[k] + h * direction, *self.points[k + 1 :]])

        size = float(np.abs(self.points[k]).max(initial=0))  # 0 for an input of zeros: the step is then absolute
        h, longest = step * (size or 1e-3), 25 * step * max(size, 1e-3)
        while True:
            ahead, behind = moved(h), moved(-h)  # each in the shape of f
            near, far = ahead - behind, moved(2 * h) - moved(-2 * h)
            # Rounding may move each output by a few ε; outputs that did not change at all have no such error.
            noise = 10 * EPS * self.sum((np.abs(ahead) + np.abs(behind)) * ((near != 0) | (far != 0))) / h
            if h >= longest or (near.any() and noise <= 1e-6 * expected):
                return self.sum(8 * near - far) / (12 * h), noise  # the terms in h² cancel; h⁴ remains
            h *= 5
