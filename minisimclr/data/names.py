"""From the names of image files to the split and the class of each.

A name is the path of a file below its source, as parts: `train/cat/1.jpg` is ("train", "cat", "1.jpg"). Names are
untrusted: they are compared and shown, never opened from here. `load_dataset` describes the layouts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from .dataset import DataError

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "unlabeled", "unlabelled"}
HELD_OUT = 10  # one image in ten is a test image, if no folders decide

Name: TypeAlias = tuple[str, ...]
Names: TypeAlias = dict[int, Name]  # number of an image -> its name without the folders that were understood already
Report: TypeAlias = Callable[[str], None]


def choose_split(
    names: Iterable[Name], split: str, path: Path, report: Report
) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """Return (number of the image, label) for the images of a split, and the names of the classes.

    Raises: DataError if the source has no such split, or no images in it.
    """
    below = _unwrapped(dict(enumerate(names)))
    folders = _split_folders(below)
    if folders:
        below, classes = _by_folder(below, folders, split, path, report)
    else:
        below, classes = _by_hash(below, split, path)
    chosen, classes = _labels(below, classes, path, report)
    if not chosen:
        raise DataError(f"{path}: no images in split {split!r}; add images or make split folders")
    return chosen, tuple(map(shown, classes))


# ── Find the splits ───────────────────────────────────────────────────────────────────────────────


def _unwrapped(below: Names) -> Names:
    """Leave out folders that hold all images, and so tell nothing apart: `photos.zip` often has `photos/cats/1.jpg`."""
    first = next(iter(below.values()))[0]
    while first.lower() not in SPLIT_NAMES and all(len(parts) > 1 and parts[0] == first for parts in below.values()):
        below = {k: parts[1:] for k, parts in below.items()}
        first = next(iter(below.values()))[0]
    return below


def _tops(below: Names) -> set[str]:
    """Collect the folders at the top."""
    return {parts[0] for parts in below.values() if len(parts) > 1}


def _split_folders(below: Names) -> set[str]:
    """Find the folders at the top that stand for splits.

    A class may be called "train". So a folder of that name is a split only if it holds classes, or if all folders
    at the top have the names of splits.
    """
    tops = _tops(below)
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    holding_classes = any(parts[0] in splits and len(parts) > 2 for parts in below.values())
    return splits if holding_classes or splits == tops else set()


# ── Find the images of one split, and the classes ─────────────────────────────────────────────────


def _by_folder(below: Names, folders: set[str], split: str, path: Path, report: Report) -> tuple[Names, list[str]]:
    """Select what lies in the folder of a split; the classes are those of all splits, so that labels agree."""
    if split.lower() not in {folder.lower() for folder in folders}:
        raise DataError(f"{path}: no split {split!r}; there are: {', '.join(map(shown, sorted(folders)))}")
    stray = sum(parts[0] not in folders for parts in below.values())
    if stray:
        report(f"{path}: {stray} images outside the split folders were left out")
    classes = {parts[1] for parts in below.values() if parts[0] in folders and len(parts) > 2}
    inside = {k: parts[1:] for k, parts in below.items() if len(parts) > 1 and parts[0].lower() == split.lower()}
    return inside, sorted(classes)


def _by_hash(below: Names, split: str, path: Path) -> tuple[Names, list[str]]:
    """Select a tenth of all images as "test" and the rest as "train"; without classes all are "train"."""
    classes = sorted(_tops(below))
    offered = ("train", "test") if classes else ("train",)
    if split not in offered:
        why = "no split folders" if classes else "only one class, so there is nothing to evaluate"
        raise DataError(f"{path}: no split {split!r}: it has {why}; there are: {', '.join(offered)}")
    if classes:
        below = {k: parts for k, parts in below.items() if _held_out(parts) == (split == "test")}
    return below, classes


def _held_out(parts: Name) -> bool:
    """Pick a tenth of all images by the hash of the name: added images move none from one side to the other."""
    name = "/".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) % HELD_OUT == 0


def _labels(below: Names, classes: list[str], path: Path, report: Report) -> tuple[list[tuple[int, int]], list[str]]:
    """Give each image the label of its class folder; if no image is in one, all are of one class."""
    labelled = {k: parts for k, parts in below.items() if len(parts) > 1}
    if not labelled:
        return [(k, 0) for k in below], ["unlabelled"]
    if len(labelled) < len(below):
        report(f"{path}: {len(below) - len(labelled)} images outside the class folders were left out")
    label_of = {name: label for label, name in enumerate(classes)}
    return [(k, label_of[parts[0]]) for k, parts in labelled.items()], classes


def shown(name: str) -> str:
    """Make a name safe to print: control characters could drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
