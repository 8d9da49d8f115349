"""Images from a folder or a zip file: list those of a split, and decode them.

The layout is `[split/]class/…/image.png`; `load_dataset` says how it is understood. A damaged image is named and left
out.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..processor import parallel
from .dataset import DataError, Dataset
from .decode import decode_image
from .find import Entry, listing
from .names import Report, shown
from .reading import Reading

DEFAULT = Reading()
NAMED = 10  # number of unreadable images that are named one by one; the rest are counted
TOLERATED = 10  # number of unreadable images that are left out, or a twentieth of all images if that is more


def load_files(
    path: Path, split: str, size: int, limit: int | None, report: Report, reading: Reading = DEFAULT
) -> Dataset:
    """Load the images of one split, (N,size,size,3), sorted by name.

    Raises: DataError for anything that cannot be used; OSError if reading fails.
    """
    images = listing(path, split, reading, report)
    entries, labels = images.entries, images.labels
    if limit is not None and limit < len(entries):  # evenly spread, so that no class is lost
        kept = [i * len(entries) // limit for i in range(limit)]
        entries, labels = [entries[i] for i in kept], labels[kept]
    readable, pixels = _decode(entries, size, path, report)
    return Dataset(pixels, labels[readable], images.class_names)


# ── Decoding ──────────────────────────────────────────────────────────────────────────────────────


def _decode(entries: list[Entry], size: int, path: Path, report: Report) -> tuple[list[int], NDArray[np.uint8]]:
    """Return the indices of the readable images, and their pixels (N,size,size,3).

    Raises: DataError if the images do not fit in memory, or if too many of them cannot be read.
    """
    try:
        images = np.empty((len(entries), size, size, 3), dtype=np.uint8)
    except MemoryError:
        raise DataError(f"{path}: {len(entries)} images of {size}×{size} pixels do not fit in memory") from None
    unreadable: dict[int, str] = {}  # index of the image -> what is wrong with it
    tolerated = max(TOLERATED, len(entries) // 20)

    def decode(i: int) -> None:
        if len(unreadable) > tolerated:
            return  # the data set is refused anyway, so the rest is not unpacked
        try:
            images[i] = decode_image(io.BytesIO(entries[i].read()), size)
        except Exception as error:  # a decoder may raise anything for hostile bytes
            unreadable[i] = one_line(error)

    with warnings.catch_warnings():  # Pillow warns of large or odd files; what matters is named below
        warnings.simplefilter("ignore")
        parallel(decode, range(len(entries)))

    _name_the_unreadable(entries, unreadable, tolerated, path, report)
    readable = [i for i in range(len(entries)) if i not in unreadable]
    return readable, images[readable] if unreadable else images


def _name_the_unreadable(
    entries: list[Entry], unreadable: dict[int, str], tolerated: int, path: Path, report: Report
) -> None:
    """Report the images that are left out, or raise DataError if they are too many."""
    lines = [f"{shown(entries[i].name)}: {why}" for i, why in sorted(unreadable.items())]
    if len(lines) > tolerated or len(lines) == len(entries):
        count = f"more than {tolerated}" if len(lines) > tolerated else "all"
        raise DataError(f"{path}: {count} of {len(entries)} images cannot be read, such as {'; '.join(lines[:3])}")
    for line in lines[:NAMED]:
        report(f"{path}: skipped {line}")
    if len(lines) > NAMED:
        report(f"{path}: skipped {len(lines) - NAMED} more")


def one_line(error: Exception) -> str:
    """Return the message of an error, safe to print, on one line."""
    return shown(" ".join(str(error).split())) or type(error).__name__
