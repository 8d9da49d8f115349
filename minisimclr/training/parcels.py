"""Parcels: what a worker puts into a slot of the memory that it shares with the training.

A parcel holds the two views of a step. Or it holds crops of photos, as many as there is room for: their sizes follow
from what was drawn, and memory for the largest possible crops of a batch would be ten times that of its views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .photos import Crops

NOTHING = Crops(np.empty(0, np.int64), [], None)  # behind the last parcel of a step


def parcels_of(views: Callable[[int], Any], step: int, room: int) -> Iterator[Crops]:
    """Give the two views of a step; or its crops, as many at a time as there is room for, in bytes."""
    made = views(step)
    if isinstance(made, tuple):
        yield Crops(np.empty(0, np.int64), list(made), None)
        return
    for rows, pixels, drawn in made:
        ends, first = np.cumsum([crop.nbytes for crop in pixels]), 0
        while first < len(pixels):
            most = ends[first] - pixels[first].nbytes + room
            some = slice(first, max(first + 1, int(np.searchsorted(ends, most, "right"))))
            yield Crops(rows[some], pixels[some], drawn[some])
            first = some.stop


def laid_out(memory: NDArray[np.uint8], kind: Any, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[Any]]:
    """Return arrays that lie one behind the other in memory."""
    ends = np.cumsum([0] + [math.prod(shape) * kind.itemsize for shape in shapes]).tolist()
    return [memory[ends[k] : ends[k + 1]].view(kind).reshape(shape) for k, shape in enumerate(shapes)]


def shared_array(shared: Any, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return shared memory as an array."""
    return np.frombuffer(shared, dtype).reshape(shape)
