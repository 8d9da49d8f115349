"""A cache: one file with the pixels of all photos, for a set that is larger than memory.

To read a photo from it takes less time than to decode and to shrink it again. The file is built once, and if that is
interrupted, it goes on where it stopped. It belongs to the bytes, the order and the shorter side of its photos, and is
refused for any others. Its parts:

    header   4,096 bytes: a line that names the format, and JSON with "photos" (their fingerprint) and "side"
    table    int64 (N,3), little-endian: height, width, and the checksum of the pixels, or a mark in its place
    pixels   photo after photo
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..processor import blocks, parallel
from ..storage import Lock, open_regular, require_replaceable, shown
from .dataset import DataError
from .stores import CacheError, Pixels, Share, one_line, starts_of, without_warnings

Table: TypeAlias = NDArray[np.int64]  # (N,3)
FORMAT = b"minisimclr photos 1\n"
HEADER = 4096  # bytes of the header, filled up with spaces
MISSING, UNREADABLE = -1, -2  # marks in place of a checksum: not there yet; the file cannot be decoded
BLOCK = 64  # number of photos that are written before their checksums are
LARGEST = 2**48  # size of a cache, bytes


class Cached:
    """Photos that are read from a cache by position; pages of a mapped file would count as memory of the process."""

    def __init__(self, path: Path, table: Table, starts: NDArray[np.int64], size: int) -> None:
        self.path, self.table, self.starts, self.size = path, table, starts, size  # size: of the file, in bytes
        self.checked = bytearray(len(table))  # 1: the checksum of this photo was compared
        self.descriptor: int | None = None

    def pixels(self, index: int, at_least: int) -> Pixels:
        """Return a photo as it is kept. Raises: CacheError if it is not what was written."""
        if self.descriptor is None:
            self.descriptor = open_regular(self.path, LARGEST)
        height, width, checksum = self.table[index].tolist()
        data = os.pread(self.descriptor, 3 * height * width, self.starts[index])
        if not self.checked[index] and zlib.crc32(data) != checksum:
            raise CacheError(f"{shown(self.path)} is damaged (photo {index:,}); remove it, and it is built again")
        self.checked[index] = 1
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def shared(self, share: Share) -> Cached:
        """Return the cache itself: other processes open the file, too."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"descriptor": None}

    def __del__(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def cached(
    path: Path, photos: str, side: int, sizes: NDArray[np.int64], decoded: Callable[[int], Pixels]
) -> tuple[Cached, dict[int, str]]:
    """Open the cache of these photos, or build it: `decoded` gives one of them.

    Return the photos in it; and the numbers of those that are not in it, each with the reason.

    Raises: DataError if the file belongs to other photos; CacheError if it is damaged; OSError if writing fails.
    """
    header = _header(photos, side)
    why: dict[int, str] = {}
    table = _read(path, header, sizes) if os.path.lexists(path) else _built(path, header, sizes, decoded, why)
    good = np.flatnonzero(table[:, 2] >= 0)
    starts = HEADER + table.nbytes + starts_of(sizes)
    for k in np.flatnonzero(table[:, 2] < 0).tolist():
        why.setdefault(k, "cannot be decoded, as was found when the cache was built")
    return Cached(path.resolve(), table[good], starts[good], int(starts[-1])), why


def _header(photos: str, side: int) -> bytes:
    return (FORMAT + json.dumps({"photos": photos, "side": side}).encode()).ljust(HEADER)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path, header: bytes, sizes: NDArray[np.int64]) -> Table:
    """Return the table of a whole cache."""
    with os.fdopen(open_regular(path, LARGEST), "rb") as file:
        found = file.read(HEADER)
        if not found.startswith(FORMAT):
            raise DataError(f"{shown(path)} is no cache of photos; choose another name")
        if found != header:
            raise DataError(f"{shown(path)} is the cache of other photos, or of another side; choose another name")
        table = _table(file, len(sizes))
        whole = os.fstat(file.fileno()).st_size == HEADER + table.nbytes + starts_of(sizes)[-1]
        if not whole or (table[:, :2] != sizes).any() or (table[:, 2] == MISSING).any():
            raise CacheError(f"{shown(path)} is damaged; remove it, and it is built again")
        return table


