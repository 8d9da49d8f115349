"""What a recorded graph keeps for its way back: found, guarded and counted.

A vjp is a closure over the arrays that it needs, so what a graph keeps need not be declared anywhere: we
find it by looking into the closures. Two things follow.

* Were one of these arrays written to before `backward`, the gradient would be silently wrong. So each is
  read-only until the way back has used it. A view that was taken before stays writable: of an array that was
  lent out, a checksum is compared. (CuPy arrays cannot be locked: there it is a rule.)
* `saved_bytes` counts them: the memory that training costs, op by op.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backend import Array, is_array


def _owner(array: Array) -> Array:
    return array.base if is_array(array.base) else array


def arrays_in(value: Any) -> Iterator[Array]:
    """All arrays that a closure can reach, each as the one that owns the memory."""
    if is_array(value):
        yield _owner(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)
    elif callable(value):
        for cell in getattr(value, "__closure__", None) or ():
            yield from arrays_in(cell.cell_contents)


# ── Guarded ───────────────────────────────────────────────────────────────────────────────────────

_needed_by: dict[int, int] = {}  # id of an array -> how many vjps need it; their nodes keep it alive
_lent: dict[int, weakref.ref[Array]] = {}  # ids of those that someone outside may hold a writable view of
_sealed: dict[int, int] = {}  # id of a lent array that is needed -> its checksum when it was locked


def lend(array: Array) -> Array:
    """The array, noted as one of which views may exist when it is locked."""
    owner = _owner(array)
    key, forget = id(owner), _lent.pop
    if isinstance(owner, np.ndarray) and owner.flags.writeable and key not in _lent:
        _lent[key] = weakref.ref(owner, lambda _: forget(key, None))
    return array


def lock(vjp: Callable[..., Any]) -> tuple[Array, ...]:
    """Make what the vjp keeps read-only, and say what that was, for `unlock`."""
    locked = {
        id(array): array
        for array in arrays_in(vjp)
        if isinstance(array, np.ndarray) and (array.flags.writeable or id(array) in _needed_by)
    }
    for key, array in locked.items():
        array.flags.writeable = False
        if key in _lent and key not in _needed_by:
            _sealed[key] = _checksum(array)
        _needed_by[key] = _needed_by.get(key, 0) + 1
    return tuple(locked.values())


def unlock(arrays: tuple[Array, ...]) -> None:
    """One vjp fewer needs these arrays; those that none needs may be written to again."""
    for array in arrays:
        _needed_by[id(array)] -= 1
        if not _needed_by[id(array)]:
            del _needed_by[id(array)]
            _sealed.pop(id(array), None)
            array.flags.writeable = True


def changed(arrays: tuple[Array, ...]) -> bool:
    """Whether one of these locked arrays was written to all the same, through a view taken before."""
    return any(_sealed[id(array)] != _checksum(array) for array in arrays if id(array) in _sealed)


def _checksum(array: Array) -> int:
    return zlib.crc32(array.ravel(order="K"))  # a view: what owns its memory has no gaps
