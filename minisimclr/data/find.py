"""The images of a folder or a zip file: found, and parted into splits and classes.

Nothing is decoded here, and a file is opened only when it is read. Files are untrusted: no link is followed out of the
folder unless that is asked for, no name is trusted, and pipes and devices are not opened. What is left out is counted
by cause and said in one line.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..storage import open_regular
from .archive import MAX_FILE_BYTES, Archive, Member
from .classes import class_numbers, few
from .dataset import DataError
from .labels import LISTS, listed, relabel
from .left_out import FORMATS, LINK, NOWHERE, OUTPUT, SPECIAL, LeftOut, folder_is_no_data, why_not
from .names import Layout, Report, understood
from .reading import Reading
from .splits import Name

MAX_ENTRIES = 3_000_000  # files and folders that are looked at; links that lead round and round are so many
RUN = {"config.json", "metrics.jsonl"}  # the files by which one knows the folder of a run


class Entry(NamedTuple):
    """An image file: its name below the source, as parts, and the source. It can be sent to other processes."""

    parts: Name
    source: Folder | Archive
    key: Member | None = None

    @property
    def name(self) -> str:
        """The name below the source, with "/" between the parts."""
        return "/".join(self.parts)

    def read(self) -> bytes | bytearray:
        """Read the whole file. Raises: ValueError for a file that is refused; OSError if reading fails."""
        return self.source.read(self.parts if self.key is None else self.key)  # type: ignore[arg-type]


class Folder(NamedTuple):
    """A folder, by its path."""

    path: Path

    def read(self, parts: Name) -> bytes:
        """Read a file below the folder."""
        with os.fdopen(open_regular(self.path.joinpath(*parts), MAX_FILE_BYTES), "rb") as file:
            return file.read()


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by name."""

    entries: list[Entry]
    labels: NDArray[np.int64]  # (N,) indices into class_names; all 0 without labels
    class_names: tuple[str, ...]  # the same for all splits that have labels; ("unlabelled",) for one that has none
    split: str  # its name, as it was found

    @property
    def names(self) -> list[str]:
        """The name of each image below the source."""
        return [entry.name for entry in self.entries]

    @property
    def labelled(self) -> bool:
        """True if the images have labels."""
        return self.class_names != ("unlabelled",)


@dataclass(frozen=True)
class Found:
    """All that was found in a source: the images, how their names are understood, and what was left out."""

    path: Path
    entries: list[Entry]
    layout: Layout
    left: LeftOut

    @cached_property
    def _classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        return class_numbers(self.layout)

    def listing(self, split: str) -> Listing:
        """Return the images of one split. Raises: DataError if there is no such split, or no image in it."""
        name = self.layout.find(split, self.path)
        images = self.layout.splits[name]
        if not images:
            raise DataError(f"{self.path}: no images in split {split!r}; add images or make split folders")
        label_of, class_names = self._classes
        if not self.layout.has_labels(name):
            label_of, class_names = {"": 0}, ("unlabelled",)
        labels = np.array([label_of[folder] for folder in images.values()], np.int64)
        return Listing([self.entries[k] for k in images], labels, class_names, name)

    def say(self, report: Report) -> None:
        """Report how the names were understood, and in one line what was left out."""
        _ = self._classes  # adds to what is to be said
        for line in dict.fromkeys([*self.left.said, *self.layout.said]):
            report(f"{self.path}: {line}")
        if self.left.counts:
            splits = ", ".join(f"{few([name])} {len(images):,}" for name, images in self.layout.splits.items())
            report(f"{self.path}: {sum(map(len, self.layout.splits.values())):,} images ({splits}); {self.left.line()}")


def found(path: Path, reading: Reading, *, keep_names: bool = False) -> Found:
    """Find the images of a source, and their splits and classes.

    Raises: DataError for anything that cannot be used, or can be understood in two ways; OSError if reading fails.
    """
    left = LeftOut(keep_names)
    entries = sorted(_entries(path, reading, left), key=lambda entry: entry.parts)
    entries = _without_doubles(entries, left)
    if not entries:
        because = f"; {left.line()}" if left.counts else ""
        raise DataError(f"{path}: no images found (of {', '.join(FORMATS)}){because}")
    layout = understood([entry.parts for entry in entries], path, reading)
    if reading.labels != "folders":
        relabel(layout, path, reading.labels)
    for k, cause in layout.outside.items():
        left.add(cause, entries[k].parts)
    return Found(path, entries, layout, left)


