"""The operators and methods of Tensor: x + y, x @ y, x[index], x.sum() …."""

from __future__ import annotations

from typing import Any

from ..backend import is_array
from ..engine.autograd import Tensor
from .basic import add, divide, matmul, mean, multiply, negative, power, subtract, sum
from .shapes import getitem, reshape, transpose


def _operator(op: Any, swapped: bool = False) -> Any:
    """Return the method of a two-sided operator. Python raises TypeError if the other side is no number or array."""

    def method(self: Tensor, other: Any) -> Any:
        if not (isinstance(other, (Tensor, int, float)) or is_array(other) or hasattr(other, "dtype")):
            return NotImplemented
        return op(other, self) if swapped else op(self, other)

    return method


def _power(self: Tensor, exponent: float) -> Any:
    return power(self, exponent=exponent) if isinstance(exponent, (int, float)) else NotImplemented


def _negative(self: Tensor) -> Tensor:
    return negative(self)


def _getitem(self: Tensor, index: Any) -> Tensor:
    return getitem(self, index=index)


def _sum(self: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    return sum(self, axis=axis, keepdims=keepdims)


def _mean(self: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    return mean(self, axis=axis, keepdims=keepdims)


def _reshape(self: Tensor, *shape: Any) -> Tensor:
    return reshape(self, shape=_flat(shape))


def _transpose(self: Tensor, *axes: Any) -> Tensor:
    return transpose(self, axes=_flat(axes) or None)


def _flat(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Accept both x.reshape(2, 3) and x.reshape((2, 3))."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else arguments


# Name of the method, the operation that computes it, and the function to attach, which gets the operation's docstring
_METHODS = (
    ("__add__", add, _operator(add)),
    ("__radd__", add, _operator(add, swapped=True)),
    ("__sub__", subtract, _operator(subtract)),
    ("__rsub__", subtract, _operator(subtract, swapped=True)),
    ("__mul__", multiply, _operator(multiply)),
    ("__rmul__", multiply, _operator(multiply, swapped=True)),
    ("__truediv__", divide, _operator(divide)),
    ("__rtruediv__", divide, _operator(divide, swapped=True)),
    ("__matmul__", matmul, _operator(matmul)),
    ("__rmatmul__", matmul, _operator(matmul, swapped=True)),
    ("__pow__", power, _power),
    ("__neg__", negative, _negative),
    ("__getitem__", getitem, _getitem),
    ("sum", sum, _sum),
    ("mean", mean, _mean),
    ("reshape", reshape, _reshape),
    ("transpose", transpose, _transpose),
)
for _name, _op, _method in _METHODS:
    _method.__name__, _method.__qualname__, _method.__doc__ = _name, f"Tensor.{_name}", _op.__doc__
    setattr(Tensor, _name, _method)
Tensor.T = property(_transpose, doc=transpose.__doc__)  # type: ignore[assignment,method-assign]
