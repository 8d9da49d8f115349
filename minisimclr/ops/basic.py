"""Arithmetic, functions with a kink, and reductions; each is one primitive.

A primitive computes a value, and returns with it a vjp: the function that turns the gradient g of the value into
the gradients of the inputs. Broadcasting needs no care here: the engine sums a gradient over the axes that were
stretched. A gradient written as `lambda: …` is computed only if it is needed: in `2 * x` the number 2 needs none.
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, is_array
from ..engine.autograd import Vjp, primitive

Axis = int | tuple[int, ...] | None  # None: all axes


@primitive
def add(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Add element by element: x + y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g,  dy = g
    >>> add(2.0, 3.0).item()
    5.0
    """
    return x + y, lambda g: (g, g)  # the same array twice: nobody writes into a gradient


@primitive
def subtract(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Subtract element by element: x − y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g,  dy = −g
    >>> subtract(2.0, 3.0).item()
    -1.0
    """
    return x - y, lambda g: (g, lambda: -g)  # −g is a new array, made only if somebody asks for it


@primitive
def multiply(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Multiply element by element: x · y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g·y,  dy = g·x
    >>> multiply(2.0, 3.0).item()
    6.0
    """
    return x * y, lambda g: (lambda: g * y, lambda: g * x)  # what multiplied x now multiplies its gradient


@primitive
def divide(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Divide element by element: x / y.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    dx = g/y,  dy = −g·x/y²
    >>> divide(3.0, 2.0).item()
    1.5
    """
    # We do not write x/y²: y² may overflow or vanish where (x/y)/y does not.
    return x / y, lambda g: (lambda: g / y, lambda: -g * (x / y) / y)


@primitive
def negative(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Change the sign: −x.

    Shapes: x (…) -> (…)
    VJP:    dx = −g
    >>> negative(2.0).item()
    -2.0
    """
    return -x, lambda g: -g  # the slope is −1 everywhere, so neither x nor the value is kept


@primitive
def power(xp: Any, x: Array, *, exponent: float) -> tuple[Array, Vjp]:
    """Raise to the power of a constant number p: xᵖ.

    Shapes: x (…) -> (…)
    VJP:    dx = g·p·xᵖ⁻¹   (0 for p = 0, also at x = 0)
    >>> power(3.0, exponent=2).item()
    9.0
    """
    # A tensor as exponent would need a gradient of its own, xᵖ·log x, which is NaN for every negative x. So the engine
    # lets only a number pass.

    def vjp(g: Array) -> Array:
        # x⁰ is 1 everywhere, so its slope is 0; but 0·x⁻¹ would be NaN at x = 0.
        return g * (exponent * x ** (exponent - 1)) if exponent else xp.zeros_like(g)

    return x**exponent, vjp  # a Python number as exponent leaves x its dtype; an array of float64 would not


@primitive
def exp(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Exponential function: eˣ.

    Shapes: x (…) -> y (…)
    VJP:    dx = g·y
    >>> exp(0.0).item()
    1.0
    """
    y = xp.exp(x)
    return y, lambda g: g * y  # eˣ is its own derivative, so the value is kept and x may go


@primitive
def log(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Natural logarithm.

    Shapes: x (…) -> (…)
    VJP:    dx = g/x
    >>> log(1.0).item()
    0.0
    """
    return xp.log(x), lambda g: g / x  # x is kept here; the value alone would first have to go through exp


@primitive
def matmul(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """Matrix product. Vectors count as one row (left) or one column (right), as in NumPy.

    Shapes: x (…,N,K), y (…,K,M) -> (…,N,M)
    VJP:    dx = g yᵀ,  dy = xᵀ g
    >>> from minisimclr import Tensor
    >>> matmul(Tensor([1.0, 2.0]), Tensor([3.0, 4.0])).item()
    11.0
    """
    # NumPy refuses numbers as well, but its message does not say what to write instead.
    if not (is_array(x) and is_array(y) and x.ndim and y.ndim):
        raise ValueError("matmul takes vectors and matrices, not numbers; use * for those")

    def vjp(g: Array) -> tuple[Any, Any]:
        # We give a vector the axis that NumPy's @ imagines for it. Then the rule for matrices serves all cases.
        rows = x[None, :] if x.ndim == 1 else x  # (…,N,K)
        columns = y[:, None] if y.ndim == 1 else y  # (…,K,M)
        g = xp.expand_dims(g, -1) if y.ndim == 1 else g  # a column again
        g = xp.expand_dims(g, -2) if x.ndim == 1 else g  # (…,N,M)

        def dx() -> Array:
            product = g @ xp.swapaxes(columns, -1, -2)  # (…,N,M) (…,M,K) -> (…,N,K)
            return product[..., 0, :] if x.ndim == 1 else product  # without the imagined row

        def dy() -> Array:
            product = xp.swapaxes(rows, -1, -2) @ g  # (…,K,N) (…,N,M) -> (…,K,M)
            return product[..., 0] if y.ndim == 1 else product  # without the imagined column

        return dx, dy  # functions: at a first layer x is data, and half of the work is never done

    return x @ y, vjp  # (…,N,M)


# ── Functions with a kink: it has a slope on either side; each docstring says which one is taken ──


@primitive
def relu(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Rectified linear unit: max(x, 0).

    Shapes: x (…) -> y (…)
    VJP:    dx = g where y > 0, else 0   (so relu′(0) = 0)
    >>> from minisimclr import Tensor
    >>> relu(Tensor([-1.0, 2.0])).data.tolist()
    [0.0, 2.0]
    """
    y = xp.maximum(x, xp.zeros((), x.dtype))  # a zero of x's dtype promotes nothing; NaN stays NaN
    return y, lambda g: g * (y > 0)  # y is kept, not x: the next layer keeps it anyway


@primitive
def maximum(xp: Any, x: Array, y: Array) -> tuple[Array, Vjp]:
    """The larger of two numbers, element by element.

    Shapes: x (…), y (…) -> (…), broadcast
    VJP:    g goes to the larger; at a tie half of it goes to each
    >>> maximum(2.0, 3.0).item()
    3.0
    """

    def vjp(g: Array) -> tuple[Any, Any]:
        tie = g * (x == y) * 0.5  # halves, so that the order of x and y does not matter
        return (lambda: g * (x > y) + tie), (lambda: g * (y > x) + tie)

    return xp.maximum(x, y), vjp  # NaN wherever one of the two is NaN


# ── Reductions ────────────────────────────────────────────────────────────────────────────────────


@primitive
def sum(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Sum over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    dx = g, repeated along the axes
    >>> from minisimclr import Tensor
    >>> sum(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=0).data.tolist()
    [4.0, 6.0]
    """
    kept, shape = _kept_shape(x, axis), x.shape  # the vjp keeps the shapes, not x
    return x.sum(axis=axis, keepdims=keepdims), lambda g: xp.broadcast_to(g.reshape(kept), shape)  # no copy


@primitive
def mean(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Mean over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    dx = g/n, repeated along the axes, n the number of elements in each mean
    >>> from minisimclr import Tensor
    >>> mean(Tensor([[1.0, 2.0], [3.0, 4.0]])).item()
    2.5
    """
    kept, shape = _kept_shape(x, axis), x.shape  # as in `sum`: a mean is that sum divided by n
    count = x.size // (math.prod(kept) or 1)  # elements in each mean; an empty array has none
    return x.mean(axis=axis, keepdims=keepdims), lambda g: xp.broadcast_to((g / count).reshape(kept), shape)


@primitive
def max(xp: Any, x: Array, *, axis: Axis = None, keepdims: bool = False) -> tuple[Array, Vjp]:
    """Largest element over some axes (all by default).

    Shapes: x (…) -> (…) without the axes, or with 1 in their place
    VJP:    g goes to the largest; where several tie, they share equally
    >>> from minisimclr import Tensor
    >>> max(Tensor([[1.0, 2.0], [3.0, 4.0]]), axis=1).data.tolist()
    [2.0, 4.0]
    """
    kept = _kept_shape(x, axis)  # with it the value broadcasts against x, whatever keepdims says
    value = x.max(axis=axis, keepdims=keepdims)  # NaN wherever there is one among the elements

    def vjp(g: Array) -> Array:
        # A NaN is the maximum wherever there is one. But it differs from itself, so == does not find it.
        largest = (x == value.reshape(kept)) | xp.isnan(x)  # (…), one True or more for each maximum
        return largest * (g.reshape(kept) / largest.sum(axis=axis, keepdims=True).astype(x.dtype))

    return value, vjp  # both x and the value are kept: only together they say where the largest is


def _kept_shape(x: Array, axis: Axis) -> tuple[int, ...]:
    """The shape of a reduction over `axis` with 1 in place of the axes, so that it broadcasts against x."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = {a % (x.ndim or 1) for a in axes}  # −1 is the last axis; a number has none, hence the 1
    return tuple(1 if a in reduced else size for a, size in enumerate(x.shape))
