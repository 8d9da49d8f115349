"""Images from a folder or a zip file: find them, choose the split, decode.

The layout is `[split/]class/…/image.png`; `load_dataset` says how it is understood. Files are
treated as a stranger's: nothing is written to disk, no link is followed out of the folder, no name
is trusted, sizes are checked before they are believed, and a damaged image is named and left out.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ..processor import parallel
from .dataset import DataError, Dataset
from .decode import SUFFIXES, decode_image

SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "unlabeled", "unlabelled"}
MAX_FILE_BYTES = 2**28  # of one image file, unpacked
MAX_ZIP_BYTES = 2**38  # of all images in a zip, unpacked
NAMED = 10  # so many unreadable images are named one by one

Report = Callable[[str], None]


class Entry(NamedTuple):
    """An image file: where it is, as the names of its folders and its own, and how to read it."""

    parts: tuple[str, ...]
    open: Callable[[], IO[bytes]]


def load_files(path: Path, split: str, size: int, limit: int | None, report: Report) -> Dataset:
    """The images of one split, (N,size,size,3), sorted by name."""
    with _open_source(path, report) as entries:
        if not entries:
            raise DataError(f"{path}: no images found (of {', '.join(SUFFIXES)})")
        chosen, class_names = choose_split(entries, split, path, report)
        if limit is not None and limit < len(chosen):  # evenly spread, so that no class is lost
            chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
        readable, images = _decode([entry for entry, _ in chosen], size, path, report)
    labels = np.array([chosen[i][1] for i in readable], dtype=np.int64)
    return Dataset(images, labels, class_names)


# ── Finding images ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _open_source(path: Path, report: Report) -> Iterator[list[Entry]]:
    """The images in a folder or a zip file, sorted by name; the zip stays open meanwhile."""
    if path.is_dir():
        yield sorted(_folder_entries(path, report), key=lambda entry: entry.parts)
    elif not path.exists():
        raise DataError(f'{path}: no such folder or zip file (or say "doodles" for the built-in images)')
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{path}: neither a folder nor a readable zip file ({one_line(error)})") from None
        with archive:
            yield sorted(_zip_entries(archive, path, report), key=lambda entry: entry.parts)


def _folder_entries(path: Path, report: Report) -> Iterator[Entry]:
    root, outside = path.resolve(), 0

    def stop(error: OSError) -> None:
        raise error  # an unreadable folder is not an empty one

    for folder, subfolders, files in os.walk(root, onerror=stop):  # does not follow links to folders
        here = Path(folder)
        outside += sum((here / name).is_symlink() for name in subfolders)
        for name in files:
            file = here / name
            parts = file.relative_to(root).parts
            if not _is_image(parts):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                outside += 1
            elif file.is_file():  # a pipe would wait for ever
                yield Entry(parts, partial(_read_file, file))
    if outside:
        report(f"{path}: {outside} symbolic links out of the folder, or to folders, were not followed")


def _zip_entries(archive: zipfile.ZipFile, path: Path, report: Report) -> Iterator[Entry]:
    total = outside = 0
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")  # some archivers on Windows
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if member.is_dir() or not _is_image(parts):
            continue
        if name.startswith("/") or ".." in parts:
            outside += 1
            continue
        total += member.file_size
        yield Entry(parts, partial(_read_member, archive, member))
    if total > MAX_ZIP_BYTES:
        raise DataError(f"{path}: its images unpack to {total >> 30} GiB, more than {MAX_ZIP_BYTES >> 30} GiB")
    if outside:
        report(f"{path}: {outside} members whose names point out of the archive were ignored")


def _is_image(parts: tuple[str, ...]) -> bool:
    """By its name; hidden files, and the shadow files that macOS puts into zips, are not."""
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return bool(parts) and not hidden and parts[-1].lower().endswith(SUFFIXES)


def _read_file(file: Path) -> IO[bytes]:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return file.open("rb")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.flag_bits & 1:
        raise ValueError("encrypted")
    if member.file_size > MAX_FILE_BYTES:  # zipfile reads no more than declared
        raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return io.BytesIO(archive.read(member))


# ── Splits and classes ────────────────────────────────────────────────────────────────────────────


def choose_split(
    entries: list[Entry], split: str, path: Path, report: Report
) -> tuple[list[tuple[Entry, int]], tuple[str, ...]]:
    """(entry, label) for the images of a split, and the names of the classes."""
    below = [(entry.parts, entry) for entry in entries]
    while _is_wrapped([parts for parts, _ in below]):
        below = [(parts[1:], entry) for parts, entry in below]

    tops = {parts[0] for parts, _ in below if len(parts) > 1}
    splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    holding_classes = any(parts[0] in splits and len(parts) > 2 for parts, _ in below)
    if holding_classes or (splits and splits == tops):  # a class may be called "train"
        if split.lower() not in {top.lower() for top in splits}:
            raise DataError(f"{path}: no split {split!r}; there are: {', '.join(map(shown, sorted(splits)))}")
        stray = sum(parts[0] not in splits for parts, _ in below)
        if stray:
            report(f"{path}: {stray} images outside the split folders were left out")
        classes = sorted({parts[1] for parts, _ in below if parts[0] in splits and len(parts) > 2})
        below = [(parts[1:], entry) for parts, entry in below if len(parts) > 1 and parts[0].lower() == split.lower()]
    else:
        classes = sorted(tops)
        offered = ("train", "test") if classes else ("train",)
        if split not in offered:
            why = "no split folders" if classes else "only one class, so there is nothing to evaluate"
            raise DataError(f"{path}: no split {split!r}: it has {why}; there are: {', '.join(offered)}")
        if classes:
            below = [(parts, entry) for parts, entry in below if _held_out(parts) == (split == "test")]

    labelled = [(parts, entry) for parts, entry in below if len(parts) > 1]
    if not labelled:
        classes = ["unlabelled"]
        chosen = [(entry, 0) for _, entry in below]
    else:
        index = {name: label for label, name in enumerate(classes)}
        chosen = [(entry, index[parts[0]]) for parts, entry in labelled]
        if len(labelled) < len(below):
            report(f"{path}: {len(below) - len(labelled)} images outside the class folders were left out")
    if not chosen:
        raise DataError(f"{path}: no images in split {split!r}; add images or make split folders")
    return chosen, tuple(map(shown, classes))


def _is_wrapped(paths: list[tuple[str, ...]]) -> bool:
    """Is everything in one folder, which then says nothing (`photos.zip` often holds `photos/cats/1.jpg`)?"""
    first = paths[0][0]
    return first.lower() not in SPLIT_NAMES and all(len(parts) > 1 and parts[0] == first for parts in paths)


def _held_out(parts: tuple[str, ...]) -> bool:
    """A tenth of all images, by the hash of the name: adding images moves none from one side to the other."""
    name = "/".join(parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) % 10 == 0


# ── Decoding ──────────────────────────────────────────────────────────────────────────────────────


def _decode(entries: list[Entry], size: int, path: Path, report: Report) -> tuple[list[int], np.ndarray]:
    """The indices of the readable images, and their pixels; the others are named, or refused if many."""
    try:
        images = np.empty((len(entries), size, size, 3), dtype=np.uint8)
    except MemoryError:
        raise DataError(f"{path}: {len(entries)} images of {size}×{size} pixels do not fit in memory") from None
    unreadable: dict[int, str] = {}
    tolerated = max(10, len(entries) // 20)

    def decode(i: int) -> None:
        if len(unreadable) > tolerated:
            return  # refused anyway: do not unpack the rest
        try:
            with entries[i].open() as file:
                images[i] = decode_image(file, size)
        except Exception as error:  # what a decoder raises for hostile bytes is anyone's guess
            unreadable[i] = one_line(error)

    with warnings.catch_warnings():  # Pillow warns of large or odd files; what matters is named below
        warnings.simplefilter("ignore")
        parallel(decode, range(len(entries)))

    lines = [f"{shown('/'.join(entries[i].parts))}: {why}" for i, why in sorted(unreadable.items())]
    if len(lines) > tolerated or len(lines) == len(entries):
        count = f"more than {tolerated}" if len(lines) > tolerated else "all"
        raise DataError(f"{path}: {count} of {len(entries)} images cannot be read, such as {'; '.join(lines[:3])}")
    for line in lines[:NAMED]:
        report(f"{path}: skipped {line}")
    if len(lines) > NAMED:
        report(f"{path}: skipped {len(lines) - NAMED} more")
    readable = [i for i in range(len(entries)) if i not in unreadable]
    return readable, images[readable] if unreadable else images


def one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split())) or type(error).__name__


def shown(name: str) -> str:
    """A name that is safe to print: control characters could drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
