"""Reverse-mode automatic differentiation: the whole engine.

A *primitive* computes a value, and says how a gradient comes back through it. For y = f(x) and a
loss L(y), the vector–Jacobian product (vjp) turns g = ∂L/∂y into ∂L/∂x = gᵀ·∂f/∂x:

    @primitive
    def square(xp, x):                # arrays or numbers come in; xp is numpy or cupy
        def vjp(g):                   # g has the shape of the value
            return 2 * g * x          # one gradient per array that came in
        return x * x, vjp

Calling `square` with a tensor computes the value and records a `Node`, which keeps the vjp. The nodes form
a graph. The backward pass visits them from the loss down to the leaves, and applies the chain rule at each.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

# A first reading needs only this: guard.py keeps the arrays of a graph read-only, where `owned…` copies what users give
# and `clock` counts operations; `as_array` makes a scalar an array again; `once_more` words an error; `by_default`
# undoes a caller's np.errstate(all="raise"); ops/operators.py gives Tensor x + y, x * y, x @ y and the like.
from ..backend import Array, array_module
from ..values import by_default
from .guard import Guard, Hold, clock, gradient_of, guard_of, owned, owned_input, owned_settings
from .surface import Surface, as_array, once_more, shown_as

# A vjp returns one entry per array argument; a single argument needs no tuple. An entry is an array, None (no
# gradient for this argument), or a function without parameters, which is called only if that gradient is needed.
Gradient: TypeAlias = "Array | Callable[[], Array] | None"
Vjp: TypeAlias = "Callable[[Array], Gradient | tuple[Gradient, ...]]"

_recording = ContextVar("recording", default=True)  # a context variable, so that no_grad holds in its own thread only


# The graph links node to node, never tensor to tensor. So an intermediate array lives only if some vjp keeps
# it, and there are no reference cycles: memory is free as soon as the last name for it goes.
class Node:
    """One step of the recorded computation: the nodes that it came from, and its vjp.

    A leaf (a tensor made with requires_grad=True) has neither parents nor vjp; its gradient collects in `grad`.
    """

    __slots__ = ("__weakref__", "age", "dtype", "grad", "hold", "leaf", "name", "parents", "shape", "vjp")

    def __init__(self, name: str, value: Array, parents: Any = (), vjp: Vjp | None = None, hold: Hold | None = None):
        self.name, self.vjp = name, vjp  # the operation's name, for errors and the ledger
        self.parents: tuple[Node | None, ...] = parents  # one per input; None if the input wants no gradient
        self.hold = hold  # keeps the arrays of this step read-only
        self.shape, self.dtype = value.shape, value.dtype  # not the value itself: it may be freed before the node
        # A serial number, smaller than that of everything computed from this node.
        self.age = next(clock) if hold is None else hold.age
        self.grad: Array | None = None  # of a leaf: the sum over all backward passes so far
        self.leaf: Array | None = value if vjp is None else None  # None says that the value was computed


class Tensor(Surface):
    """An array that remembers how it was computed.

    The array is a copy of what is passed in: a later change of the original cannot falsify a gradient. Its dtype is
    float16/32/64, or integer or bool if no gradient is asked for.

    Raises: TypeError for data that are not numbers, and for integers that ask for a gradient; RuntimeError if a
    computed tensor is copied or pickled, or gets new data.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.])
    """

    __slots__ = ("__weakref__", "_data", "_guard", "_node")

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        array = owned(data)  # a copy
        if requires_grad and array.dtype.kind != "f":  # an integer cannot be changed by a little
            raise TypeError(f"only floating-point tensors can have gradients, not dtype {array.dtype}")
        self._data: Array = array
        self._guard = Guard(array)  # knows which nodes need the array unchanged
        self._node: Node | None = Node("leaf", array) if requires_grad else None

    @classmethod
    def _wrap(cls, value: Array, guard: Guard, node: Node | None) -> Tensor:
        tensor = cls.__new__(cls)  # not Tensor(value), which would copy
        tensor._data, tensor._guard, tensor._node = value, guard, node
        return tensor

    @property
    def data(self) -> Array:
        """The array itself, not a copy. A leaf may be given another array; its gradient is then dropped.

        From the moment a graph needs the array until `backward` has used it (or the graph is gone), it is read-only:
        writing to it raises NumPy's "assignment destination is read-only". Results of reshape, transpose and indexing
        share memory with their input, and stay read-only. NumPy cannot lock a view that exists already; so never
        write through a view of `data` that was taken before an operation.
        """
        return self._data

    @data.setter
    def data(self, array: Array) -> None:
        if array is self._data:  # `tensor.data -= step` assigns the same array back
            self._guard.note_write()
        elif self._node is not None and self._node.leaf is None:
            raise RuntimeError("only a leaf's data can be replaced; this tensor was computed")
        else:
            fresh = Tensor(array, requires_grad=self.requires_grad)  # older graphs keep the old array, and stay right
            self._data, self._guard, self._node = fresh._data, fresh._guard, fresh._node

    @property
    def grad(self) -> Array | None:
        """∂L/∂self, added up over all backward passes since it was last set to None."""
        return self._node.grad if self._node is not None else None  # kept in the node: backward sees nodes only

    @grad.setter
    def grad(self, value: Array | None) -> None:
        if self._node is None:
            raise RuntimeError("this tensor has no gradient: it was made with requires_grad=False")
        self._node.grad = None if value is None else gradient_of(self._data, value)

    def detach(self) -> Tensor:
        """Return the same values as a constant, from which no gradient flows back; the array is shared."""
        return Tensor._wrap(self._data, self._guard, None)

    def backward(self, grad: Array | None = None) -> None:
        """Add ∂L/∂leaf to the `grad` of every leaf below; see the function `backward`."""
        backward(self, grad)


def primitive(function: Callable[..., tuple[Array, Vjp]]) -> Callable[..., Tensor]:
    """Turn `function(xp, *arrays, **hyperparameters) -> (value, vjp)` into a function on tensors.

    The positional arguments may be tensors, arrays or numbers.
    Raises: TypeError for an argument that is none of these; ValueError if the shapes do not fit together.

    >>> square = primitive(lambda xp, x: (x * x, lambda g: 2 * g * x))
    >>> x = Tensor(3.0, requires_grad=True)
    >>> square(x).backward()
    >>> x.grad
    array(6.)
    """

    @shown_as(function, returns=Tensor)
    def op(*inputs: Any, **given: Any) -> Tensor:
        age = next(clock)  # before the arrays are looked at, so that another thread's write from now on is noticed
        # Tensors are unwrapped; any other argument is copied, so that the caller may change the original afterwards.
        arrays = [x._data if isinstance(x, Tensor) else owned_input(x) for x in inputs]
        settings = owned_settings(op, given) if given else given
        try:
            value, vjp = function(array_module(*arrays), *arrays, **settings)
        except Exception as error:  # mostly: the shapes do not fit
            value, vjp = once_more(error, function, arrays, settings)
        value = as_array(value)
        guard = guard_of(value, inputs)  # an input's own guard, if the value is a view of that input
        parents = tuple(x._node if isinstance(x, Tensor) else None for x in inputs)
        # If no input wants a gradient, neither does the value: the vjp, and all that it keeps, is dropped here.
        recorded = _recording.get() and any(parents)
        node = Node(function.__name__, value, parents, vjp, Hold(inputs, guard, age)) if recorded else None
        return Tensor._wrap(value, guard, node)

    return op


@contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing inside: for evaluation, where activations need not be kept.

    >>> x = Tensor(3.0, requires_grad=True)
    >>> with no_grad():
    ...     print((x * x).requires_grad)
    False
    """
    token = _recording.set(False)  # remembers the state before, so that contexts nest
    try:
        yield
    finally:
        _recording.reset(token)


