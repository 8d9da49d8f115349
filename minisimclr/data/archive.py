"""The images in a zip file: listed from its directory, unpacked one at a time.

zipfile, of the standard library, reads the whole directory into memory (half a gigabyte for a million members), takes
every name that is not marked as UTF-8 for code page 437, and shares one open file among all threads and forked
processes. Here the directory is read in pieces, only images are kept, and each read opens the archive for itself.
The archive is untrusted: nothing is written, no declared number is believed before it is checked, members that
overlap (a few kilobytes that unpack to terabytes) are refused, and a member never unpacks to more than it declares.
"""

from __future__ import annotations

import bz2
import os
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .dataset import DataError
from .left_out import LINK, POINTS_OUT, LeftOut, why_not
from .zip_names import code_page, decoded, is_utf8

MAX_FILE_BYTES = 200 << 20  # largest image file, bytes when unpacked; photos are a tenth of it
MAX_ZIP_BYTES = 2**38  # largest sum of the images in a zip, bytes when unpacked; ImageNet is half of it
MAX_MEMBERS = 400_000  # more names than that take hundreds of megabytes; a folder may hold any number
CHUNK = 1 << 20  # bytes that are read at once
SAMPLE = 1000  # names from which the code page is guessed
END, CENTRAL, LOCAL = struct.Struct("<4s4H2LH"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
END64, LOCATOR = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"Rar!", b"7z\xbc\xaf", b"(\xb5/\xfd")  # gzip, bzip2, xz, RAR, 7z, zstd
TABLES = (b"PAR1", b"\x89HDF", b"ARROW1", b"SQLite")  # data sets in one file, of other kinds
UTF8, ENCRYPTED = 0x800, 0x2041  # bits of a member's flags


class Member(NamedTuple):
    """A member of an archive: all that one needs to read it."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int
    flags: int


class Archive(NamedTuple):
    """A zip file, by its path: it can be sent to other processes."""

    path: Path

    def members(self, left: LeftOut) -> Iterator[tuple[tuple[str, ...], Member]]:
        """Find the images, each with the parts of its name; what is none is counted.

        Raises: DataError for an archive that is damaged or a bomb; OSError if reading fails.
        """
        with self.path.open("rb") as file:
            try:
                start, size, shift = _directory(file)
                odd = (raw for raw, flags, _, _ in _central(file, start, size) if not flags & UTF8)
                page = code_page(odd, SAMPLE)
                spans = array("Q")  # begin and end of each image in the file
                total, guessed = 0, False
                for raw, flags, attributes, member in _central(file, start, size):
                    name = decoded(raw, bool(flags & UTF8), page)
                    guessed = guessed or not (flags & UTF8 or is_utf8(raw))
                    parts = _parts(name, attributes, left)
                    if parts:
                        total += member.size
                        member = member._replace(offset=member.offset + shift)
                        spans.extend((member.offset, member.offset + LOCAL.size + member.packed))
                        yield parts, member
                _check(spans, total, start)
                if guessed:
                    left.said.append(f"names that are no UTF-8 are read in the code page {page}, which is a guess")
            except (struct.error, _DamagedError) as error:
                reason = "its directory is cut off" if isinstance(error, struct.error) else str(error)
                file.seek(0)
                if instead := _instead(file.read(300)):
                    raise DataError(f"{self.path}: {instead}") from None
                raise DataError(f"{self.path}: neither a folder nor a readable zip file ({reason})") from None

    def read(self, member: Member) -> bytearray:
        """Unpack a member. Raises: ValueError, in words that fit behind its name; OSError if reading fails."""
        if member.flags & ENCRYPTED:
            raise ValueError("encrypted")
        if member.size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        with self.path.open("rb") as file:
            file.seek(member.offset)
            header = file.read(LOCAL.size)
            if len(header) < LOCAL.size or header[:4] != b"PK\3\4":
                raise ValueError("the archive has no member where its directory says")
            file.seek(sum(LOCAL.unpack(header)[-2:]), os.SEEK_CUR)  # its name once more, and extra fields
            data = _unpacked(file, member)
        if zlib.crc32(data) != member.crc:
            raise ValueError("damaged: its checksum (CRC-32) is wrong")
        return data


class _DamagedError(Exception):
    """An archive whose directory cannot be used; the message says why."""


# ── The directory ─────────────────────────────────────────────────────────────────────────────────


def _instead(head: bytes) -> str:
    """Say what a file is, if it is an archive of another kind, or an image; and what to do."""
    if any(head.startswith(begin) for begin in PACKED) or head[257:262] == b"ustar":
        return "an archive that is not read; unpack it, and name the folder, or pack the images as a zip file"
    if any(head.startswith(begin) for begin in TABLES):
        return "a file that is not read; give the images as files, or as an .npz file (docs/data.md)"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")) or head[8:12] == b"WEBP":
        return "a single image; name the folder that it is in"
    return ""


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Return where the central directory begins, its size, and what must be added to all offsets.

    Something may stand before the archive, such as the program that unpacks it; then all offsets are too small.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - END.size - 0xFFFF))
    tail_at = file.tell()
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < END.size:
        raise _DamagedError("a zip file ends with its directory, and this one does not")
    end_at = tail_at + at
    _, disk, first_disk, _, count, size, offset, _ = END.unpack_from(tail, at)
    if 0xFFFF in (count, disk) or 0xFFFFFFFF in (size, offset):  # numbers too large for 16 or 32 bits stand before it
        file.seek(max(0, end_at - LOCATOR.size - END64.size))
        before = file.read(LOCATOR.size + END64.size)
        if len(before) == LOCATOR.size + END64.size and before.startswith(b"PK\6\6"):
            _, _, _, _, disk, first_disk, _, count, size, offset = END64.unpack_from(before)
            end_at -= len(before)
    if disk or first_disk:
        raise _DamagedError("it is one of several parts")
    if count > MAX_MEMBERS:
        raise _DamagedError(f"it declares {count:,} members, more than {MAX_MEMBERS:,}; unpack it")
    shift = end_at - size - offset
    if size > end_at or shift < 0:
        raise _DamagedError("its directory is not where it says")
    return end_at - size, size, shift


def _central(file: IO[bytes], start: int, size: int) -> Iterator[tuple[bytes, int, int, Member]]:
    """Read the directory in pieces: the name, flags and attributes of each member, and the member."""
    file.seek(start)
    buffer, at, left, count = b"", 0, size, 0
    while at < len(buffer) or left:
        if len(buffer) - at < 3 * 0xFFFF + CENTRAL.size and left:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise _DamagedError("its directory is cut off")
            buffer, at, left = buffer[at:] + piece, 0, left - len(piece)
        (sign, made, _, flags, method, _, _, crc, packed, full, name, extra, comment, _, _, outer, offset) = (
            CENTRAL.unpack_from(buffer, at)
        )
        if sign != b"PK\1\2":
            raise _DamagedError("its directory is damaged")
        at += CENTRAL.size
        raw, fields = buffer[at : at + name], buffer[at + name : at + name + extra]
        if 0xFFFFFFFF in (packed, full, offset):
            full, packed, offset = _wide(fields, full, packed, offset)
        at += name + extra + comment
        count += 1
        if at > len(buffer) or count > MAX_MEMBERS:
            raise _DamagedError("its directory is damaged")
        mode = outer >> 16 if made >> 8 == 3 else 0  # only Unix writes its modes there
        yield raw, flags, mode, Member(offset, packed, full, crc, method, flags)


def _wide(fields: bytes, *numbers: int) -> list[int]:
    """Return numbers that do not fit in 32 bits from the extra field that holds them, the others as they are."""
    while len(fields) >= 4:
        kind, length = struct.unpack_from("<2H", fields)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{min(length, 24) // 8}Q", fields, 4))
            return [next(wide, 0) if number == 0xFFFFFFFF else number for number in numbers]
        fields = fields[4 + length :]
    return list(numbers)


def _parts(name: str, mode: int, left: LeftOut) -> tuple[str, ...]:
    """Return the parts of an image's name; () for anything else, which is counted."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.endswith("/") or not parts:
        return ()
    cause = POINTS_OUT if name.startswith("/") or ".." in parts or parts[0][1:] == ":" else why_not(parts)
    if not cause and stat.S_ISLNK(mode):
        cause = LINK
    if cause:
        left.add(cause, parts)
    return () if cause else parts


