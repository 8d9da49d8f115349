"""Images from a folder or a zip file: find them, choose the split, decode them.

The layout is `[split/]class/…/image.png`; `load_dataset` says how it is understood. Files are untrusted: nothing is
written to disk, no link is followed out of the folder, no name is trusted, sizes are checked before they are
believed, and a damaged image is named and left out.
"""

from __future__ import annotations

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
from numpy.typing import NDArray

from ..processor import parallel
from .dataset import DataError, Dataset
from .decode import SUFFIXES, decode_image
from .names import Report, choose_split, shown

MAX_FILE_BYTES = 2**28  # largest image file, bytes when unpacked; photos are a tenth of it
MAX_ZIP_BYTES = 2**38  # largest sum of the images in a zip, bytes when unpacked; ImageNet is half of it
NAMED = 10  # number of unreadable images that are named one by one; the rest are counted
TOLERATED = 10  # number of unreadable images that are left out, or a twentieth of all images if that is more


class Entry(NamedTuple):
    """An image file: its name, as parts, and how to read it."""

    parts: tuple[str, ...]
    open: Callable[[], IO[bytes]]


def load_files(path: Path, split: str, size: int, limit: int | None, report: Report) -> Dataset:
    """Load the images of one split, (N,size,size,3), sorted by name.

    Raises: DataError for anything that cannot be used; OSError if reading fails.
    """
    with _open_source(path, report) as entries:
        if not entries:
            raise DataError(f"{path}: no images found (of {', '.join(SUFFIXES)})")
        chosen, class_names = choose_split([entry.parts for entry in entries], split, path, report)
        if limit is not None and limit < len(chosen):  # evenly spread, so that no class is lost
            chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
        readable, images = _decode([entries[k] for k, _ in chosen], size, path, report)
    labels = np.array([chosen[i][1] for i in readable], dtype=np.int64)
    return Dataset(images, labels, class_names)


# ── Finding images ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _open_source(path: Path, report: Report) -> Iterator[list[Entry]]:
    """List the images in a folder or a zip file, sorted by name; the zip stays open meanwhile."""
    if path.is_dir():
        yield sorted(_folder_entries(path, report), key=lambda entry: entry.parts)
    elif not path.exists():
        raise DataError(f'{path}: no such folder or zip file (or say "doodles" for the built-in images)')
    elif not path.is_file():  # a pipe would wait for ever, and a device has no end
        raise DataError(f"{path}: neither a folder nor a zip file")
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{path}: neither a folder nor a readable zip file ({one_line(error)})") from None
        with archive:
            yield sorted(_zip_entries(archive, path, report), key=lambda entry: entry.parts)


def _folder_entries(path: Path, report: Report) -> Iterator[Entry]:
    """Find the images below a folder."""
    root, outside = path.resolve(), 0

    def stop(error: OSError) -> None:
        raise error  # else an unreadable folder would be taken for an empty one

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
            elif file.is_file():  # opening a pipe would wait for ever
                yield Entry(parts, partial(_read_file, file))
    if outside:
        report(f"{path}: {outside} symbolic links out of the folder, or to folders, were not followed")


def _zip_entries(archive: zipfile.ZipFile, path: Path, report: Report) -> Iterator[Entry]:
    """Find the images in a zip file, none of which is unpacked yet."""
    total = outside = 0
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")  # some archivers on Windows write backslashes
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
    """Tell by the name whether a file is an image; hidden files and the shadow files of macOS are not."""
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
            with entries[i].open() as file:
                images[i] = decode_image(file, size)
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
    lines = [f"{shown('/'.join(entries[i].parts))}: {why}" for i, why in sorted(unreadable.items())]
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
