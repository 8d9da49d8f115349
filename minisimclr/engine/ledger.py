"""The ledger: how much memory a recorded graph keeps for its backward pass, op by op.

A vjp is a function that remembers the arrays it needs, so nobody has to declare them: we look into the function.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from ..backend import Array, is_array
from .autograd import Node, Tensor
from .guard import owner_of


class Ledger(dict[str, int]):
    """Bytes kept for the backward pass, per op. It prints as a table, largest first."""

    @property
    def total(self) -> int:
        """The sum over all ops, in bytes."""
        return sum(self.values())

    def __str__(self) -> str:
        rows = sorted(self.items(), key=lambda row: -row[1])
        return "\n".join(f"{size / 2**20:10.2f} MiB  {name}" for name, size in [*rows, ("total", self.total)])


def saved_bytes(tensor: Tensor) -> Ledger:
    """Count the bytes that the graph below `tensor` keeps alive for `backward`.

    An array that several vjps share is counted once, for the op that was computed first. Leaves (the
    parameters) are not counted.

    >>> import numpy as np
    >>> from minisimclr import Tensor, ops, saved_bytes
    >>> x = Tensor(np.ones(1000), requires_grad=True)
    >>> saved_bytes(ops.exp(x * 2.0))  # the derivative of exp is exp itself, so its value is kept
    {'exp': 8000}
    """
    nodes: set[Node] = set()
    frontier = [tensor._node] if tensor._node is not None else []
    while frontier:
        node = frontier.pop()
        if node not in nodes:
            nodes.add(node)
            frontier.extend(parent for parent in node.parents if parent is not None)
    ledger = Ledger()
    counted = {id(node.leaf) for node in nodes if node.leaf is not None}
    for node in sorted(nodes, key=lambda node: node.age):
        for array in arrays_in(node.vjp):
            if id(array) not in counted:
                counted.add(id(array))
                ledger[node.name] = ledger.get(node.name, 0) + array.nbytes
    return ledger


def arrays_in(value: Any) -> Iterator[Array]:
    """Find all arrays that a function can reach, each as the array that owns the memory.

    They may stand in its closure, in its default arguments, in a functools.partial, in the attributes of the object
    that a method is bound to, and in tuples, lists and dictionaries there.
    """
    seen: dict[int, Any] = {}  # a function may reach itself, so nothing is looked at twice
    frontier = [value]
    while frontier:
        value = frontier.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # kept alive, so that its id is not given to another object
        if is_array(value):
            yield owner_of(value)
        else:
            frontier.extend(reversed(_within(value)))


def _within(value: Any) -> list[Any]:
    """Return the items of a container, or the objects that a function refers to."""
    if isinstance(value, Tensor):
        return [value.data]
    if isinstance(value, (tuple, list, set, frozenset)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, FunctionType):
        return [*_contents(value), value.__defaults__, value.__kwdefaults__]
    if isinstance(value, MethodType):
        return [value.__func__, *_attributes(value.__self__)]
    if is_array(owner := getattr(value, "__self__", None)):  # a method of an array, such as y.__mul__
        return [owner]
    return _attributes(value) if callable(value) else []


def _contents(function: FunctionType) -> list[Any]:
    """Return the variables in a function's closure."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # the variable has no value: not yet, or no longer
            continue
    return found


def _attributes(thing: Any) -> list[Any]:
    """Return the attributes of an object, whether they stand in its dictionary or in slots."""
    if isinstance(thing, type):
        return []
    slots = [slot for kind in type(thing).__mro__ for slot in getattr(kind, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, slot, None) for slot in slots)]
