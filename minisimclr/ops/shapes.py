"""Changes of shape and dtype: elements are moved, picked, joined or rounded."""

from __future__ import annotations

import itertools
from typing import Any

from ..backend import Array
from ..engine.autograd import Vjp, primitive
from ..values import float_dtype


@primitive
def cast(xp: Any, x: Array, *, dtype: Any) -> tuple[Array, Vjp]:
    """Round to another floating-point dtype.

    Shapes: x (…) -> (…)
    VJP:    dx = g, in the dtype of x   (the derivative of the line x, not of the staircase that rounding makes of it)
    >>> from minisimclr import Tensor
    >>> cast(Tensor([2.0001]), dtype="float16").data.tolist()
    [2.0]
    """
    # Rounding is a staircase, whose derivative is 0 almost everywhere. Its steps between floats are so small that we
    # take the derivative of the line instead, 1. The steps between integers are large, so integer dtypes are refused.
    dtype = float_dtype("cast", dtype)
    before = x.dtype  # the vjp keeps the dtype; if it kept x, x could not be freed before the backward pass
    return x.astype(dtype), lambda g: g.astype(before)


@primitive
def reshape(xp: Any, x: Array, *, shape: tuple[int, ...]) -> tuple[Array, Vjp]:
    """Give the same elements, in the same order, another shape; one entry may be −1, for as many as are left.

    Shapes: x (…) -> shape
    VJP:    dx = g in the old shape
    >>> from minisimclr import Tensor
    >>> reshape(Tensor([1.0, 2.0, 3.0, 4.0]), shape=(2, -1)).data.tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    before = x.shape  # the vjp keeps the shape, not x, which may then be freed before the backward pass
    return x.reshape(shape), lambda g: g.reshape(before)  # a view wherever NumPy can: no element moves


@primitive
def transpose(xp: Any, x: Array, *, axes: tuple[int, ...] | None = None) -> tuple[Array, Vjp]:
    """Permute the axes (reverse them by default).

    Shapes: x (…) -> the sizes in the order of `axes`
    VJP:    dx = g, permuted back

    >>> from minisimclr import Tensor, ops
    >>> ops.transpose(Tensor([[1.0, 2.0]])).data.tolist()
    [[1.0], [2.0]]
    """
    axes = tuple(range(x.ndim))[::-1] if axes is None else axes
    value = x.transpose(axes)  # a view: only the strides are permuted
    places = [a % x.ndim for a in axes]  # axis k of the value is axis places[k] of x
    back = tuple(places.index(k) for k in range(x.ndim))  # the inverse permutation
    return value, lambda g: g.transpose(back)


@primitive
def getitem(xp: Any, x: Array, *, index: Any) -> tuple[Array, Vjp]:
    """Index as NumPy does, x[index]: slices, integers, None, …, boolean masks and integer arrays.

    Shapes: x (…) -> as NumPy's indexing gives
    VJP:    dx = 0 with g added at index   (added, because an integer array may name a place twice)
    >>> from minisimclr import Tensor
    >>> getitem(Tensor([1.0, 2.0, 3.0]), index=slice(1, None)).data.tolist()
    [2.0, 3.0]
    """
    parts = index if isinstance(index, tuple) else (index,)  # x[i] and x[i, j] alike
    may_repeat = not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts)
    shape = x.shape  # the vjp keeps the shape, not x

    def vjp(g: Array) -> Array:
        dx = xp.zeros(shape, g.dtype)  # an element that was not picked has no influence on the loss
        if may_repeat:  # dx[index] += g would add only once where an index repeats
            xp.add.at(dx, index, g)
        else:
            dx[index] = g  # every place is named once: assigning is adding to 0, and faster
        return dx

    return x[index], vjp  # slices give a view, masks and integer arrays a copy


@primitive
def concatenate(xp: Any, *arrays: Array, axis: int = 0) -> tuple[Array, Vjp]:
    """Join arrays along an axis.

    Shapes: (N₁,…), (N₂,…), … -> (N₁+N₂+…, …)
    VJP:    each array receives its own part of g
    >>> from minisimclr import Tensor
    >>> concatenate(Tensor([1.0]), Tensor([2.0, 3.0])).data.tolist()
    [1.0, 2.0, 3.0]
    """
    ends = [0]  # array k lies between ends[k] and ends[k+1]
    for array in arrays:  # only their lengths are kept, not the arrays
        ends.append(ends[-1] + array.shape[axis])

    def vjp(g: Array) -> tuple[Array, ...]:
        g = xp.moveaxis(g, axis, 0)  # (N₁+N₂+…, …)
        # Each part of g has the shape of its array, with the axis back in its place.
        return tuple(xp.moveaxis(g[start:end], 0, axis) for start, end in itertools.pairwise(ends))

    return xp.concatenate(arrays, axis=axis), vjp


def sum_dtype(xp: Any, dtype: Any) -> Any:
    """The dtype in which sums of numbers of `dtype` are kept: float32 for half precision, else the same."""
    return xp.result_type(dtype, xp.float32)  # it never narrows: float64 stays float64
