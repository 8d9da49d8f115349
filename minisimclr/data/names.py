"""From the names of image files to the split and the class of each.

A name is the path of a file below its source, as parts: `train/cat/1.jpg` is ("train", "cat", "1.jpg"). Names are
untrusted: they are compared and shown, never opened from here. `load_dataset` describes the layouts. A name that can
be read in two ways is not guessed at: the error says which reading was tried, and which option settles it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from .dataset import DataError
from .reading import Reading
from .splits import FILLERS, Name, Names, chosen, doubts, parts_joined, role, roles, without_masks, words_of

HELD_OUT = 10  # one image in ten is a test image, if no folders decide
HELD = "held-out"  # the split that --test-split asks for where the folders have none to test on
UNLABELLED = "unlabelled"  # the one class of a split without labels

Report: TypeAlias = Callable[[str], None]


@dataclass
class Layout:
    """The names, understood: which image is in which split and class.

    names      of the images
    splits     name of the split -> number of an image -> the folder of its class, "" where there is none
    roles      name of the split -> train, val, test or unlabeled
    outside    number of an image that is in no split or no class -> why
    said       the remarks on the reading
    by_folder  False if there are no split folders
    """

    names: list[Name]
    splits: dict[str, dict[int, str]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    outside: dict[int, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    by_folder: bool = False

    def add(self, split: str, part: str, below: Names) -> None:
        """Add the images of a split: those in a class folder, or all if none is."""
        labelled = any(len(parts) > 1 for parts in below.values())
        images = self.splits.setdefault(split, {})
        self.roles[split] = part
        self.said += doubts(below) if part == "train" else []
        for k, parts in below.items():
            if len(parts) > 1 or not labelled:
                images[k] = parts[0] if labelled else ""
            else:
                self.outside[k] = "outside the class folders"

    def part_by(self, split_of: dict[int, str]) -> None:
        """Part the images into other splits, as a table says; those of which it says nothing are in none."""
        images = {k: folder for part in self.splits.values() for k, folder in part.items()}
        self.outside |= dict.fromkeys(images.keys() - split_of.keys(), "without a split in the table")
        self.splits, self.by_folder = {name: {} for name in sorted(set(split_of.values()))}, True
        self.roles = {name: role(name) for name in self.splits}
        for k in sorted(split_of.keys() & images.keys()):
            self.splits[split_of[k]][k] = images[k]

    def has_labels(self, split: str) -> bool:
        """Return True if the images of a split are in class folders."""
        return any(self.splits[split].values())

    def find(self, split: str, path: Path) -> str:
        """Return the name of the one split that `split` means. Raises: DataError if there is none, or more than one."""
        found = chosen(split, self.roles.items())
        if len(found) > 1:
            raise DataError(f"{path}: split {split!r} may be {' or '.join(map(shown, found))}; say which by its name")
        if found:
            return found[0]
        there = ", ".join(map(shown, self.splits))
        if self.by_folder:
            raise DataError(f"{path}: no split {split!r}; there are: {there}; --split and --test-split choose")
        if split == HELD:
            return self.find("test", path)  # it is one already
        why = "no split folders" if "test" in self.splits else "only one class, so there is nothing to evaluate"
        raise DataError(f"{path}: no split {split!r}: it has {why}; there are: {there}")


def understood(names: Iterable[Name], path: Path, reading: Reading) -> Layout:
    """Find the splits and the classes in the names of the images, which are not empty.

    Raises: DataError if the names can be read in two ways.
    """
    names = list(names)
    layout = Layout(names)
    below = dict(enumerate(names))
    if reading.layout in ("auto", "splits"):
        below = without_masks(below, layout.outside)
    below = _unwrapped(below, stop_at_splits=reading.layout in ("auto", "splits"))
    if reading.layout == "auto":
        below = parts_joined(_split_first(below, layout.said), layout.said)
    folders = _split_folders(below, path, reading.layout, layout.said)
    if folders:
        _by_folder(layout, below, folders)
        if reading.test_split == HELD:
            _set_apart(layout, layout.find(reading.split, path))
    elif reading.test_split == HELD and reading.labels == "folders" and len(_tops(below)) < 2:
        raise DataError(f"{path}: no labels to test with; --labels takes them from file names or from a CSV file")
    else:
        flat = reading.layout == "flat" or reading.labels != "folders"
        _by_hash(layout, {k: parts[-1:] for k, parts in below.items()} if flat else below, reading.labels != "folders")
    return layout


# ── Find the splits ───────────────────────────────────────────────────────────────────────────────


def _unwrapped(below: Names, stop_at_splits: bool = True) -> Names:
    """Leave out folders that hold all images, and so tell nothing apart: `photos.zip` often has `photos/cats/1.jpg`."""
    first = next(iter(below.values()))[0]
    while not (stop_at_splits and role(first)) and all(
        len(parts) > 1 and parts[0] == first for parts in below.values()
    ):
        below = {k: parts[1:] for k, parts in below.items()}
        first = next(iter(below.values()))[0]
    return below


def _split_first(below: Names, said: list[str]) -> Names:
    """Return the names with the split before the class, if all of them have it behind: `cat/train/1.jpg`."""
    seconds = {parts[1] if len(parts) > 2 else "" for parts in below.values()}
    if len({role(second) for second in seconds}) < 2 or not all(map(role, seconds)):
        return below
    said.append("the folders inside the classes are read as splits; --layout classes reads them as parts of the class")
    return {k: (parts[1], parts[0], *parts[2:]) for k, parts in below.items()}


def _tops(below: Names) -> set[str]:
    """Collect the folders at the top."""
    return {parts[0] for parts in below.values() if len(parts) > 1}


def _split_folders(below: Names, path: Path, layout: str, said: list[str]) -> dict[str, str]:
    """Find the folders at the top that stand for splits, and the role of each.

    A class may be called "train". So folders of such names are splits only if all folders at the top are, if two of
    them play different roles, or if they hold classes and their siblings do not look like classes.

    Raises: DataError if one cannot tell.
    """
    tops = _tops(below)
    found = roles(sorted(tops))
    if layout in ("classes", "flat") or not found:
        if layout == "splits":
            raise DataError(f"{path}: no folder at the top has the name of a split, such as train or test")
        return {}
    others = tops - found.keys()
    if layout == "splits" or not others or len(set(found.values())) > 1:
        return found
    inside = {parts[1] for parts in below.values() if parts[0] in found and len(parts) > 2}  # classes of the split
    if not inside:
        return {}
    images = Counter(parts[0] for parts in below.values() if len(parts) > 1)
    held, beside = sum(images[top] for top in found), sum(images[top] for top in others)
    known = {parts[1] for parts in below.values() if parts[0] in others and len(parts) > 2} & inside
    if known or 2 * beside < held:
        return found
    names, siblings = ", ".join(map(shown, sorted(found))), ", ".join(map(shown, sorted(others)[:3]))
    if len(others) > 1 and beside >= held:
        said.append(f"{names} is read as a class, like {siblings} beside it; --layout splits reads it as a split")
        return {}
    raise DataError(
        f"{path}: {names} may be a split, or a class like {siblings} beside it; --layout splits or --layout classes"
    )


# ── Find the images of each split, and their classes ──────────────────────────────────────────────


def _by_folder(layout: Layout, below: Names, folders: dict[str, str]) -> None:
    """Take what lies in the folder of each split."""
    layout.by_folder = True
    inside: dict[str, Names] = {}
    for k, parts in below.items():
        if parts[0] in folders and len(parts) > 1:
            inside.setdefault(parts[0], {})[k] = parts[1:]
        else:
            layout.outside[k] = "outside the split folders"
    by_lower: dict[str, str] = {}
    for top in sorted(inside):  # "Train" and "train" are one split
        first = by_lower.setdefault(top.casefold(), top)
        layout.add(first, folders[top], _without_wrappers(top, inside[top]))


def _without_wrappers(top: str, below: Names) -> Names:
    """Leave out a folder that holds the whole split and is no class: `seg_test/seg_test/…`, `train/images/…`."""
    while True:
        first = next(iter(below.values()))[0]
        says_nothing = first == top or role(first) or set(words_of(first)) <= FILLERS != set()
        if not (says_nothing and all(len(parts) > 1 and parts[0] == first for parts in below.values())):
            return below
        below = {k: parts[1:] for k, parts in below.items()}


def _set_apart(layout: Layout, split: str) -> None:
    """Make a tenth of a split, chosen by name, a split of its own."""
    images = layout.splits[split]
    held = {k for k in images if held_out(layout.names[k])}
    layout.splits[split] = {k: folder for k, folder in images.items() if k not in held}
    layout.splits[HELD] = {k: images[k] for k in sorted(held)}
    layout.roles[HELD] = "test"


def _by_hash(layout: Layout, below: Names, labelled: bool = False) -> None:
    """Take a tenth of all images as "test" and the rest as "train"; without classes all are "train"."""
    if labelled:  # by their names, or a table
        held = {k for k, parts in below.items() if held_out(parts)}
        layout.add("train", "train", {k: parts for k, parts in below.items() if k not in held})
        layout.add("test", "test", {k: below[k] for k in sorted(held)})
        return
    if not _tops(below):
        layout.add("train", "train", below)
        return
    stray = {k for k, parts in below.items() if len(parts) < 2}
    held = {k for k, parts in below.items() if k not in stray and held_out(parts)}
    layout.outside |= dict.fromkeys(stray, "outside the class folders")
    elsewhere = held | stray
    layout.add("train", "train", {k: parts for k, parts in below.items() if k not in elsewhere})
    layout.add("test", "test", {k: below[k] for k in sorted(held)})


def held_out(parts: Name) -> bool:
    """Pick a tenth of all images by the hash of the name: added images move none from one side to the other."""
    name = "/".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) % HELD_OUT == 0


def shown(name: str) -> str:
    """Make a name safe to print: control characters could drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
