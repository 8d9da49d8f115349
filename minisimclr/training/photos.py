"""The two views of photos: decoded, cropped from their own pixels, and resized once.

The plain way, `two_views`, takes a batch of images of one size. Photos have a size each, so each crop is drawn within
its own photo, and a batch is a list. All else is the same: the random numbers come from one generator, in the same
order, and the pixels from the same forms. For photos of one size the views are those of `two_views`, up to rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_device
from ..data import Dataset, Reading, load_dataset
from ..nn import method_of
from ..views.augment import make_views
from ..views.parameters import ViewParameters, draw_parameters
from .config import Config

CHUNK = 2**26  # bytes of decoded photos that are held at a time; at 224 pixels 20 photos, at 32 a batch of 1,000


def training_images(config: Config, cache: Path | None = None, report: Callable[[str], None] | None = None) -> Dataset:
    """Load the images that a configuration names; `cache` and `report` are those of `load_dataset`."""
    reading = Reading.from_text(config.reading)
    side, size = config.cache_side, config.size
    return load_dataset(
        config.data, reading.split, size=size, reading=reading, cache_side=side, cache=cache, report=report
    )


def photo_views(
    config: Config, photos: Any, own: Any, share: slice, chosen: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Make two independent random views of each chosen photo, on the device of the configuration.

    `own`, if given, makes them instead: from the central squares, because it takes one array of images. `share` is the
    part of the batch whose views are made; the random numbers of all are drawn.

    Shapes: photos of data/stream.py, chosen int64 (B,) -> a, b float32 (B,size,size,3) in [0,1]
    """
    if own is not None:
        squares = [photos.square(int(k)) for k in chosen[share]]
        views: tuple[Array, Array] = own(to_device(np.stack(squares), config.device), rng)
        return views
    size, sizes = config.size, photos.sizes[chosen]  # (B,2)
    height, width = sizes.T
    settings = (config.strength, config.blur, config.min_area)
    a, b = (draw_parameters(rng, len(chosen), height, width, *settings)[share] for _ in "ab")
    chosen, sizes = chosen[share], sizes[share]
    xp = array_module(to_device(np.empty(0), config.device))
    both = xp.empty((2, len(chosen), size, size, 3), dtype=xp.float32)
    at_least = finest(sizes, a, b, size)
    for part in chunks(sizes):
        pixels = photos.read_all(chosen[part], at_least[part])  # a list of uint8 (H,W,3)
        p = fitted(a[part] + b[part], np.tile(sizes[part], (2, 1)), pixels * 2)
        source = np.tile(np.arange(len(pixels)), 2)  # (2n,) view i shows pixels[source[i]]
        made = make_views(xp, pixels, source, p, size, method_of("views", config.method))
        both[:, part] = made.reshape(2, len(pixels), size, size, 3)
    return both[0], both[1]


def finest(sizes: NDArray[np.int64], a: ViewParameters, b: ViewParameters, size: int) -> NDArray[np.int64]:
    """Return the shorter side, (B,) pixels, that each photo needs, so that no crop of it has fewer than `size` pixels.

    A crop that is smaller than its view needs the whole photo: no more pixels are there.
    """
    shortest = np.minimum.reduce([a.height, a.width, b.height, b.width])  # (B,) side of a crop
    shorter = sizes.min(axis=1)
    needed: NDArray[np.int64] = np.minimum(shorter, -(-shorter * size // shortest))
    return needed


def fitted(p: ViewParameters, sizes: NDArray[np.int64], pixels: list[NDArray[np.uint8]]) -> ViewParameters:
    """Return the parameters with the crops scaled from photos of these sizes to the pixels that were read.

    The two differ where a photo was decoded at a part of its size, and where another one took its place.
    """
    read = np.array([image.shape[:2] for image in pixels])  # (V,2)
    if (read == sizes).all():
        return p
    boxes = {}
    for axis, (start, length) in enumerate((("top", "height"), ("left", "width"))):
        factor, end = read[:, axis] / sizes[:, axis], read[:, axis]
        first = np.minimum(np.rint(getattr(p, start) * factor), end - 1)
        boxes[start] = first.astype(np.int64)
        boxes[length] = np.clip(np.rint(getattr(p, length) * factor), 1, end - first).astype(np.int64)
    return dataclasses.replace(p, **boxes)


def chunks(sizes: NDArray[np.int64]) -> list[slice]:
    """Cut a batch into consecutive parts whose photos take about CHUNK bytes, and at least one photo each."""
    number = np.cumsum(3 * sizes.prod(axis=1)) // CHUNK  # (B,) of the part in which a photo ends
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]
