"""Images from a folder or a zip file: which can be used, and where they are kept.

The names are understood by find.py. Then one pass reads every file once: its bytes for the checksum, its header for the
size. After it the number of images is fixed. As long as what it has seen fits in memory, the pass also decodes; a file
that cannot be decoded is then left out, and named. In a larger set it is noticed when it is wanted, and replaced
(stream.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..processor import blocks, parallel
from . import decode
from .cache import cached
from .dataset import DataError, Dataset
from .find import Entry, Listing, listing
from .names import Report, shown
from .reading import Reading
from .stores import Files, Kept, Pixels, Store, central_square, kept, kept_size, one_line, without_warnings
from .stream import Photos, tolerated

SQUARES, FOUR_TIMES, ORIGINALS = -2, -1, 0  # values of `cache_side` that are no number of pixels
SMALL = 96  # largest side of images that are kept as squares if all have one size, pixels: CIFAR's, STL's
IN_MEMORY = 2**29  # largest sum of kept pixels that stays in memory, bytes; 8,000 photos at a size of 32
NAMED = 10  # number of unreadable images that are named one by one; the rest are counted
BLOCK = 64  # number of files that are read before what was decoded of them is put in its place


def load_files(
    path: Path,
    split: str,
    size: int,
    limit: int | None,
    report: Report,
    reading: Reading,
    *,
    cache_side: int = FOUR_TIMES,
    cache: Path | None = None,
) -> Dataset:
    """Load the images of one split, sorted by name.

    Raises: DataError for anything that cannot be used; OSError if reading or writing the cache fails.
    """
    found = listing(path, split, reading, report)
    if limit is not None and limit < len(found.entries):  # evenly spread, so that no class is lost
        chosen = [i * len(found.entries) // limit for i in range(limit)]
        found = Listing([found.entries[i] for i in chosen], found.labels[chosen], found.class_names, found.split)
    return opened(path, found, size, report, reading, cache_side=cache_side, cache=cache)


def opened(
    path: Path,
    found: Listing,
    size: int,
    report: Report,
    reading: Reading,
    *,
    cache_side: int = FOUR_TIMES,
    cache: Path | None = None,
) -> Dataset:
    """Open the images of a split: squares in an array if all are small and of one size, else Photos.

    Raises: DataError for anything that cannot be used; ValueError for a cache_side that is too small.
    """
    side = 4 * size if cache_side == FOUR_TIMES else cache_side
    if 0 < side < size:
        raise ValueError(f"cache_side must be 0, or at least the size of {size}, not {side}")
    if cache is not None and side <= 0:
        raise ValueError("a cache holds photos of one shorter side: give a cache_side above 0, or no cache")
    most = reading.megapixels * 10**6
    if side == SQUARES or _first_is_small(found.entries):
        squares = _squares(path, found.entries, size, most, report, any_size=side == SQUARES)
        if squares is not None:
            if cache is not None:
                report(f"{path}: small images of one size are kept in memory; there will be no {shown(str(cache))}")
            good, images = squares
            return Dataset(images, found.labels[good], found.class_names, tuple(found.entries[k].name for k in good))
    seen = Pass(path, found.entries, side, most, report, decoding=bool(side) and cache is None)
    store, words = seen.store() if cache is None else seen.in_cache(cache)
    facts = {"size": size, "sizes": seen.sizes, "fingerprint": seen.fingerprint(), "store": store, "kept": words}
    names = [found.entries[k].name for k in seen.rows]
    return Photos(path, names, found.labels[seen.rows], found.class_names, report=report, **facts)


class Pass:
    """The pass over all files, and what it found about those that can be used.

    rows       int64 (N,), their numbers           sizes    int64 (N,2), height and width as they are kept
    checksums  uint32 (N,), of the files' bytes    lengths  int64 (N,), of the files, in bytes
    """

    def __init__(
        self, path: Path, entries: Sequence[Entry], side: int, most: int, report: Report, decoding: bool
    ) -> None:
        self.path, self.entries, self.side, self.most, self.report = path, entries, side, most, report
        self.rows = np.arange(len(entries))
        self.sizes = np.zeros((len(entries), 2), np.int64)
        self.checksums = np.zeros(len(entries), np.uint32)
        self.lengths = np.zeros(len(entries), np.int64)
        self.memory: bytearray | None = bytearray() if decoding else None
        self.unreadable: dict[int, str] = {}
        self.remarks: set[str] = set()  # what is to be said once
        with without_warnings():
            for block in blocks(len(entries), BLOCK):
                if len(self.unreadable) <= tolerated(len(entries)):  # else the data set is refused anyway
                    self._look(range(len(entries))[block])
        say_once(self.remarks, path, report)
        self._leave_out(self.unreadable)

    def _look(self, block: range) -> None:
        """Read some files, and decode them as long as all may fit in memory."""
        decoded: dict[int, Pixels] = {}

        def look(k: int) -> None:
            try:
                data = self.entries[k].read()
                width, height = decode.header(data)
                size = kept_size(height, width, self.side)
                self.sizes[k], self.checksums[k], self.lengths[k] = size, zlib.crc32(data), len(data)
                if self.memory is not None:
                    decoded[k] = kept(data, *size, self.side, self.most, remarks=self.remarks)
            except Exception as error:  # a decoder may raise anything for hostile bytes
                self.unreadable[k] = one_line(error)

        parallel(look, block)
        for k in block:
            if self.memory is not None and k in decoded:
                self.memory += decoded[k].tobytes()
                if len(self.memory) > IN_MEMORY:
                    self.memory = None

    def _leave_out(self, why: dict[int, str]) -> None:
        """Leave out some of the images that were to be used, and name them."""
        name_the_unreadable([self.entries[k] for k in self.rows.tolist()], why, self.path, self.report)
        good = np.array([k not in why for k in range(len(self.rows))])
        self.rows, self.sizes, self.checksums, self.lengths = (
            found[good] for found in (self.rows, self.sizes, self.checksums, self.lengths)
        )

    def fingerprint(self) -> str:
        """Return number and checksum of the images: of bytes, order and sizes, not of paths, times or labels."""
        facts = np.column_stack([self.checksums, self.lengths, self.sizes]).astype("<i8")  # (N,4)
        return f"{len(self.rows)} images, crc32 {zlib.crc32(facts.tobytes()):08x}"

    def store(self) -> tuple[Store, str]:
        """Return where the pixels are found, and words that say it."""
        side = f"at a shorter side of {self.side}" if self.side else "at full size"
        if self.memory is not None:
            return Kept(self.memory, self.sizes), f"in memory {side}, {len(self.memory) / 2**20:,.0f} MiB"
        entries = [self.entries[k] for k in self.rows.tolist()]
        return Files(entries, self.checksums, self.sizes, self.side, self.most), f"in their files, decoded {side}"

    def in_cache(self, path: Path) -> tuple[Store, str]:
        """Open the cache, or build it, and leave out what it could not be given."""
        plain, _ = self.store()
        store, why = cached(path, self.fingerprint(), self.side, self.sizes, lambda k: plain.pixels(k, 0))
        self._leave_out(why)
        return store, f"in {shown(str(path))} at a shorter side of {self.side}, {store.size / 2**20:,.0f} MiB"


# ── Small images of one size ──────────────────────────────────────────────────────────────────────


def _first_is_small(entries: Sequence[Entry]) -> bool:
    """Return True if the first image that has a size is a small one: else there is no need to look at the others."""
    for entry in entries[: tolerated(len(entries)) + 1]:
        try:
            return max(decode.header(entry.read())) <= SMALL
        except Exception:
            continue
    return False


def _squares(
    path: Path, entries: Sequence[Entry], size: int, most: int, report: Report, any_size: bool
) -> tuple[list[int], Pixels] | None:
    """Return the numbers of the readable images and their central squares; None if they are not of one small size.

    Raises: DataError if the squares do not fit in memory, or if too many of them cannot be read.
    """
    try:
        images = np.empty((len(entries), size, size, 3), dtype=np.uint8)
    except MemoryError:
        raise DataError(f"{path}: {len(entries)} images of {size}×{size} pixels do not fit in memory") from None
    unreadable: dict[int, str] = {}
    sizes: set[tuple[int, int]] = set()
    remarks: set[str] = set()

    def decoded(i: int) -> None:
        if len(unreadable) > tolerated(len(entries)) or len(sizes) > 1:
            return  # the data set is refused, or read in another way
        try:
            data = entries[i].read()
            images[i] = central_square(decode.pixels(data, 2 * size, most, remarks), size)
            if not any_size:
                sizes.add(decode.header(data))
        except Exception as error:  # a decoder may raise anything for hostile bytes
            unreadable[i] = one_line(error)

    with without_warnings():
        parallel(decoded, range(len(entries)))
    if len(sizes) > 1:
        return None
    say_once(remarks, path, report)
    name_the_unreadable(entries, unreadable, path, report)
    readable = [i for i in range(len(entries)) if i not in unreadable]
    return readable, images[readable] if unreadable else images


def say_once(remarks: set[str], path: Path, report: Report) -> None:
    """Report what decoding has to say about the data set as a whole."""
    for remark in sorted(remarks):
        report(f"{path}: {remark}")


def name_the_unreadable(entries: Sequence[Entry], unreadable: dict[int, str], path: Path, report: Report) -> None:
    """Report the images that are left out, or raise DataError if they are too many."""
    few = tolerated(len(entries))
    lines = [f"{shown(entries[i].name)}: {why}" for i, why in sorted(unreadable.items())]
    if len(lines) > few or len(lines) == len(entries):
        count = f"more than {few}" if len(lines) > few else "all"
        raise DataError(f"{path}: {count} of {len(entries)} images cannot be read, such as {'; '.join(lines[:3])}")
    for line in lines[:NAMED]:
        report(f"{path}: skipped {line}")
    if len(lines) > NAMED:
        report(f"{path}: skipped {len(lines) - NAMED} more")
