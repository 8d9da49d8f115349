"""Arithmetic, kinks and reductions: one primitive each.

Broadcasting needs no care here: the engine sums a gradient over the axes that were stretched.
A gradient written as `lambda: …` is computed only if somebody wants it (x in `2 * x`, not the 2).
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, is_array
from ..engine.autograd import Vjp, primitive

Axis = int | tuple[int, ...] | None


# ── Arithmetic ────────────────────────────────────────────────────────────────────────────────────


@primitive
def add(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """x + y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g,  dy = g
    """
    return x + y, lambda g: (g, g)


@primitive
def subtract(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """x − y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g,  dy = −g
    """
    return x - y, lambda g: (g, lambda: -g)


@primitive
def multiply(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """x · y, element by element.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g·y,  dy = g·x
    """
    return x * y, lambda g: (lambda: g * y, lambda: g * x)


@primitive
def divide(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """x / y, element by element.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g/y,  dy = −g·x/y²
    """
    return x / y, lambda g: (lambda: g / y, lambda: -g * (x / y) / y)


@primitive
def negative(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """−x.

    Shapes: x (…) -> (…)
    VJP:    dx = −g
    """
    return -x, lambda g: -g


@primitive
def power(xp: Any, x: Array, *, exponent: float) -> tuple[Array, Vjp]:
    """xᵖ for a constant number p.

    Shapes: x (…) -> (…)
    VJP:    dx = g·p·xᵖ⁻¹   (0 for p = 0, also at x = 0)
    """
    if not isinstance(exponent, (int, float)):
        raise TypeError(f"power takes a constant number as exponent, not {type(exponent).__name__}")

    def vjp(g: Array) -> Array:
        return g * (exponent * x ** (exponent - 1)) if exponent else xp.zeros_like(g)

    return x**exponent, vjp


@primitive
def exp(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """eˣ.

    Shapes: x (…) -> y (…)
    VJP:    dx = g·y
    """
    y = xp.exp(x)
    return y, lambda g: g * y


@primitive
def log(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Natural logarithm.

    Shapes: x (…) -> (…)
    VJP:    dx = g/x
    """
    return xp.log(x), lambda g: g / x


@primitive
def matmul(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Matrix product. Vectors count as one row (left) or one column (right), as in NumPy.

    Shapes: x (…,N,K), y (…,K,M) -> (…,N,M)
    VJP:    dx = g yᵀ,  dy = xᵀ g
    """
    if not (is_array(x) and is_array(y) and x.ndim and y.ndim):
        raise ValueError("matmul takes vectors and matrices, not numbers; use * for those")

    def vjp(g: Array) -> tuple[Any, Any]:
        rows = x[None, :] if x.ndim == 1 else x
        columns = y[:, None] if y.ndim == 1 else y
        g = xp.expand_dims(g, -1) if y.ndim == 1 else g
        g = xp.expand_dims(g, -2) if x.ndim == 1 else g

        def dy() -> Array:
            product = xp.swapaxes(rows, -1, -2) @ g
            return product[..., 0] if y.ndim == 1 else product

        def dx() -> Array:
            product = g @ xp.swapaxes(columns, -1, -2)
            return product[..., 0, :] if x.ndim == 1 else product

        return dx, dy

    return x @ y, vjp


# ── Kinks: at a corner we take the one-sided derivative named here ────────────────────────────────


@primitive
def relu(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """max(x, 0).

    Shapes: x (…) -> y (…)
    VJP:    dx = g where y > 0, else 0   (so relu′(0) = 0)
    """
    y = xp.maximum(x, xp.zeros((), x.dtype))  # NaN stays NaN
    return y, lambda g: g * (y > 0)


@primitive
def maximum(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """The larger of two, element by element.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    g goes to the larger; at a tie half to each
    """
    value = xp.maximum(x, y)

    def vjp(g: Array) -> tuple[Any, Any]:
        tie = g * (x == y) * 0.5
        return (lambda: g * (x > y) + tie), (lambda: g * (y > x) + tie)

    return value, vjp


# ── Reductions ────────────────────────────────────────────────────────────────────────────────────


@primitive
def sum(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Sum over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    dx = g, repeated along the axes
    """
    kept, shape = _kept_shape(x, axis), x.shape  # the vjp keeps the shapes, not x
    return x.sum(axis=axis, keepdims=keepdims), lambda g: xp.broadcast_to(g.reshape(kept), shape)


@primitive
def mean(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Mean over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    dx = g/n, repeated along the axes, n the number of elements in each mean
    """
    kept, shape = _kept_shape(x, axis), x.shape
    count = x.size // (math.prod(kept) or 1)
    return x.mean(axis=axis, keepdims=keepdims), lambda g: xp.broadcast_to((g / count).reshape(kept), shape)


@primitive
def max(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Largest element over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    g goes to the largest; where several tie, they share equally
    """
    kept = _kept_shape(x, axis)
    value = x.max(axis=axis, keepdims=keepdims)

    def vjp(g: Array) -> Array:
        largest = (x == value.reshape(kept)) | xp.isnan(x)  # a NaN is the maximum wherever there is one
        return largest * (g.reshape(kept) / largest.sum(axis=axis, keepdims=True).astype(x.dtype))

    return value, vjp


def _kept_shape(x: Array, axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with the reduced axes kept as 1."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % (x.ndim or 1) for a in axes}
    return tuple(1 if a in reduced else size for a, size in enumerate(x.shape))
