"""The format of an image file, and what it declares, before any decoder sees it.

A few hundred bytes may declare a billion pixels, and some decoders take the memory for them as soon as they are made.
So the size is read here from the file itself. What each format needs to be decoded was measured; a decoder that needs
more than its share waits, or is not begun (memory.py).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

from . import jpeg, png
from .exif import orientation

KNOWN = "PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC"
RLE_PIXELS, RLE_BYTES = 9_000_000, 8 << 20  # of a run-length bitmap, which is decoded byte by byte
HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))


class Image(NamedTuple):
    """The declarations of an image file."""

    format: str
    width: int = 0  # as it is stored; 0 if only the decoder finds out
    height: int = 0
    orientation: int = 1
    per_pixel: int = 10  # bytes that decoding and converting take at most
    fixed: int = 0  # bytes beside that
    pieces: tuple[memoryview, ...] = ()
    png: png.Png | None = None


def look_at(data: memoryview) -> Image:
    """Return what an image file declares. Raises: ValueError, in words that fit behind its name."""
    name = format_of(data)
    try:
        return LOOKERS[name](data)
    except (struct.error, IndexError):
        raise ValueError(f"cut off: a file that begins as {name} and ends before its size") from None


def format_of(data: memoryview) -> str:
    """Return the format by the first bytes. Raises: ValueError that says what the file is instead."""
    head = bytes(data[:64])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & HEIC:
            return "HEIC"
    if head.startswith(b"BM") and len(data) > 26:
        return "BMP"
    raise ValueError(f"not a {KNOWN} image" + _instead(head, len(data)))


def _instead(head: bytes, length: int) -> str:
    """Say what a file is, if it is no image."""
    if not length:
        return ", but an empty file"
    if not any(head):
        return ", but zeros: the file was never written"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return ", but a page of text"
    if head.startswith(b"version https://git-lfs"):
        return ", but the place of one that Git LFS keeps"
    return ""


# ── Each format ───────────────────────────────────────────────────────────────────────────────────


def _png(data: memoryview) -> Image:
    found = png.look_at(data)
    # Pillow keeps RGB in 4 bytes; 3 are ours. Numbers of 16 bits are decoded twice.
    per_pixel = 16 if found.bits == 16 else 11 if found.alpha else 8
    return Image("PNG", found.width, found.height, found.orientation, per_pixel, 0, tuple(found.pieces), found)


def _jpeg(data: memoryview) -> Image:
    found = jpeg.look_at(data)
    return Image("JPEG", found.width, found.height, found.orientation, 8, found.waiting, tuple(found.pieces))


def _webp(data: memoryview) -> Image:
    length = 8 + int.from_bytes(data[4:8], "little")
    if length > len(data):
        raise ValueError("cut off: the file ends before the image does")
    turn, width, height, at, count = 1, 0, 0, 12, 0
    while at + 8 <= length and count < png.MAX_CHUNKS:
        kind, size = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if kind == b"VP8X" and not width:
            width, height = (1 + int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", body, 1)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        elif kind == b"EXIF":
            turn = orientation(bytes(body))
        at, count = at + 8 + size + size % 2, count + 1
    if not width or not height:
        raise ValueError("damaged: its size cannot be read")
    return Image("WEBP", width, height, turn, 24, len(data), (data[:length],))  # two canvases of 4 bytes, and more


def _bmp(data: memoryview) -> Image:
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)
    if not width or not height:
        raise ValueError(f"declares {width}×{height} pixels")
    stored = len(data) - offset
    if compression in (1, 2):
        if width * height > RLE_PIXELS or stored > min(RLE_BYTES, 4 * width * height + 4 * height + 1024):
            raise ValueError(
                f"a run-length bitmap of {width}×{height} pixels and {stored:,} bytes, which is too much work"
            )
    elif stored < (width * bits + 31) // 32 * 4 * height - 4:
        raise ValueError("cut off: it has fewer pixels than it declares")
    return Image("BMP", width, height, 1, 11, 0, (data,))


def _gif(data: memoryview) -> Image:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:  # extensions: label, then blocks, each behind its length, until an empty one
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] != 0x2C:
        raise ValueError("damaged: a GIF file without an image")
    x, y, wide, high = struct.unpack_from("<HHHH", data, at + 1)
    return Image("GIF", max(width, x + wide), max(height, y + high), 1, 13, 0, (data,))


def _tiff(data: memoryview) -> Image:
    (start,) = struct.unpack_from("<I" if data[0] == 0x49 else ">I", data, 4)
    if start > len(data) and bytes(data[2:4]) not in (b"+\0", b"\0+"):  # the tags may stand at the end
        raise ValueError("cut off: the file ends before the image does")
    return Image("TIFF", per_pixel=15, fixed=len(data), pieces=(data,))


def _boxes(name: str, data: memoryview) -> Image:
    """AVIF and HEIC are boxes, each behind its length; what is in them is the decoder's business."""
    at, count = 0, 0
    while at + 8 <= len(data) and count < png.MAX_CHUNKS:
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        at, count = at + (size or len(data) - at), count + 1
        if at > len(data):
            raise ValueError("cut off: the file ends before the image does")
        if 0 < size < 8:
            break
    return Image(name, per_pixel=20, fixed=len(data), pieces=(data,))


LOOKERS: dict[str, Callable[[memoryview], Image]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
    "TIFF": _tiff,
    "AVIF": functools.partial(_boxes, "AVIF"),
    "HEIC": functools.partial(_boxes, "HEIC"),
}
