"""From the bytes of an image file to a small square of pixels; the file is untrusted.

The size that a file declares is checked before anything is decoded, and only four formats are tried: the more
exotic formats of Pillow are a risk (some start other programs), and nobody trains on them.
"""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64_000_000  # largest image, pixels as declared in the header; 192 MB once decoded
ORIENTATION = 0x0112  # number of the EXIF tag that says how the camera was held


def decode_image(file: IO[bytes], size: int) -> NDArray[np.uint8]:
    """Decode the central square of the image, resized (antialiased, bilinear): uint8 (size,size,3).

    The image is turned upright as EXIF says. Grey, palette, CMYK and 16-bit images become RGB, transparent
    pixels become white, and an animation gives its first frame. An image of size×size pixels is returned
    as it is.

    Raises: ValueError, or whatever Pillow raises for damaged files.
    """
    try:
        image: Image.Image = Image.open(file, formats=FORMATS)  # reads the header only
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, WebP or BMP image") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"declares {width}×{height} pixels, more than {MAX_PIXELS // 10**6} megapixels")
    image.draft(None, (2 * size, 2 * size))  # lets a large JPEG be decoded at 1/2, 1/4 or 1/8 of its size
    image = _to_rgb(_upright(image))
    if image.size != (size, size):
        width, height = image.size
        left, top, side = max(0, width - height) / 2, max(0, height - width) / 2, min(width, height)
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(image)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # nonsense where the orientation should be is no reason to lose the image
        turned = False
    return ImageOps.exif_transpose(image) if turned else image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparent pixels to white."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        values: NDArray[Any] = np.asarray(image)
        image = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
