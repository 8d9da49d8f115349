"""The operators and methods of Tensor: x + y, x @ y, x[index], x.sum() … are operations of this package."""

from __future__ import annotations

from typing import Any

from ..backend import is_array
from ..engine.autograd import Tensor
from .basic import add, divide, matmul, mean, multiply, negative, power, subtract, sum
from .shapes import getitem, reshape, transpose


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
    "__add__": _operator(add),
    "__radd__": _operator(add, swapped=True),
    "__sub__": _operator(subtract),
    "__rsub__": _operator(subtract, swapped=True),
    "__mul__": _operator(multiply),
    "__rmul__": _operator(multiply, swapped=True),
    "__truediv__": _operator(divide),
    "__rtruediv__": _operator(divide, swapped=True),
    "__matmul__": _operator(matmul),
    "__rmatmul__": _operator(matmul, swapped=True),
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
