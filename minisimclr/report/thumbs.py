"""Thumbnails: many small images on one sheet, of which a page shows cells."""

from __future__ import annotations

import base64
import io
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Side of a cell in pixels and JPEG quality, the best first; the first that fits into the bytes is taken.
CHOICES = [(64, 92), (64, 80), (48, 85), (32, 90), (32, 75), (24, 75), (16, 75), (16, 40), (8, 40)]


class Sheet(NamedTuple):
    """A sheet as an address that holds its bytes, and the number of its columns."""

    uri: str
    columns: int


def sheet(images: NDArray[np.uint8], most: int) -> Sheet:
    """Put square images on one sheet of at most `most` bytes; as small as that asks for, and no larger than they are.

    Shapes: images (N,S,S,3)
    """
    columns = math.ceil(math.sqrt(len(images)))
    for side, quality in CHOICES:
        side = min(side, images.shape[1])
        picture = _tiled(images, columns, side)
        content = _encoded(picture, "JPEG", quality=quality, subsampling=0)  # a colour for each pixel
        # PNG changes no pixel, but takes its time; it is tried where it may well fit.
        if picture.width * picture.height < most and len(exact := _encoded(picture, "PNG")) <= most:
            content = exact
        if len(content) <= most:
            break
    return Sheet(data_uri(content), columns)


def _tiled(images: NDArray[np.uint8], columns: int, side: int) -> Image.Image:
    rows = -(-len(images) // columns)
    tiled = np.full((rows * columns, side, side, 3), 255, np.uint8)
    for k, image in enumerate(images):
        tiled[k] = image if len(image) == side else np.asarray(Image.fromarray(image).resize((side, side)))
    pixels = tiled.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    return Image.fromarray(pixels)


def _encoded(picture: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def as_png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file, as small as it gets."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes) -> str:
    """Return the bytes of an image, JPEG or PNG, as an address that holds them."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
