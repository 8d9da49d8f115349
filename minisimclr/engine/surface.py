"""The surface of a tensor and of an operation: what Python, NumPy and help() see.

The plain engine would work without this file, but four things would surprise its user. NumPy would take a tensor
for a list, and give np.exp(tensor) a value that no gradient flows back through; `if tensor:` would ask for the
length; a shape that does not fit would be refused in the words of the array library; and help() would show the
arguments of the array function.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np

from ..backend import Array, array_module, is_array
from ..values import NUMBERS, by_default, readers_of, shown, taken_as_they_are

T = TypeVar("T")
REFUSALS = "Raises: TypeError for what is no number or array of numbers; ValueError or IndexError for what does not fit"


class Surface:
    """The properties of Tensor, and its answers to Python and NumPy. `ops/operators.py` attaches the operators."""

    __slots__ = ()
    __array_priority__ = 1000  # above NumPy's 0 and CuPy's 100: array + tensor asks the tensor

    _data: Any
    _node: Any
    _guard: Any
    grad: Any

    shape = property(lambda self: self._data.shape, doc="The size of each axis.")
    dtype = property(lambda self: self._data.dtype, doc="The type of the elements.")
    ndim = property(lambda self: self._data.ndim, doc="The number of axes.")
    requires_grad = property(
        lambda self: self._node is not None,
        doc="True for leaves that collect a gradient, and for all that is computed from them.",
    )
    is_leaf = property(
        lambda self: self._node is None or self._node.leaf is not None,
        doc="False for what was computed from a tensor that requires a gradient.",
    )

    def item(self) -> float:
        """Return the only element as a Python number. Raises ValueError if there are more."""
        return self._data.item()  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"Tensor({self._data!r}{'' if self._node is None else f', {self._node.name}'})"

    def __len__(self) -> int:
        return len(self._data)

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(
                "the truth value of a tensor is defined for one element only; use tensor.data.any() or .all()"
            )
        return bool(self._data)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError(
            "NumPy's functions take no Tensor, because autograd would not see them: in place of np.exp(tensor) "
            "use minisimclr.ops.exp(tensor), or give np.exp the array, tensor.data"
        )

    def __array_function__(self, function: Any, types: Any, inputs: Any, settings: Any) -> NoReturn:
        name = function.__name__
        raise TypeError(
            f"NumPy's functions take no Tensor, because autograd would not see them: in place of np.{name}(tensor) "
            f"use minisimclr.ops.{name} if there is one, or give np.{name} the array, tensor.data"
        )

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> NoReturn:  # only what is not found comes here, such as x.exp()
            advice = "" if name.startswith("_") else "; operations are functions, and minisimclr.ops has them"
            raise AttributeError(f"a Tensor has no {name}{advice}", name=name, obj=self)

    def __abs__(self) -> NoReturn:
        raise TypeError("a Tensor has no abs; use minisimclr.ops.maximum(tensor, -tensor)")

    def __reduce__(self) -> Any:  # for copy.copy, copy.deepcopy and pickle
        if self._node is not None and self._node.leaf is None:
            raise RuntimeError("a computed tensor cannot be copied with its history; copy tensor.detach() instead")
        return _copied, (type(self), self._data, self.requires_grad, self.grad)

    if TYPE_CHECKING:  # only the types: the engine knows no operation

        def __add__(self, other: Any) -> Self: ...

        __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
        __matmul__ = __rmatmul__ = __pow__ = __getitem__ = __add__

        def __neg__(self) -> Self: ...
        def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Self: ...
        def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Self: ...
        def reshape(self, *shape: Any) -> Self: ...
        def transpose(self, *axes: Any) -> Self: ...
        @property
        def T(self) -> Self: ...


def _copied(kind: Any, data: Any, requires_grad: bool, grad: Any) -> Any:
    tensor = kind(data, requires_grad)
    if grad is not None:
        tensor.grad = grad.copy()
    return tensor


def shown_as(function: Callable[..., Any], returns: type[T]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a primitive the signature that its caller sees in help(): without xp, with tensors, returning a tensor."""

    def decorate(op: Any) -> Callable[..., T]:
        _, *given = inspect.signature(function).parameters.values()
        given = [p if p.kind is p.KEYWORD_ONLY else p.replace(annotation="Tensor | Array | float") for p in given]
        op = functools.update_wrapper(op, function)
        op.__doc__ = _with_refusals(function.__doc__ or "")
        op.__annotations__ = {"return": returns}
        op.__signature__ = inspect.Signature(given, return_annotation=returns)
        op.is_primitive = True
        op.readers = readers_of(function)  # how each setting is read, by its declared type
        op.taken = taken_as_they_are(op.readers)
        return op  # type: ignore[no-any-return]

    return decorate


def _with_refusals(doc: str) -> str:
    """Add to the docstring of an operation what every operation raises, unless it says itself what it raises."""
    if "Raises:" in doc or "VJP:" not in doc:
        return doc
    lines = inspect.cleandoc(doc).split("\n")  # from Python 3.13 on it is without indentation already
    place = next((k for k, line in enumerate(lines) if line.lstrip().startswith(">>>")), len(lines))
    place -= place > 0 and not lines[place - 1].strip()  # above the empty line before an example
    lines.insert(place, REFUSALS)
    return "\n".join(lines)


def as_array(value: Any) -> Array:
    """NumPy functions turn 0-d arrays into scalars; turn them back."""
    if is_array(value):
        return value
    array = np.asarray(value)
    if array.dtype.char not in NUMBERS:  # of Python's numbers: (−1)**0.5 is complex, 2**63 + 2**63 is too long
        raise TypeError(f"the value {shown(value)} is no number of at most 64 bits")
    return array


@by_default
def once_more(error: Exception, function: Callable[..., Any], arrays: list[Any], settings: dict[str, Any]) -> Any:
    """Return what an operation computes if it only failed because of how it was asked; else raise in our words.

    So a call costs nothing more where all is well. Two failures are cured. NumPy was told to raise floating-point
    errors, and Python raises for numbers (1.0 / 0.0) what NumPy only warns of.
    """
    numbers_only = arrays and not any(map(is_array, arrays))
    if isinstance(error, FloatingPointError) or (numbers_only and isinstance(error, ArithmeticError)):
        try:
            return (
                function(np, *map(np.asarray, arrays), **settings)
                if numbers_only
                else (function(array_module(*arrays), *arrays, **settings))
            )
        except Exception as second:
            error = second
    raise in_our_words(error, function.__name__, arrays) from None


def in_our_words(error: Exception, name: str, arrays: list[Any]) -> Exception:
    """Name the operation, and the shapes if the array library refused those; return any other error as it is."""
    said = " ".join(str(error).split())  # on one line
    if isinstance(error, AttributeError) and not all(map(is_array, arrays)):  # 2.0 has no shape
        return TypeError(f"{name} takes arrays and tensors, not numbers")
    if isinstance(error, OverflowError):
        return ValueError(f"{name}: a number is too large: {said}")
    if isinstance(error, ValueError) and any(word in said for word in ("operand", "mismatch")):  # never in ours
        shapes = " and ".join(str(getattr(array, "shape", ())) for array in arrays)
        return ValueError(f"{name}: shapes {shapes} do not fit together")
    if said.startswith((f"{name}:", f"{name} ")):  # our own words
        return error
    if type(error).__module__.partition(".")[0] in ("builtins", "numpy", "cupy"):
        for kind in (ValueError, TypeError, IndexError):  # in this order: NumPy's AxisError is two of them
            if isinstance(error, kind) and not isinstance(error, UnicodeError):
                return kind(f"{name}: {said}")
    return error
