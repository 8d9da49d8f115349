"""The images: built-in doodles, or your own from a folder or a zip file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ..values import shown, text, whole
from .dataset import DataError, Dataset
from .reading import Reading

__all__ = ["DataError", "Dataset", "Reading", "load_dataset", "splits_of"]


def load_dataset(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 32,
    limit: int | None = None,
    report: Callable[[str], None] | None = None,
    reading: Reading | None = None,
) -> Dataset:
    """Load the images of a split: uint8 (N,size,size,3), always the same ones in the same order.

    `source` is "doodles" (splits "train", "test", and "unseen": a style that training never shows),
    or the path of a folder or a zip file with PNG, JPEG, WebP or BMP images in one of these layouts:

        train/cat/1.jpg, test/cat/2.jpg     the split folders decide
        cat/1.jpg, dog/2.jpg                "test" is a tenth, chosen by name; "train" is the rest
        1.jpg, 2.jpg                        for pre-training only: all are "train", of one class

    Images of another size are resized (the shorter side) and cropped at the centre. To train on random crops of a large
    `size`, load somewhat larger images. `limit` keeps that many images, evenly spread. An unreadable image is left out,
    and `report` is called with a line that names it (default: print to stderr).

    >>> data = load_dataset("doodles", "test", limit=20)
    >>> data.images.shape, data.class_names[data.labels[0]]
    ((20, 32, 32, 3), 'umbrella')

    Raises: DataError for what cannot be used; OSError if reading fails; ValueError for a size or limit below 1.
    """
    size, limit = whole("size", size, 1), None if limit is None else whole("limit", limit, 1)
    text("split", split)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a name or a path, not {shown(source)}")
    # Both sources are imported where they are used: Pillow, zip files and the drawings would be a tenth of the time
    # that `import minisimclr` takes.
    if source == "doodles":
        from .doodles import load_doodles

        return load_doodles(split, size, limit)
    from .files import load_files

    return load_files(Path(source), split, size, limit, report or _to_stderr, reading or Reading())


def splits_of(source: str | os.PathLike[str], reading: Reading | None = None) -> dict[str, tuple[str, bool]]:
    """Return the splits of a source: the role of each (train, val, test or unlabeled), and whether it has labels.

    >>> splits_of("doodles")["test"]
    ('test', True)

    Raises: what `load_dataset` raises.
    """
    if source == "doodles":
        return {"train": ("train", True), "test": ("test", True), "unseen": ("", True)}
    from .find import found

    layout = found(Path(source), reading or Reading()).layout
    return {name: (layout.roles[name], layout.has_labels(name)) for name in layout.splits}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