@by_default
def backward(tensor: Tensor, grad: Array | None = None) -> None:
    """Add ∂L/∂leaf to the `grad` of every leaf below `tensor`, where `grad` (default 1, for a scalar) is ∂L/∂tensor.

    Raises: RuntimeError if nothing here needs a gradient, if a backward pass went through the graph before, if a
    parameter was changed since, or if `grad` is needed and missing; ValueError if `grad` has another shape.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> backward(x * x, [10.0, 1.0])
    >>> x.grad
    array([20.,  4.])
    """
    root = tensor._node
    if root is None:
        raise RuntimeError("backward needs a tensor that depends on one with requires_grad=True")
    gradients: dict[Node, Array] = {root: _seed(tensor, grad)}  # the sum of what has arrived so far
    waiting = [(-root.age, root)]  # a heap, with the node on top that was made last
    # The heap gives the node that was made last. Whatever was computed from it was made later still, and has been
    # visited, so its gradient is complete. There is no recursion: the graph may be as deep as memory allows.
    while waiting:
        _, node = heapq.heappop(waiting)
        if node.leaf is not None:  # a leaf: its gradient stays in `gradients` until the end
            continue
        for parent, part in pull(node, gradients.pop(node)):
            if parent in gradients:
                gradients[parent] = as_array(gradients[parent] + part)  # a new array: the old one may be shared
            else:
                gradients[parent] = part
                heapq.heappush(waiting, (-parent.age, parent))  # at its first part; others come while it waits
    for leaf, gradient in gradients.items():  # only now, so that a failure above leaves no half-done sums
        leaf.grad = gradient.copy() if leaf.grad is None else as_array(leaf.grad + gradient)


