"""Reverse-mode automatic differentiation, whole.

A *primitive* computes a value and says how a gradient comes back through it. For y = f(x) and a
loss L(y), the vector–Jacobian product (vjp) turns g = ∂L/∂y into ∂L/∂x = gᵀ·∂f/∂x:

    @primitive
    def square(xp, x):                # plain arrays come in; xp is numpy or cupy
        def vjp(g):                   # g has the shape of the value
            return 2 * g * x          # one gradient per array that came in
        return x * x, vjp

`primitive` is the only place where tensors are unwrapped, the array module is chosen and the graph
is recorded, and `backward` the only place where it is walked. The graph links node to node, never
tensor to tensor: an intermediate array lives only if some vjp kept it, and there are no reference
cycles, so memory is free as soon as the last name for it goes.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..backend import Array, array_module, is_array
from .guard import changed, lend, lock, unlock

__all__ = ["Node", "Tensor", "backward", "no_grad", "primitive"]

# A vjp answers with one gradient per array argument (or just the gradient, if there is one argument).
# None: no gradient. A function without arguments: the gradient, computed only if somebody wants it.
Gradient: TypeAlias = "Array | Callable[[], Array] | None"
Vjp: TypeAlias = "Callable[[Array], Gradient | tuple[Gradient, ...]]"

_recording = ContextVar("recording", default=True)
_ages = itertools.count()


class Node:
    """One step of the recorded computation: where it came from, and the way back.

    A leaf (a tensor made with requires_grad=True) has neither parents nor vjp; its gradient collects in `grad`.
    """

    __slots__ = ("__weakref__", "age", "dtype", "grad", "leaf", "locked", "name", "parents", "shape", "vjp")

    def __init__(self, name: str, value: Array, parents: tuple[Node | None, ...] = (), vjp: Vjp | None = None) -> None:
        self.name, self.parents, self.vjp = name, parents, vjp
        self.locked: tuple[Array, ...] = lock(vjp) if vjp is not None else ()
        self.shape, self.dtype = value.shape, value.dtype
        self.age = next(_ages)  # a node is older than everything computed from it
        self.grad: Array | None = None
        self.leaf: Array | None = value if vjp is None else None

    def release(self) -> None:
        """Forget the way back: what the vjp kept is free, and its inputs may be written to again."""
        self.vjp, self.parents = _used, ()
        unlock(self.locked)
        self.locked = ()

    def __del__(self) -> None:
        unlock(self.locked)


def _used(g: Array) -> Gradient:
    raise RuntimeError("backward has already gone through this graph and freed it; compute the value again")


class Tensor:
    """An array that remembers how it was computed.

    data           the array: float16/32/64, or integer/bool if no gradient is asked for. A copy is
                   taken of what is passed in, so that changing it later cannot falsify a gradient.
    requires_grad  whether `backward` should leave a gradient here; TypeError unless floating point.
    grad           the gradient so far (same shape and dtype), or None. Gradients add up until reset.

    While a graph that has not been walked back still needs a tensor's array, the array is read-only; one
    that is a view of another tensor's (after reshape, transpose, indexing) always is. A view taken earlier can
    still be written through: `backward` then raises.
    """

    __slots__ = ("__weakref__", "_data", "_node")
    __array_ufunc__ = None  # numpy_array + tensor asks the tensor, not NumPy

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor takes an array, not a Tensor; use tensor.detach() for one without history")
        data = data.copy() if is_array(data) else np.array(data)  # row by row in memory, whatever it was before
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Tensor takes numbers (float, integer or bool), not dtype {data.dtype}")
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"only floating-point tensors can have gradients, not dtype {data.dtype}")
        self._data: Array = data
        self._node: Node | None = Node("leaf", data) if requires_grad else None

    @classmethod
    def _wrap(cls, value: Array, node: Node | None) -> Tensor:
        tensor = cls.__new__(cls)
        tensor._data, tensor._node = value, node
        return tensor

    @property
    def data(self) -> Array:
        return lend(self._data)

    @data.setter
    def data(self, array: Array) -> None:
        """Put another array in a leaf's place; its gradient is dropped."""
        if array is self._data:  # `tensor.data -= step` assigns the same array back
            return
        if self._node is not None and self._node.leaf is None:
            raise RuntimeError("only a leaf's data can be replaced; this tensor was computed")
        fresh = Tensor(array, requires_grad=self.requires_grad)
        self._data, self._node = fresh._data, fresh._node

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @property
    def grad(self) -> Array | None:
        return self._node.grad if self._node is not None else None

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if self._node is None:
            raise RuntimeError("this tensor has no gradient: it was made with requires_grad=False")
        self._node.grad = value

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._data.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return self._data.ndim  # type: ignore[no-any-return]

    def item(self) -> float:
        """The only element, as a Python number."""
        return self._data.item()  # type: ignore[no-any-return]

    def detach(self) -> Tensor:
        """The same values without history."""
        return Tensor._wrap(self._data, None)

    def backward(self, grad: Array | None = None) -> None:
        """Add ∂L/∂leaf to the `grad` of every leaf below, where `grad` (default 1, for a scalar) is ∂L/∂self."""
        backward(self, grad)

    def __len__(self) -> int:
        return len(self._data)

    def __repr__(self) -> str:
        made_by = "" if self._node is None else f", {self._node.name}"
        return f"Tensor({self._data!r}{made_by})"

    if TYPE_CHECKING:  # the arithmetic stands in ops/basic.py, which attaches it here

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, exponent: float) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def sum(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        @property
        def T(self) -> Tensor: ...


# ── Recording ─────────────────────────────────────────────────────────────────────────────────────


def primitive(function: Callable[..., tuple[Array, Vjp]]) -> Callable[..., Tensor]:
    """Make a function on tensors of `function(xp, *arrays, **hyperparameters) -> (value, vjp)`.

    The positional arguments may be tensors, arrays or numbers; the result is a Tensor.
    """

    @functools.wraps(function)
    def op(*inputs: Any, **hyperparameters: Any) -> Tensor:
        arrays = [_array(x) for x in inputs]
        settings = {name: _own(setting) for name, setting in hyperparameters.items()}
        value, vjp = function(array_module(*arrays), *arrays, **settings)
        value = _solid(value)
        if isinstance(value, np.ndarray) and value.base is not None:
            value.flags.writeable = False  # a view: writing to it would change another tensor
        parents = tuple(x._node if isinstance(x, Tensor) else None for x in inputs)
        if not _recording.get() or not any(parents):
            return Tensor._wrap(value, None)
        return Tensor._wrap(value, Node(function.__name__, value, parents, vjp))

    op.__annotations__ = {"return": Tensor}
    op.is_primitive = True  # type: ignore[attr-defined]
    return op


def _array(x: Any) -> Any:
    """What a primitive computes with: a tensor's array, a copy of an array, or a plain Python number."""
    if isinstance(x, Tensor):
        return x._data
    if isinstance(x, (int, float, np.generic)) or is_array(x):
        return _own(x)
    raise TypeError(f"expected a Tensor, an array or a number, not {type(x).__name__}")


def _own(value: Any) -> Any:
    """A copy of an array, so that changing it later cannot falsify a gradient; also inside a tuple or list.

    NumPy's scalars become Python's because numpy.float64 would promote float32 arrays.
    """
    if is_array(value):
        return Tensor(value)._data
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(_own(item) for item in value)
    return value


def _solid(value: Any) -> Array:
    """NumPy answers with a scalar where a 0-d array went in; we keep arrays."""
    return value if is_array(value) else np.asarray(value)


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded: for evaluation, where activations need not be kept."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


# ── Going back ────────────────────────────────────────────────────────────────────────────────────


def backward(tensor: Tensor, grad: Array | None = None) -> None:
    """Walk the graph from `tensor` to its leaves, youngest node first.

    A node is older than all that was computed from it, so when it is its turn, every contribution
    to its gradient has arrived. No recursion: the graph may be as deep as memory allows.
    """
    root = tensor._node
    if root is None:
        raise RuntimeError("backward needs a tensor that depends on one with requires_grad=True")
    gradients: dict[Node, Array] = {root: _seed(tensor, grad)}  # the sum of what has arrived so far
    waiting = [(-root.age, root)] if root.vjp is not None else []
    while waiting:
        _, node = heapq.heappop(waiting)
        gradient = gradients.pop(node)
        assert node.vjp is not None
        if changed(node.locked):
            raise RuntimeError(f"{node.name}: an array that its gradient needs was changed in place since it was used")
        answers = node.vjp(gradient)
        answers = answers if isinstance(answers, tuple) else (answers,)
        if len(answers) != len(node.parents):
            raise RuntimeError(f"{node.name}: the vjp gave {len(answers)} gradients for {len(node.parents)} arguments")
        parents = node.parents
        node.release()
        for parent, answer in zip(parents, answers):
            if parent is None or answer is None:
                continue
            answer = _fit(answer() if callable(answer) else answer, parent, node)
            if parent in gradients:
                gradients[parent] = _solid(gradients[parent] + answer)  # a new array: the old one may be shared
            else:
                gradients[parent] = answer
                if parent.vjp is not None:
                    heapq.heappush(waiting, (-parent.age, parent))
    for leaf, gradient in gradients.items():  # only now, so that a failure above leaves no half-done sums
        leaf.grad = gradient.copy() if leaf.grad is None else _solid(leaf.grad + gradient)


def _seed(tensor: Tensor, grad: Any) -> Array:
    """∂L/∂tensor where the way back begins."""
    xp = array_module(tensor._data)
    if grad is None:
        if tensor._data.size != 1:
            raise RuntimeError(f"backward from shape {tensor.shape} needs the gradient to start with: backward(grad)")
        return xp.ones_like(tensor._data)
    grad = grad._data if isinstance(grad, Tensor) else grad if is_array(grad) else xp.asarray(grad)
    array_module(tensor._data, grad)  # raises if they are on different devices
    if grad.shape != tensor.shape:
        raise ValueError(f"backward: the gradient has shape {grad.shape}, the tensor {tensor.shape}")
    return grad.astype(tensor.dtype, copy=False)


def _fit(gradient: Array, parent: Node, node: Node) -> Array:
    """Undo broadcasting and promotion: sum over the axes that were stretched, return to the parent's dtype."""
    gradient, shape = _solid(gradient), parent.shape
    if gradient.shape != shape:
        lead = gradient.ndim - len(shape)
        stretched = [lead + axis for axis, size in enumerate(shape) if size == 1 != gradient.shape[lead + axis]]
        if lead < 0 or any(size not in (1, now) for size, now in zip(shape, gradient.shape[lead:])):
            raise RuntimeError(f"{node.name}: the vjp gave shape {gradient.shape} for an input of shape {shape}")
        gradient = _solid(gradient.sum(axis=(*range(lead), *stretched))).reshape(shape)
    return gradient.astype(parent.dtype, copy=False)
