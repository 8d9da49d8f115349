"""The size, scans and orientation of a JPEG file, and the bytes that matter.

A progressive JPEG may have any number of scans, each of which goes through all pixels, even if it is empty: a few
kilobytes keep a decoder busy for hours. So scans are counted before anything is decoded. What programs write beside
the image (EXIF, previews, profiles, a second image behind the first) is left away; only what tells the colours stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .exif import orientation

MAX_SCANS = 100  # programs write about ten
MAX_WORK = 4 << 30  # scans times pixels; a photo of 108 megapixels in twelve scans needs a third
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COLOURS = (0xE0, 0xEE)  # JFIF and Adobe: they say how colours are stored
NEXT = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # no stuffed byte, no restart


class Jpeg(NamedTuple):
    """A JPEG file, looked at."""

    width: int
    height: int
    orientation: int
    waiting: int  # bytes for the coefficients of all scans, 0 if there is one scan only
    pieces: list[memoryview]


def look_at(data: memoryview) -> Jpeg:
    """Look through the segments of a JPEG file. Raises: ValueError, in words that fit behind its name."""
    pieces, scans, turn = [data[:2]], 0, 0
    frame: tuple[int, int, int, int] | None = None  # marker, height, width, coefficients per 64 pixels
    for marker, content, whole in _segments(data):
        if marker in FRAMES:
            if frame:
                raise ValueError("damaged: a JPEG file with two sizes")
            frame = _frame(marker, content)
        elif marker == 0xE1 and not turn and bytes(content[:6]) == b"Exif\0\0":
            turn = orientation(bytes(content))
        scans += marker == 0xDA
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in COLOURS:
            pieces.append(whole)
        if scans > MAX_SCANS:
            raise ValueError(f"has more than {MAX_SCANS} scans, as no program writes them")
    if frame is None or not scans:
        raise ValueError("cut off: a JPEG file that ends before its pixels")
    marker, height, width, share = frame
    if scans * width * height > MAX_WORK:
        raise ValueError(f"declares {scans} scans of {width}×{height} pixels, which is too much work")
    waiting = width * height * share // 32 if marker in (0xC2, 0xC6, 0xCA, 0xCE) or scans > 1 else 0
    return Jpeg(width, height, turn or 1, waiting, pieces)


def _segments(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield each segment: its marker, its content, and all its bytes; those of a scan include the pixels behind it."""
    at = 2
    while found := NEXT.search(data, at):
        marker, start, at = found[1][0], found.start(), found.end()
        if marker == 0xD9:  # the end: what stands behind it is another image, or nothing
            yield marker, data[at:at], data[start:at]
            return
        if marker in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        content = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            raise ValueError("cut off, or damaged: a part of it is longer than the rest of the file")
        at += length
        if marker == 0xDA:
            end = NEXT.search(data, at)
            at = end.start() if end else len(data)
        yield marker, content, data[start:at]


def _frame(marker: int, segment: memoryview) -> tuple[int, int, int, int]:
    """Return the marker, height and width, and the number of coefficients (each of 2 bytes) per 64 pixels."""
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise ValueError("damaged: its size cannot be read")
    if segment[0] != 8:
        raise ValueError(f"a JPEG file with {segment[0]} bits per colour; only 8 are read")
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if not width or not height:
        raise ValueError(f"declares {width}×{height} pixels")
    samples = [(segment[7 + 3 * i] >> 4, segment[7 + 3 * i] & 15) for i in range(segment[5])]
    if not samples or 0 in (most := max(h for h, _ in samples), high := max(v for _, v in samples)):
        raise ValueError("damaged: its colours cannot be read")
    return marker, height, width, -(-64 * sum(h * v for h, v in samples) // (most * high))
