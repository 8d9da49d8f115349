"""The guard: arrays that a recorded graph still needs are read-only.

The plain engine would trust every array that it keeps. If such an array is changed between an operation and the
backward pass, the gradient is silently wrong. This file adds three promises:

* An operation copies the arrays that it is given, so that the caller may change his own afterwards.
* The arrays of an operation's inputs and of its value are read-only until the backward pass has used them, or until
  the graph is gone. Writing to one raises NumPy's `ValueError: assignment destination is read-only`, at the write.
* An optimizer may write all the same, through `writing`. An older graph may still be alive then: the graph of a
  validation loss that was kept, or of an interrupted notebook cell. The backward pass of that graph then raises.

Two things remain rules, because no array library lets us check them. NumPy cannot lock a view that already exists,
so do not write through a view taken before an operation. CuPy arrays cannot be locked at all; of those we notice
only what is written through `writing`, or by `tensor.data -= …`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ..backend import Array, array_module, is_array
from ..values import number, plain_array, shown
from .surface import Surface

clock = itertools.count()  # the order of all operations and writes of the process; to take a number is one atomic step


class Guard:
    """The guard of one array: who needs it unchanged, and when it was last changed on purpose.

    Every tensor holds the guard of the array that owns its memory, so a tensor and its views share one.
    """

    __slots__ = ("array", "lockable", "needed_by", "open", "shape", "written")

    def __init__(self, owner: Array) -> None:
        self.array = weakref.ref(owner)  # weak: a graph that holds a guard does not keep the array alive
        self.shape: tuple[int, ...] = owner.shape
        # An array in a buffer that belongs to somebody else cannot be locked.
        self.lockable = isinstance(owner, np.ndarray) and owner.base is None
        self.needed_by: dict[int, int] = {}  # the id of each living hold -> the age of its node
        self.written = -1  # the time of the last write through `writing`, by the clock
        # Those who write through `writing` now: two threads may, each with an optimizer of its own.
        self.open: set[object] = set()

    def settle(self) -> None:
        """Make the array writable if nobody needs it, read-only otherwise.

        Threads may race here. Each looks again after it has written, so the last one leaves the flag right. A lock
        would not do: the garbage collector may end a graph at any moment, also while this thread holds the lock.
        """
        array = self.array()
        if self.lockable and array is not None:
            free = None
            while free != (free := bool(self.open) or not self.needed_by):
                array.setflags(write=free)

    def note_write(self) -> None:
        """Note a write by the user, `tensor.data -= …`, unless the array was locked and so cannot have changed."""
        if not (self.lockable and self.needed_by):
            self.written = next(clock)


def guard_of(value: Array, inputs: tuple[Any, ...]) -> Guard:
    """Return the guard for the value of an operation: that of an input tensor, if the value is a view of it.

    A view is read-only for ever, because writing to it would change another tensor.
    """
    if isinstance(value, np.ndarray) and value.base is not None:
        value.flags.writeable = False
    owner = owner_of(value)
    for x in inputs:
        if isinstance(x, Surface) and x._guard.array() is owner:
            return x._guard  # type: ignore[no-any-return]
    return Guard(owner)


def owner_of(array: Array) -> Array:
    """Return the array that owns the memory of this one: itself, or the array of which it is a view."""
    while array.base is not None and is_array(array.base):
        array = array.base
    return array


class Hold:
    """A claim of one node on the arrays of its inputs and its value: they are read-only as long as the hold lives.

    CPython deletes the hold together with its node, whether the backward pass, `del` or an exception ends the node.
    """

    __slots__ = ("age", "guards")

    def __init__(self, inputs: tuple[Any, ...], guard: Guard, age: int) -> None:
        self.age = age  # by the clock, before the operation read its arrays
        # Inputs that are no tensors need no guard: they are copies, which nobody else has.
        self.guards = [guard, *[x._guard for x in inputs if isinstance(x, Surface)]]
        key = id(self)
        for guard in self.guards:
            guard.needed_by[key] = age
            guard.settle()

    def __del__(self) -> None:
        key = id(self)
        for guard in getattr(self, "guards", ()):  # a hold that was never initialized has none
            guard.needed_by.pop(key, None)
            guard.settle()

    def check(self, name: str) -> None:
        """Raise RuntimeError if one of the arrays was changed since the operation `name` used it."""
        for guard in self.guards:
            if guard.written > self.age:
                raise RuntimeError(
                    f"{name}: a parameter of shape {guard.shape} was changed after this graph used it, by an optimizer "
                    "or in place, so the gradient would be wrong; call backward() before step(), or compute the loss "
                    "again"
                )


class Guarded(Protocol):
    """A Tensor, as far as this file needs to know it: an array and its guard."""

    _data: Array
    _guard: Guard


@contextmanager
def writing(tensor: Guarded) -> Iterator[Array]:
    """Give the array of a parameter to write to, although an older graph may still need it.

    The backward pass of such a graph will raise RuntimeError. Optimizers write through this function only.

    >>> from minisimclr import Tensor
    >>> weight = Tensor([1.0, 2.0], requires_grad=True)
    >>> old = (weight * weight).sum()
    >>> with writing(weight) as array:
    ...     array -= 0.5
    >>> weight.data
    array([0.5, 1.5])
    >>> old.backward()
    Traceback (most recent call last):
    RuntimeError: multiply: a parameter of shape (2,) was changed after this graph used it, by an optimizer or in \
