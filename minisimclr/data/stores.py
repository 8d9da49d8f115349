"""The pixels of photos: how one is kept, and where it is found when it is wanted.

A photo is kept at a shorter side of a given length, or as it is if it is smaller. Its pixels follow from the bytes of
the file and from that length alone. So it does not matter where they come from: from the file each time (Files), from
memory (Kept), or from a cache file (cache.py).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import decode
from .find import Entry
from .names import shown

Pixels: TypeAlias = NDArray[np.uint8]  # (H,W,3)
Share: TypeAlias = Callable[[Pixels], Any]  # copies an array into memory that other processes see, too


class CacheError(OSError):
    """A cache that cannot be used: one line that names the file and says what to do."""


class Store(Protocol):
    """A place where the pixels of photos are found."""

    def pixels(self, index: int, at_least: int) -> Pixels:
        """Return a photo, uint8 (H,W,3). Raises: any error, for one that cannot be decoded."""

    def shared(self, share: Share) -> Store:
        """Return the store as other processes are to have it."""


class Files:
    """Photos that are decoded each time that they are wanted; checksums uint32 (N,) of their bytes."""

    def __init__(
        self, entries: Sequence[Entry], checksums: NDArray[np.uint32], sizes: NDArray[np.int64], side: int, most: int
    ) -> None:
        self.entries, self.checksums, self.sizes, self.side, self.most = entries, checksums, sizes, side, most

    def pixels(self, index: int, at_least: int) -> Pixels:
        """Return a photo as it is kept; or of an original, at least `at_least` in its shorter side (0: whole)."""
        data = self.entries[index].read()
        if zlib.crc32(data) != self.checksums[index]:
            raise ValueError("the file was changed after it had been listed")
        height, width = self.sizes[index].tolist()
        return kept(data, height, width, self.side, self.most, at_least)

    def shared(self, share: Share) -> Files:
        """Return the store itself: other processes can read the files."""
        return self


class Kept:
    """Photos that are in memory, one behind the other."""

    def __init__(self, memory: Any, sizes: NDArray[np.int64]) -> None:
        self.memory, self.sizes = memory, sizes
        self.starts = starts_of(sizes)

    def pixels(self, index: int, at_least: int) -> Pixels:
        """Return a photo as it is kept; to make a smaller one would take time and save none."""
        height, width = self.sizes[index]
        data = np.frombuffer(self.memory, np.uint8, 3 * height * width, self.starts[index])
        return data.reshape(height, width, 3)

    def shared(self, share: Share) -> Kept:
        """Return the same photos in memory that is shared."""
        return Kept(share(np.frombuffer(self.memory, np.uint8)), self.sizes)


class Some:
    """Some of the photos of a store, by their numbers there; int64 (M,)."""

    def __init__(self, store: Store, rows: NDArray[np.int64]) -> None:
        self.store, self.rows = store, rows

    def pixels(self, index: int, at_least: int) -> Pixels:
        """Return a photo as the store does."""
        return self.store.pixels(int(self.rows[index]), at_least)

    def shared(self, share: Share) -> Some:
        """Return the same photos of the store as other processes are to have it."""
        return Some(self.store.shared(share), self.rows)


def starts_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each photo begins if all lie one behind the other, int64 (N+1,), in bytes; the last is the end."""
    starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])
    return starts


# ── From the bytes of a file ──────────────────────────────────────────────────────────────────────


def kept_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width of a photo as it is kept; side 0 keeps every pixel.

    >>> kept_size(3000, 4000, 128), kept_size(75, 100, 128), kept_size(3000, 4000, 0)
    ((128, 171), (75, 100), (3000, 4000))
    """
    shorter = min(height, width)
    if not side or shorter <= side:
        return height, width
    return max(1, round(height * side / shorter)), max(1, round(width * side / shorter))


def kept(
    data: bytes | bytearray, height: int, width: int, side: int, most: int, at_least: int = 0, remarks: Any = None
) -> Pixels:
    """Decode a file to the pixels that are kept of it, uint8 (height,width,3).

    An original (side 0) may be smaller, if it is a JPEG: it can be decoded at a half, a quarter or an eighth.
    """
    pixels: Pixels = decode.pixels(data, (min(height, width) if side else at_least) or None, most, remarks)
    if not side or pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))  # antialiased


def central_square(pixels: Pixels, size: int) -> Pixels:
    """Resize the central square of an image, bilinear and antialiased: uint8 (H,W,3) -> (size,size,3)."""
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    left, top, side = max(0, width - height) / 2, max(0, height - width) / 2, min(width, height)
    square = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=square))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Pillow, which warns of large and odd files; what matters is named by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, safe to print."""
    return shown(" ".join(str(error).split())) or type(error).__name__
