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

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ..backend import Array, is_array
from .surface import Surface


class Guard:
    """The guard of one array: who needs it unchanged, and how often it was changed on purpose.

    Every tensor holds the guard of the array that owns its memory, so a tensor and its views share one.
    """

    __slots__ = ("array", "lockable", "needed_by", "open", "shape", "version")

    def __init__(self, owner: Array) -> None:
        self.array = weakref.ref(owner)  # weak: a graph that holds a guard does not keep the array alive
        self.shape: tuple[int, ...] = owner.shape
        # An array in a buffer that belongs to somebody else cannot be locked.
        self.lockable = isinstance(owner, np.ndarray) and owner.base is None
        self.needed_by: dict[int, int] = {}  # the id of each living hold -> the version that it has seen
        self.version = 0  # the number of writes through `writing`
        self.open = False  # True while somebody writes through `writing`

    def settle(self) -> None:
        """Make the array writable if nobody needs it, read-only otherwise.

        Threads may race here. Each looks again after it has written, so the last one leaves the flag right. A lock
        would not do: the garbage collector may end a graph at any moment, also while this thread holds the lock.
        """
        array = self.array()
        if self.lockable and array is not None:
            free = None
            while free != (free := self.open or not self.needed_by):
                array.setflags(write=free)

    def note_write(self) -> None:
        """Count a write by the user, `tensor.data -= …`, unless the array was locked and so cannot have changed."""
        self.version += not (self.lockable and self.needed_by)


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

    __slots__ = ("guards",)

    def __init__(self, inputs: tuple[Any, ...], guard: Guard) -> None:
        # Inputs that are no tensors need no guard: they are copies, which nobody else has.
        self.guards = [guard, *[x._guard for x in inputs if isinstance(x, Surface)]]
        key = id(self)
        for guard in self.guards:
            guard.needed_by[key] = guard.version
            guard.settle()

    def __del__(self) -> None:
        key = id(self)
        for guard in getattr(self, "guards", ()):  # a hold that was never initialized has none
            guard.needed_by.pop(key, None)
            guard.settle()

    def check(self, name: str) -> None:
        """Raise RuntimeError if one of the arrays was changed since the operation `name` used it."""
        key = id(self)
        for guard in self.guards:
            if guard.needed_by[key] != guard.version:
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
    guard = tensor._guard
    guard.version += 1  # before the write, so that one that is interrupted counts too
    guard.open = True
    guard.settle()
    try:
        yield tensor._data
    finally:
        guard.open = False
        guard.settle()


# ── Copies of what comes in ───────────────────────────────────────────────────────────────────────


def owned(data: Any) -> Array:
    """Return a C-contiguous copy of an array, a list or a number. Raises TypeError for anything but numbers."""
    if isinstance(data, Surface):
        raise TypeError("Tensor takes an array, not a Tensor; use tensor.detach() for one without history")
    array = data.copy() if is_array(data) else np.array(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"Tensor takes numbers (float, integer or bool), not dtype {array.dtype}")
    return array


def owned_input(x: Any) -> Any:
    """Return a copy of an array that an operation was given, or a plain Python number."""
    if isinstance(x, (int, float, np.generic)) or is_array(x):
        return owned_setting(x)
    raise TypeError(f"expected a Tensor, an array or a number, not {type(x).__name__}")


def owned_setting(value: Any) -> Any:
    """Return a hyperparameter with every array in it copied, also inside tuples, lists and dictionaries.

    NumPy's scalars become Python's, because numpy.float64 would promote float32 arrays.
    """
    if is_array(value):
        return owned(value)
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (tuple, list):
        return type(value)(owned_setting(item) for item in value)
    if type(value) is dict:
        return {key: owned_setting(item) for key, item in value.items()}
    return value