def listing(path: Path, split: str, reading: Reading, report: Report) -> Listing:
    """Return the images of one split, and say what was left out. Raises: what `found` and its `listing` raise."""
    everything = found(path, reading)
    images = everything.listing(split)
    everything.say(report)
    return images


# ── Finding files ─────────────────────────────────────────────────────────────────────────────────


def _entries(path: Path, reading: Reading, left: LeftOut) -> Iterator[Entry]:
    """List the images in a folder or a zip file, in any order."""
    if path.is_dir():
        root = path.resolve()
        if set(os.listdir(root)) >= RUN:
            raise DataError(f"{path}: the folder of a run, whose pictures are no data; name a folder of images")
        source = Folder(root)
        yield from (Entry(parts, source) for parts in _files(root, reading.follow_links, left))
    elif path.suffix.lower() in LISTS and path.is_file():
        source = Folder(path.resolve().parent)
        yield from (Entry(parts, source) for parts in listed(path, reading.follow_links, left))
    elif not path.exists():
        raise DataError(f'{path}: no such folder or zip file (or say "doodles" for the built-in images)')
    elif not path.is_file():  # a pipe would wait for ever, and a device has no end
        raise DataError(f"{path}: neither a folder nor a zip file")
    else:
        archive = Archive(path.resolve())
        yield from (Entry(parts, archive, member) for parts, member in archive.members(left))


def _files(root: Path, follow: bool, left: LeftOut) -> Iterator[Name]:
    """Find the images below a folder. With `follow`, links are followed, but never into a folder that holds them."""
    # each folder with those that it is in, and why what it holds is no data
    waiting: list[tuple[Name, frozenset[Any], str]] = [((), frozenset(), "")]
    count = 0
    while waiting:
        here, above, because = waiting.pop()
        with os.scandir(root.joinpath(*here)) as items:  # an unreadable folder is an error, not an empty one
            names = sorted(items, key=lambda item: item.name)
        if here and {item.name for item in names} >= RUN:
            because = because or OUTPUT
        for item in names:
            count += 1
            if count > MAX_ENTRIES:
                raise DataError(f"{root}: more than {MAX_ENTRIES:,} files and folders")
            parts = (*here, item.name)
            kind = _kind(item, root, follow)
            if kind == "folder":
                inside = above if not follow else above | {_identity(root.joinpath(*here))}
                if follow and _identity(item.path) in inside:
                    left.add(NOWHERE, parts)
                else:
                    waiting.append((parts, inside, because or folder_is_no_data(item.name)))
            elif cause := because or (kind if kind in (LINK, NOWHERE) else "") or why_not(parts) or kind:
                left.add(cause, parts)
            else:
                yield parts


def _kind(item: os.DirEntry[str], root: Path, follow: bool) -> str:
    """Return "" for a file, "folder" for a folder, or why the item is neither."""
    try:
        if item.is_symlink():
            target = os.stat(item.path)  # raises if the link is broken or loops
            if not follow and (stat.S_ISDIR(target.st_mode) or not Path(item.path).resolve().is_relative_to(root)):
                return LINK
            mode = target.st_mode
        elif item.is_dir(follow_symlinks=False):
            return "folder"
        else:
            return "" if item.is_file(follow_symlinks=False) else SPECIAL
    except OSError:
        return NOWHERE
    return "folder" if stat.S_ISDIR(mode) else "" if stat.S_ISREG(mode) else SPECIAL


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _without_doubles(entries: list[Entry], left: LeftOut) -> list[Entry]:
    """Keep one of several members of the same name: the last one, as unpacking does."""
    kept = [entry for entry, after in zip(entries, [*entries[1:], None]) if after is None or entry.parts != after.parts]
    for entry, after in itertools.pairwise(entries):
        if entry.parts == after.parts:
            left.add("members of the same name as another", entry.parts)
    return kept
