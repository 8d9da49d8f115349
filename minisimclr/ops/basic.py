"""Arithmetic, reductions and shapes: one primitive each, and at the end the operators of Tensor.

Broadcasting needs no care here: the engine sums a gradient over the axes that were stretched.
A gradient written as `lambda: …` is computed only if somebody wants it (x in `2 * x`, not the 2).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..autograd import Tensor, Vjp, primitive
from ..backend import Array, is_array

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
    return x ** exponent, vjp


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


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────

@primitive
def reshape(xp: Any, x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Vjp]:
    """The same elements in the same order under another shape; one entry may be −1.

    Shapes: x (…) -> shape
    VJP:    dx = g under the old shape
    """
    before = x.shape
    return x.reshape(shape), lambda g: g.reshape(before)


@primitive
def transpose(xp: Any, x: Array, *, axes: tuple[int, ...] | None = None) -> tuple[Array, Vjp]:
    """Permute the axes (reverse them by default).

    Shapes: x (…) -> the sizes in the order of `axes`
    VJP:    dx = g, permuted back
    """
    axes = tuple(range(x.ndim))[::-1] if axes is None else axes
    value = x.transpose(axes)
    back = tuple(sorted(range(x.ndim), key=[a % x.ndim for a in axes].__getitem__))
    return value, lambda g: g.transpose(back)


@primitive
def getitem(xp: Any, x: Array, *, index: Any) -> tuple[Array, Vjp]:
    """x[index]: slices, integers, None, …, boolean masks and integer arrays.

    Shapes: x (…) -> as NumPy's indexing gives
    VJP:    dx = 0 with g added at index   (added, because an integer array may name a place twice)
    """
    parts = index if isinstance(index, tuple) else (index,)
    repeats = any(is_array(part) or isinstance(part, list) for part in parts)
    shape = x.shape

    def vjp(g: Array) -> Array:
        dx = xp.zeros(shape, g.dtype)
        if repeats:
            xp.add.at(dx, index, g)
        else:
            dx[index] = g
        return dx

    return x[index], vjp


@primitive
def concatenate(xp: Any, *arrays: Array, axis: int = 0) -> tuple[Array, Vjp]:
    """Join arrays along an axis.

    Shapes: (N₁,…), (N₂,…), … -> (N₁+N₂+…, …)
    VJP:    each array receives its own part of g
    """
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] + array.shape[axis])

    def vjp(g: Array) -> tuple[Array, ...]:
        g = xp.moveaxis(g, axis, 0)
        return tuple(xp.moveaxis(g[start:end], 0, axis) for start, end in itertools.pairwise(ends))

    return xp.concatenate(arrays, axis=axis), vjp


# ── The operators of Tensor ───────────────────────────────────────────────────────────────────────

def _operator(op: Any, swapped: bool = False) -> Any:
    """A two-sided operator; with an operand that is no number or array Python raises its own TypeError."""
    def method(self: Tensor, other: Any) -> Any:
        if not (isinstance(other, (Tensor, int, float)) or is_array(other) or hasattr(other, "dtype")):
            return NotImplemented
        return op(other, self) if swapped else op(self, other)
    return method


def _power(self: Tensor, exponent: float) -> Any:
    return power(self, exponent=exponent) if isinstance(exponent, (int, float)) else NotImplemented


def _flat(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Both x.reshape(2, 3) and x.reshape((2, 3))."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else arguments


_METHODS = {
    "__add__": _operator(add), "__radd__": _operator(add, swapped=True),
    "__sub__": _operator(subtract), "__rsub__": _operator(subtract, swapped=True),
    "__mul__": _operator(multiply), "__rmul__": _operator(multiply, swapped=True),
    "__truediv__": _operator(divide), "__rtruediv__": _operator(divide, swapped=True),
    "__matmul__": _operator(matmul), "__rmatmul__": _operator(matmul, swapped=True),
    "__pow__": _power,
    "__neg__": lambda self: negative(self),
    "__getitem__": lambda self, index: getitem(self, index=index),
    "sum": lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims),
    "mean": lambda self, axis=None, keepdims=False: mean(self, axis=axis, keepdims=keepdims),
    "reshape": lambda self, *shape: reshape(self, shape=_flat(shape)),
    "transpose": lambda self, *axes: transpose(self, axes=_flat(axes) or None),
    "T": property(lambda self: transpose(self)),
}
for _name, _method in _METHODS.items():
    setattr(Tensor, _name, _method)