place, so the gradient would be wrong; call backward() before step(), or compute the loss again
    """
    guard, me = tensor._guard, object()
    guard.written = next(clock)  # before the write, for a backward pass that goes on meanwhile in another thread …
    guard.open.add(me)
    guard.settle()
    try:
        yield tensor._data
    finally:
        guard.written = next(clock)  # … and after it, for a graph that began meanwhile
        guard.open.discard(me)
        guard.settle()


def trained(params: Any) -> list[Any]:
    """Return the parameters that an optimizer is given as a list, each of them once.

    Raises: TypeError for anything but leaves: steps of a copy, or of a tensor that was computed, would train nothing.
    """
    if isinstance(params, Surface) or is_array(params) or not hasattr(params, "__iter__"):
        raise TypeError(f"the optimizer takes a list of Tensors, not {shown(params)}")
    found = list({id(p): p for p in params}.values())  # a parameter that is named twice is stepped once
    for p in found:
        if not isinstance(p, Surface):
            raise TypeError(f"the optimizer takes a list of Tensors, not one of {shown(p)}")
        if not p.is_leaf:
            raise TypeError(f"the optimizer takes parameters, not a computed tensor (of shape {p.shape})")
    return found


# ── Copies of what comes in ───────────────────────────────────────────────────────────────────────


def owned(data: Any) -> Array:
    """Return a C-contiguous copy of an array, a list or a number. Raises TypeError for anything but numbers."""
    if isinstance(data, Surface):
        raise TypeError("Tensor takes an array, not a Tensor; use tensor.detach() for one without history")
    return plain_array(data).copy()


def owned_input(x: Any) -> Any:
    """Return a copy of an array that an operation was given, or a plain Python number."""
    if is_array(x):
        return plain_array(x).copy()
    if type(x) in (float, int, bool):
        return x
    if isinstance(x, np.bool_):
        return bool(x)
    if isinstance(x, (float, int, np.generic)):
        return number("an input", x)
    raise TypeError(f"expected a Tensor, an array or a number, not {type(x).__name__}")


def owned_setting(value: Any) -> Any:
    """Return a hyperparameter with every array in it copied, also inside tuples, lists and dictionaries.

    NumPy's scalars become Python's, because numpy.float64 would promote float32 arrays.
    """
    if is_array(value):
        return plain_array(value).copy()
    if isinstance(value, np.generic):
        return bool(value) if isinstance(value, np.bool_) else number("a setting", value)
    if type(value) in (tuple, list):
        return type(value)(owned_setting(item) for item in value)
    if type(value) is dict:
        return {key: owned_setting(item) for key, item in value.items()}
    return value


def owned_settings(op: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a call: each read as the type that the operation declares for it, arrays copied."""
    settings = {}
    for name, value in given.items():
        if (name, type(value)) in op.taken:  # nearly always: nothing to read, and nothing to copy
            settings[name] = value
            continue
        reader = op.readers.get(name)
        settings[name] = owned_setting(value if reader is None else reader(f"{op.__name__}: {name}", value))
    return settings


def gradient_of(data: Array, gradient: Any) -> Array:
    """Return a gradient that a user gives for `data`, in its dtype; it is not copied.

    Raises: TypeError for what is no array of numbers, or is on another device; ValueError for another shape.
    """
    if isinstance(gradient, Surface):
        gradient = gradient._data
    xp = array_module(data)
    gradient = plain_array(gradient) if is_array(gradient) else xp.asarray(plain_array(gradient))
    array_module(data, gradient)  # raises if they are on different devices
    if gradient.shape != data.shape:
        raise ValueError(f"backward: the gradient has shape {gradient.shape}, the tensor {data.shape}")
    return gradient.astype(data.dtype, copy=False)
