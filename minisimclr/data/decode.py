"""From the bytes of an image file to a small square of pixels; the file is untrusted.

The size that a file declares is checked before anything is decoded, and only four formats are tried: the more
exotic formats of Pillow are a risk (some start other programs), and nobody trains on them.
"""

from __future__ import annotations

import io
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # largest image, pixels as declared in the header; 192 MB once decoded
ORIENTATION = 0x0112  # number of the EXIF tag that says how the camera was held
SIDEWAYS = 5  # the first of its values that exchange width and height


def decode_image(file: IO[bytes], size: int, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode the central square of the image, resized (antialiased, bilinear): uint8 (size,size,3).

    An image of size×size pixels is returned as it is.

    Raises: ValueError, or whatever Pillow raises for damaged files.
    """
    return central_square(_decoded(file, 2 * size, most), size)


def pixels(data: bytes | bytearray, at_least: int | None = None, most: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image: uint8 (H,W,3).

    The image is turned upright as EXIF says. Grey, palette, CMYK and 16-bit images become RGB, transparent
    pixels become white, and an animation gives its first frame. A JPEG may be decoded at a half, a quarter or an
    eighth of its size, as long as its shorter side does not fall below `at_least`.

    Raises: ValueError, or whatever Pillow raises for damaged files.
    """
    return np.asarray(_decoded(io.BytesIO(data), at_least, most))


def header(data: bytes | bytearray, most: int = MAX_PIXELS) -> tuple[int, int]:
    """Return width and height of an image as it will be decoded, upright; no pixel is decoded."""
    image = _opened(io.BytesIO(data), most)
    width, height = image.size
    return (height, width) if _orientation(image) >= SIDEWAYS else (width, height)


def central_square(pixels: NDArray[np.uint8] | Image.Image, size: int) -> NDArray[np.uint8]:
    """Resize the central square of an image, bilinear and antialiased: uint8 (H,W,3) -> (size,size,3)."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if image.size != (size, size):
        width, height = image.size
        left, top, side = max(0, width - height) / 2, max(0, height - width) / 2, min(width, height)
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(image)


def _opened(file: IO[bytes], most: int) -> Image.Image:
    """Read the header of an image, and refuse one that declares too many pixels."""
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, WebP or BMP image") from None
    width, height = image.size
    if width * height > most:
        raise ValueError(f"declares {width}×{height} pixels, more than {most // 10**6} megapixels")
    return image


def _decoded(file: IO[bytes], at_least: int | None, most: int) -> Image.Image:
    """Decode an image to RGB, upright."""
    image = _opened(file, most)
    if at_least:
        image.draft(None, (at_least, at_least))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its size
    return _to_rgb(_upright(image))


def _orientation(image: Image.Image) -> int:
    """Return how the camera was held, as EXIF numbers it: 1 is upright, from SIDEWAYS on it lay on its side."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # nonsense where the orientation should be is no reason to lose the image
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if _orientation(image) != 1 else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparent pixels to white."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        values: NDArray[Any] = np.asarray(image)
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