def _table(file: BinaryIO, count: int) -> Table:
    """Read the table, which lies behind the header."""
    data = os.pread(file.fileno(), 24 * count, HEADER)
    return np.frombuffer(data.ljust(24 * count, b"\xff"), "<i8").reshape(count, 3).astype(np.int64)


# ── Building ──────────────────────────────────────────────────────────────────────────────────────


def _built(
    path: Path, header: bytes, sizes: NDArray[np.int64], decoded: Callable[[int], Pixels], why: dict[int, str]
) -> Table:
    """Build a cache under another name, FILE.part, and rename it when it is whole.

    What is there of it already is kept; it is compared with its checksums when it is read.
    """
    part = path.with_name(f"{path.name}.part")
    require_replaceable(part)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(part, flags, 0o644), "r+b", buffering=0) as file:
        try:
            lock = Lock(part)
        except BlockingIOError:
            raise DataError(f"{shown(part)} is in use: another process builds it; wait for it, or stop it") from None
        try:
            table = _begun(file, part, header, sizes)
            _fill(file, table, sizes, decoded, why)
            os.fsync(file.fileno())
            require_replaceable(path)
            os.replace(part, path)
        finally:
            lock.release()
    return table


def _begun(file: BinaryIO, part: Path, header: bytes, sizes: NDArray[np.int64]) -> Table:
    """Return the table of a cache that was begun, or begin it."""
    found = os.pread(file.fileno(), HEADER, 0)
    if found == header:
        table = _table(file, len(sizes))
        table[table[:, 2] == UNREADABLE, 2] = MISSING  # they are tried again, so that the reason can be told
        return table
    if found.strip(b"\0"):
        raise DataError(f"{shown(part)} was begun for other photos, or another side; remove it, or choose another name")
    table = np.column_stack([sizes, np.full(len(sizes), MISSING)])
    total = HEADER + table.nbytes + int(starts_of(sizes)[-1])
    if total > shutil.disk_usage(part.parent).free:
        part.unlink()
        raise OSError(errno.ENOSPC, f"no space for a cache of {total / 2**30:,.1f} GiB", str(part))
    os.truncate(file.fileno(), total)
    _write(file, HEADER, table.astype("<i8").tobytes())
    _write(file, 0, header)  # last: without it, the file is begun anew
    return table


def _fill(
    file: BinaryIO, table: Table, sizes: NDArray[np.int64], decoded: Callable[[int], Pixels], why: dict[int, str]
) -> None:
    """Decode the photos that are missing, and write each block of them before its checksums."""
    starts = HEADER + table.nbytes + starts_of(sizes)

    def put(k: int) -> None:
        try:
            pixels = decoded(k)
            if pixels.shape[:2] != tuple(sizes[k]):
                raise ValueError("it has another size than its header says")
        except MemoryError:
            raise
        except Exception as error:  # a decoder may raise anything for hostile bytes
            table[k, 2], why[k] = UNREADABLE, one_line(error)
            return
        data = np.ascontiguousarray(pixels).tobytes()
        _write(file, int(starts[k]), data)
        table[k, 2] = zlib.crc32(data)

    missing = np.flatnonzero(table[:, 2] == MISSING)
    with without_warnings():
        for block in blocks(len(missing), BLOCK):
            chosen = missing[block]
            parallel(put, chosen.tolist())
            rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
            _write(file, HEADER + 24 * rows.start, table[rows].astype("<i8").tobytes())


def _write(file: BinaryIO, position: int, data: bytes) -> None:
    """Write all bytes at a position; a disk that is nearly full takes a part at a time, and then says why."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file.fileno(), left, position)
        left, position = left[written:], position + written
