"""The orientation of a photo: one tag of its EXIF data, whatever else is broken."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

TAG = 0x0112  # the number of the tag that says how the camera was held
KINDS = {1: "B", 3: "H", 4: "L"}  # the whole numbers among TIFF's types, as struct writes them


def orientation(data: bytes) -> int:
    """Return the orientation, 1…8, from EXIF data, which are laid out as a TIFF file; 1 if they do not say.

    >>> tag = struct.pack("<HHIHH", TAG, 3, 1, 6, 0)
    >>> orientation(b"II*\\0" + struct.pack("<IH", 8, 1) + tag)
    6
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    if start + 2 > len(data):
        return 1
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, at)
        if tag == TAG:
            if kind not in KINDS or not number:
                return 1
            (value,) = struct.unpack_from(f"{order}{KINDS[kind]}", data, at + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn an image upright. Shapes: (H,W,3) -> (H,W,3), from orientation 5 on (W,H,3)

    >>> turned(np.array([[[1], [2]]], np.uint8), 6).ravel().tolist()
    [1, 2]
    """
    if orientation >= 5:  # stored as columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
