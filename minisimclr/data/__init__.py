"""The images: built-in doodles, or your own from a folder or a zip file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from .dataset import DataError, Dataset
from .doodles import CLASS_NAMES, TRAINING_STYLES, UNSEEN_STYLE, draw_doodles
from .files import load_files

__all__ = ["DataError", "Dataset", "load_dataset"]

# split -> how many images, from which seed, in which styles
DOODLES = {
    "train": (5000, 0, TRAINING_STYLES),
    "test": (1000, 1, TRAINING_STYLES),
    "unseen": (1000, 2, (UNSEEN_STYLE,)),
}


def load_dataset(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int = 32,
    limit: int | None = None,
    report: Callable[[str], None] | None = None,
) -> Dataset:
    """Load the images of a split: uint8 (N,size,size,3), always the same ones in the same order.

    `source` is "doodles" (splits "train", "test", and "unseen": a style that training never shows),
    or the path of a folder or a zip file with PNG, JPEG, WebP or BMP images in one of these layouts:

        train/cat/1.jpg, test/cat/2.jpg     the split folders decide
        cat/1.jpg, dog/2.jpg                "test" is a tenth, chosen by name; "train" is the rest
        1.jpg, 2.jpg                        for pre-training only: all are "train", of one class

    Other sizes are resized (the shorter side) and cropped at the centre. To train on random crops of
    a large `size`, load somewhat larger images. `limit` keeps that many images, evenly spread.
    An unreadable image is left out, and `report` is called with a line that names it (default:
    print to stderr). Raises DataError for anything that cannot be used, OSError if reading fails.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if source != "doodles":
        return load_files(Path(source), split, size, limit, report or _to_stderr)
    if split not in DOODLES:
        raise DataError(f"doodles: no split {split!r}; there are: {', '.join(DOODLES)}")
    count, seed, styles = DOODLES[split]
    images, labels, _ = draw_doodles(min(count, limit or count), seed=seed, styles=styles, size=size)
    return Dataset(images, labels, CLASS_NAMES)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