def pull(node: Node, gradient: Array) -> Iterator[tuple[Node, Array]]:
    """Run the vjp of a node on its gradient, free the node, and yield each parent with its part of the gradient."""
    if node.vjp is None or node.hold is None:  # the state in which this function leaves a node
        raise RuntimeError("backward has already gone through this graph and freed it; compute the value again")
    node.hold.check(node.name)  # raises if an optimizer has written to one of its arrays since
    parts = node.vjp(gradient)  # the chain rule: ∂L/∂value in, ∂L/∂input out, one for each input
    parts = parts if isinstance(parts, tuple) else (parts,)
    if len(parts) != len(node.parents):
        raise RuntimeError(f"{node.name}: the vjp gave {len(parts)} gradients for {len(node.parents)} arguments")
    parents, node.parents, node.vjp, node.hold = node.parents, (), None, None  # frees what the vjp kept, and unlocks it
    for parent, part in zip(parents, parts):
        if parent is not None and part is not None:  # a constant wants no gradient
            yield parent, _unbroadcast(part() if callable(part) else part, parent, node.name)


def _seed(tensor: Tensor, grad: Any) -> Array:
    """Return ∂L/∂tensor, with which the backward pass begins."""
    if grad is None:
        if tensor._data.size != 1:
            raise RuntimeError(f"backward from shape {tensor.shape} needs the gradient to start with: backward(grad)")
        return array_module(tensor._data).ones_like(tensor._data)  # ∂L/∂L
    return gradient_of(tensor._data, grad)


def _unbroadcast(gradient: Any, parent: Node, name: str) -> Array:
    """Undo broadcasting and promotion: sum over the axes that were stretched, and return to the parent's dtype."""
    gradient, shape = as_array(gradient), parent.shape  # `shape` is the input's; the gradient may be larger
    if gradient.shape != shape:
        lead = gradient.ndim - len(shape)  # axes that broadcasting put in front
        if lead < 0 or any(size not in (1, now) for size, now in zip(shape, gradient.shape[lead:])):
            raise RuntimeError(f"{name}: the vjp gave shape {gradient.shape} for an input of shape {shape}")
        # An element that was used many times receives the sum of all their gradients.
        stretched = [lead + axis for axis, size in enumerate(shape) if size == 1]
        gradient = as_array(gradient.sum(axis=(*range(lead), *stretched))).reshape(shape)
    return gradient.astype(parent.dtype, copy=False)  # float32 · float64 is float64, but each gets its own dtype back
