"""From any kind of pixels to RGB, strip by strip: whole copies would double the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .headers import Image as Header
from .memory import RefusedError

STRIP = 1 << 20  # pixels that are converted at once
NOISE = 0.05  # largest part of the brightest value by which values may fall below 0: filters leave such
SCALED = "images of 16 bits that use fewer of them are scaled to what they use"  # said once for a data set


def rgb(image: Image.Image, found: Header, again: Callable[[], Image.Image], remarks: set[str]) -> NDArray[np.uint8]:
    """Convert any mode to RGB, transparent pixels to white: (H,W,3). `again` opens the file once more."""
    image.load()
    if found.png is not None and found.png.bits == 16 and image.mode in ("RGB", "RGBA"):
        image = _deep(image, again(), found, remarks)
    convert = _converter(image, found, remarks)
    width, height = image.size
    rows = max(1, STRIP // width)
    if rows >= height:
        return convert(image)
    result = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        result[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return result


def _converter(image: Image.Image, found: Header, remarks: set[str]) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """Return the function that makes strips of the image RGB."""
    if image.mode[0] in "IF":
        return _grey(image, found, remarks)
    if found.format == "BMP" and image.mode == "RGBA" and _empty(image):
        return lambda strip: np.asarray(strip)[..., :3]  # a plane that nobody filled is no transparency
    if image.has_transparency_data:
        return _on_white
    return lambda strip: np.asarray(strip.convert("RGB"))


def _empty(image: Image.Image) -> bool:
    """Return True if the alpha of an image is 0 everywhere."""
    extrema: Any = image.getextrema()
    return bool(extrema[3] == (0, 0))


def _on_white(strip: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", strip.size, "white")
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def _grey(image: Image.Image, found: Header, remarks: set[str]) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """Return the function that makes strips of more than 8 bits RGB; Pillow would cut them off at 255."""
    extrema: Any = (image if image.mode != "I;16B" else image.convert("I")).getextrema()
    least, most = extrema
    if -least > NOISE * abs(most):
        raise RefusedError(
            f"has values from {least:.4g} to {most:.4g}: below 0 there is no brightness; scale them first"
        )
    if image.mode == "F" and most <= 1:
        divisor = 1 / 255
    else:
        used = found.png.bits_used if found.png is not None else 0
        divisor = (2 ** _bits(most, used, remarks) - 1) / 255

    def convert(strip: Image.Image) -> NDArray[np.uint8]:
        values = np.nan_to_num(np.asarray(strip, np.float64)) / divisor
        return np.repeat(np.rint(values).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)

    return convert


def _bits(most: float, used: int, remarks: set[str]) -> int:
    """Return the number of bits of values up to `most` in a file that has room for 16.

    Microscopes, scanners and depth cameras write 10, 12 or 14 bits as they are, and an image that uses a sixteenth of
    the range would be black.
    """
    bits = next((bits for bits in (8, 10, 12, 14, 16) if most < 2**bits), 32)
    bits = max(bits, used)
    if bits < 16:
        remarks.add(SCALED)
    return bits


def _deep(image: Image.Image, lower: Any, found: Header, remarks: set[str]) -> Image.Image:
    """Return an image of 16 bits per colour in 8. Pillow keeps the upper ones, which hold nothing if few are used."""
    extrema: Any = image.getextrema()
    most = 256 * max(high for _, high in extrema[:3]) + 255
    if most >= 2**14:
        return image
    ((codec, box, offset, _),) = lower.tile
    lower.tile = [type(lower.tile[0])(codec, box, offset, f"{image.mode};16L")]  # the other byte of each pair
    lower.load()
    pairs = [*zip(extrema[:3], lower.getextrema()[:3])]
    used = found.png.bits_used if found.png else 0
    divisor = (2 ** _bits(max(256 * high[1] + low[1] for high, low in pairs), used, remarks) - 1) / 255
    width, height = image.size
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        place = (0, top, width, min(top + rows, height))
        strip = np.array(image.crop(place))
        values = strip[..., :3] * np.float32(256) + np.asarray(lower.crop(place))[..., :3]  # (h,W,3)
        strip[..., :3] = np.rint(values / divisor).clip(0, 255)
        image.paste(Image.fromarray(strip), place)
    return image