def _check(spans: array[int], total: int, directory: int) -> None:
    """Raise _DamagedError if images overlap each other or the directory, or unpack to too much."""
    if total > MAX_ZIP_BYTES:
        raise _DamagedError(f"its images unpack to {total >> 30} GiB, more than {MAX_ZIP_BYTES >> 30} GiB")
    pairs = np.frombuffer(spans, np.uint64).reshape(-1, 2) if spans else np.zeros((0, 2), np.uint64)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]  # (N,2)
    if (pairs[1:, 0] < pairs[:-1, 1]).any():
        raise _DamagedError("its members overlap, as in a bomb")
    if len(pairs) and pairs[-1, 1] > directory:
        raise _DamagedError("a member reaches into its directory")


# ── A member ──────────────────────────────────────────────────────────────────────────────────────


def _unpacked(file: IO[bytes], member: Member) -> bytearray:
    """Unpack a member piece by piece, and never more than it declares."""
    methods: dict[int, Any] = {0: _Stored, 8: lambda: zlib.decompressobj(-15), 12: bz2.BZ2Decompressor}
    if member.method not in methods:
        raise ValueError(f"packed by method {member.method}; only stored, deflate and bzip2 are read")
    unpacker, data, left = methods[member.method](), bytearray(), member.packed
    try:
        while len(data) < member.size:
            piece = file.read(min(CHUNK, left))
            left -= len(piece)
            piece = getattr(unpacker, "unconsumed_tail", b"") + piece
            if not piece and getattr(unpacker, "needs_input", True):
                break
            data += unpacker.decompress(piece, member.size - len(data))
    except (zlib.error, OSError, EOFError) as error:
        raise ValueError(f"damaged: it cannot be unpacked ({error})") from None
    if len(data) != member.size:
        raise ValueError(f"damaged: it unpacks to {len(data)} bytes instead of {member.size}")
    return data


class _Stored:
    """The unpacker of a member that is not packed."""

    def decompress(self, piece: bytes, most: int) -> bytes:
        return piece[:most]
