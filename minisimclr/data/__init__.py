"""The images: built-in doodles, or your own from a folder or a zip file."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..values import shown, text, whole
from ..views import check_images
from .dataset import DataError, Dataset
from .reading import Reading

__all__ = ["DataError", "Dataset", "Reading", "load_dataset", "marked", "sound", "splits_of", "squares_of", "taken"]


def load_dataset(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 32,
    limit: int | None = None,
    report: Callable[[str], None] | None = None,
    reading: Reading | None = None,
    cache_side: int = -1,
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load the images of a split: uint8 (N,size,size,3), always the same ones in the same order.

    `source` is "doodles" (splits "train", "test", and "unseen": a style that training never shows),
    or a data set of arrays (.npz, or the folders of CIFAR, STL-10 and MNIST: docs/data.md), or the path of a folder or
    a zip file with images (PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF) in one of these layouts:

        train/cat/1.jpg, test/cat/2.jpg     the split folders decide, under any of their usual names
        cat/1.jpg, dog/2.jpg                "test" is a tenth, chosen by name; "train" is the rest
        1.jpg, 2.jpg                        for pre-training only: all are "train", of one class

    `limit` keeps that many images, evenly spread. An unreadable image is left out, and `report` is called with a line
    that names it (default: print to stderr).

    The `images` are the central squares of the files, uint8 (N,size,size,3). Photos are files larger than 96 pixels, or
    of several sizes. They are also kept for random crops, at a shorter side of `cache_side` pixels: −1 for 4·size, 0
    for every pixel, −2 for the squares alone. They are in memory, or if they do not fit, decoded each time; with a path
    `cache` they are decoded once, into that file. `read(index)` returns one of them.

    >>> data = load_dataset("doodles", "test", limit=20)
    >>> data.images.shape, data.class_names[data.labels[0]]
    ((20, 32, 32, 3), 'umbrella')

    Raises: DataError for what cannot be used; OSError if reading fails; ValueError for a size or limit below 1.
    """
    size, limit = whole("size", size, 1), None if limit is None else whole("limit", limit, 1)
    text("split", split)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a name or a path, not {shown(source)}")
    options = {
        "report": report or _to_stderr,
        "reading": reading or Reading(),
        "cache_side": whole("cache_side", cache_side, -2),
        "cache": None if cache is None else Path(cache),
    }
    if not (path := os.fspath(source)):
        raise DataError('the data have an empty name; "." is the folder in which you are')
    try:
        return _reader_of(path, options)(split, size, limit)
    except OSError as error:
        if error.errno and error.filename is None:  # a disk that fails in the midst of a file names none
            error.filename = path
        raise


def _reader_of(source: str, options: dict[str, Any]) -> Callable[[str, int, int | None], Dataset]:
    """Return the function that reads a source: the drawings, arrays, or files of images, which alone have options."""
    # Each is imported where it is used: Pillow, zip files and the drawings would be a tenth of the time that
    # `import minisimclr` takes.
    if source == "doodles":
        from .doodles import load_doodles

        return load_doodles
    from .files import load_files
    from .formats import arrays_of, known_folder, load_arrays

    path = Path(known_folder(source))
    arrays = arrays_of(path)
    return (
        partial(load_files, path, **options)
        if arrays is None
        else partial(load_arrays, path, arrays, options["report"])
    )


def taken(images: Any) -> Any:
    """Return images as an array, uint8 (N,H,W,3), or as photos, which are read one by one; both have a length.

    Raises: TypeError if they are neither; ValueError for a wrong shape, and for a data set without a label for each
            image.
    """
    if isinstance(images, Dataset):
        if type(images) is not Dataset:
            return images
        if len(images.labels) != len(images.images):
            raise DataError(f"{len(images.images)} images have {len(images.labels)} labels; give one for each image")
        images = images.images
    check_images(images)
    return images


def squares_of(data: Dataset) -> Any:
    """Return the images of a data set as one array; or photos whose squares take more than a GiB, to be cut like one.

    >>> squares_of(Dataset(np.zeros((2, 8, 8, 3), np.uint8), np.array([1, 0]), ("cat", "dog"))).shape
    (2, 8, 8, 3)

    Raises: DataError if more photos than are tolerated cannot be decoded.
    """
    return data.images if type(data) is Dataset else data.as_images()  # type: ignore[attr-defined]


def sound(data: Dataset, *matrices: Any) -> tuple[Any, ...]:
    """Return a data set without the photos that could not be decoded, then matrices without their rows, (N,…) each.

    Raises: DataError if none is left.
    """
    bad = getattr(data, "unreadable", {})
    if not bad:
        return (data, *matrices)
    good = np.array([k for k in range(len(data)) if k not in bad], np.int64)
    if not len(good):
        raise DataError(f"none of {len(data):,} images can be decoded")
    return (data.only(good), *(matrix[good] for matrix in matrices))  # type: ignore[attr-defined]


def marked(images: Any, rows: Any) -> Any:
    """Return the rows with NaN for each photo that could not be decoded; an array of images has none."""
    rows[list(getattr(images, "unreadable", ()))] = math.nan
    return rows


def splits_of(source: str | os.PathLike[str], reading: Reading | None = None) -> dict[str, tuple[str, bool]]:
    """Return the splits of a source: the role of each (train, val, test or unlabeled), and whether it has labels.

    >>> splits_of("doodles")["test"]
    ('test', True)

    Raises: what `load_dataset` raises.
    """
    from .formats import arrays_of, known_folder, plainly

    if source == "doodles":
        return {"train": ("train", True), "test": ("test", True), "unseen": ("", True)}
    from .find import found
    from .splits import role

    path = Path(known_folder(os.fspath(source)))
    if arrays := arrays_of(path):
        with plainly(path):
            return {name: (role(name), part.labels() is not None) for name, part in arrays[0].items()}
    layout = found(path, reading or Reading()).layout
    # Of very few images none is in the test split: it is then no split.
    return {name: (layout.roles[name], layout.has_labels(name)) for name, images in layout.splits.items() if images}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
