"""The two views of photos: decoded, cropped from their own pixels, and resized once.

The plain way, `two_views`, takes a batch of images of one size. Photos have a size each, so each crop is drawn within
its own photo, and a batch is a list. All else is the same: the random numbers come from one generator, in the same
order, and the pixels from the same forms. For photos of one size the views are those of `two_views`, up to rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_device
from ..data import Dataset
from ..nn import method_of
from ..values import view_pair
from ..views.augment import Drawn, draw_views, make_views
from .config import Config

CHUNK = 2**26  # bytes of decoded photos that are held at a time; at 224 pixels 20 photos, at 32 a batch of 1,000


class Crops(NamedTuple):
    """Crops of photos, and what is to be done with each of them."""

    rows: NDArray[np.int64]  # (V,) which views of the batch these are, of 2B
    pixels: list[NDArray[np.uint8]]  # V arrays (h,w,3)
    drawn: Any  # the parameters of V views; their boxes are the whole crops


def fingerprint(images: np.ndarray[Any, Any] | Dataset) -> str:
    """Return number and checksum of the images: a run is resumed on what it began with, or not at all."""
    if isinstance(images, Dataset):  # photos know their own, that of their files
        return str(getattr(images, "fingerprint", None) or fingerprint(images.images))
    return f"{len(images)} images, crc32 {zlib.crc32(np.ascontiguousarray(images).data):08x}"


def photo_views(
    config: Config, photos: Any, own: Any, share: slice, chosen: NDArray[np.int64], rng: np.random.Generator
) -> Any:
    """Make two independent random views of each chosen photo, on the device of the configuration.

    `own`, if given, makes them instead: from the central squares, because it takes one array of images. If `own` is
    `cut`, the crops are returned, of which `views_of_crops` makes the views. `share` is the part of the batch whose
    views are made; the random numbers of all are drawn.

    Shapes: photos of data/stream.py, chosen int64 (B,) -> a, b float32 (B,size,size,3) in [0,1]
    """
    if own is cut:  # the rest is done elsewhere
        return cut(config, photos, share, chosen, rng)
    if own is not None:
        squares = [photos.square(int(k)) for k in chosen[share]]
        return view_pair(own(to_device(np.stack(squares), config.device), rng), len(squares))
    return views_of_crops(config, len(chosen[share]), cut(config, photos, share, chosen, rng))


def cut(
    config: Config, photos: Any, share: slice, chosen: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[Crops]:
    """Read the chosen photos and cut the crops of their views, some photos at a time. All of it is done on the host.

    The crops are parts of the photos that were read, no copies. View i of the first half is the first of photo i.
    """
    size, count = config.size, len(chosen[share])
    height, width = photos.sizes[chosen].T  # (B,) each
    settings = (size, config.strength, config.blur, config.min_area)
    drawn = draw_views(rng, config.views, len(chosen), height, width, *settings)
    drawn = drawn[np.arange(2 * len(chosen)).reshape(2, -1)[:, share].ravel()]
    chosen, sizes = chosen[share], photos.sizes[chosen[share]]
    at_least = finest(sizes, drawn, size)
    for part in chunks(sizes):
        pixels = photos.read_all(chosen[part], at_least[part])  # a list of n arrays, uint8 (H,W,3)
        views_of_part = np.arange(2 * count).reshape(2, -1)[:, part].ravel()  # (2n,)
        some = fitted(drawn[views_of_part], np.tile(sizes[part], (2, 1)), pixels * 2)
        places = zip(pixels * 2, some.top, some.left, some.height, some.width, strict=True)
        crops = [photo[y : y + h, x : x + w] for photo, y, x, h, w in places]
        corner = np.zeros(len(crops), np.int64)
        yield Crops(views_of_part, crops, dataclasses.replace(some, top=corner, left=corner))


def views_of_crops(config: Config, count: int, parts: Iterable[Crops]) -> tuple[Array, Array]:
    """Resize the crops of a batch and change their colours, on the device of the configuration.

    Shapes: parts of 2B crops -> a, b float32 (B,size,size,3) in [0,1]
    """
    xp, method = array_module(to_device(np.empty(0), config.device)), method_of("views", config.method)
    both = xp.empty((2 * count, config.size, config.size, 3), dtype=xp.float32)
    for rows, crops, drawn in parts:
        both[xp.asarray(rows)] = make_views(xp, crops, np.arange(len(crops)), drawn, config.size, method)
    return both[:count], both[count:]


# ── How fine a photo must be, and what follows if it comes in another size ────────────────────────


def finest(sizes: NDArray[np.int64], drawn: Drawn, size: int) -> NDArray[np.int64]:
    """Return the shorter side, (B,) pixels, that each photo needs, so that no crop of it has fewer than `size` pixels.

    A crop that is smaller than its view needs the whole photo: no more pixels are there.

    Shapes: sizes (B,2); 2B views drawn
    """
    shortest = np.minimum(drawn.height, drawn.width).reshape(2, -1).min(axis=0)  # (B,) side of a crop
    shorter = sizes.min(axis=1)
    needed: NDArray[np.int64] = np.minimum(shorter, -(-shorter * size // shortest))
    return needed


def fitted(drawn: Drawn, sizes: NDArray[np.int64], pixels: list[NDArray[np.uint8]]) -> Drawn:
    """Return the views with the crops scaled from photos of these sizes to the pixels that were read.

    The two differ where a photo was decoded at a part of its size, and where another one took its place.
    """
    read = np.array([image.shape[:2] for image in pixels])  # (V,2)
    if (read == sizes).all():
        return drawn
    factor, end = (read / sizes).T, read.T  # (2,V) rows, columns
    start, length = np.stack([drawn.top, drawn.left, drawn.height, drawn.width]).reshape(2, 2, -1)  # (2,V) each
    first = np.minimum(np.rint(start * factor), end - 1)
    last = np.clip(np.rint(length * factor), 1, end - first)
    (top, left), (height, width) = first.astype(np.int64), last.astype(np.int64)
    return dataclasses.replace(drawn, top=top, left=left, height=height, width=width)


def chunks(sizes: NDArray[np.int64]) -> list[slice]:
    """Cut a batch into consecutive parts whose photos take about CHUNK bytes, and at least one photo each."""
    number = np.cumsum(3 * sizes.prod(axis=1)) // CHUNK  # (B,) of the part in which a photo ends
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(sizes)]
    return [slice(first, last) for first, last in itertools.pairwise(cuts)]
