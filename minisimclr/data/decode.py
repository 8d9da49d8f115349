"""From the bytes of an image file to its pixels; the file is untrusted.

What it declares is looked at first (headers.py): its size, its checksums, the work and the memory that decoding takes.
Then one decoder of Pillow is called by name. Pillow would try those of forty formats, some of which start programs.
"""

from __future__ import annotations

import ctypes
import functools
import io
import warnings
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from .colours import rgb
from .exif import orientation, turned
from .headers import Image as Header
from .headers import look_at
from .memory import DECODING, PER_PIXEL, RefusedError
from .png import check_pixels
from .reading import MEGA, Reading

LARGE = 32 * MEGA  # pixels of a JPEG that is decoded small first: what is cut off may not take 300 MiB to be refused
MAX_PIXELS = Reading().megapixels * MEGA


def decode_image(
    file: IO[bytes], size: int, remarks: set[str] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode the central square of the image, resized (antialiased, bilinear): uint8 (size,size,3).

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays twice as large as wanted. An image of
    size×size pixels is returned as it is. Raises: what `pixels` raises.
    """
    image = pixels(file.read(), 2 * size, max_pixels, remarks)
    if image.shape[:2] == (size, size):
        return image
    height, width = image.shape[:2]
    left, top, side = max(0, width - height) / 2, max(0, height - width) / 2, min(width, height)
    square = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=square))


def pixels(
    data: bytes | bytearray | memoryview,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    remarks: set[str] | None = None,
) -> NDArray[np.uint8]:
    """Decode an image: uint8 (H,W,3).

    The image is turned upright as EXIF says. Grey, palette, CMYK and 16-bit images become RGB, transparent pixels
    become white, and an animation gives its first frame. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its
    shorter side stays at least `at_least`, and where it has more than `max_pixels`. What should be said of a whole
    data set, once, is added to `remarks`.

    Raises: ValueError, in words that fit behind the name of the file, for an image that is refused or damaged.
    """
    found = look_at(memoryview(data))
    with warnings.catch_warnings():  # Pillow warns of odd data, which are looked at here
        warnings.simplefilter("ignore")
        try:
            return _decoded(found, at_least, max_pixels, set() if remarks is None else remarks)
        except RefusedError:
            raise
        except MemoryError:
            raise RefusedError("takes more memory to decode than there is") from None
        except Exception as error:  # a decoder may raise anything for hostile bytes
            raise ValueError(_in_our_words(found.format, error)) from None


def header(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return the width and the height of an image when it is upright; nothing is decoded.

    Raises: ValueError for a file that is no image.
    """
    found = look_at(memoryview(data))
    width, height, turn = found.width, found.height, found.orientation
    if not width:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = _opened(found)
            except RefusedError:
                raise
            except Exception as error:
                raise ValueError(_in_our_words(found.format, error)) from None
        (width, height), turn = image.size, _turn_of(image, found)
    return (height, width) if turn >= 5 else (width, height)


# ── Decoding ──────────────────────────────────────────────────────────────────────────────────────


def _decoded(found: Header, at_least: int | None, max_pixels: int, remarks: set[str]) -> NDArray[np.uint8]:
    """Decode what was looked at, as soon as there is memory for it."""
    scale = _jpeg_scale(found, at_least, max_pixels)
    if found.width:  # else the decoder is opened first, which takes no more than the file
        _refuse_large(-(-found.width // scale), -(-found.height // scale), max_pixels)
        wide, high = found.width, found.height
        image = None
    else:
        image = _opened(found)
        wide, high = image.size
        _refuse_large(wide, high, max_pixels)
        _refuse_tiles(image, max_pixels)
    cost = found.per_pixel * wide * high // scale**2 + found.fixed
    with DECODING.hold(cost, alone=PER_PIXEL * max_pixels):
        if found.png is not None:
            check_pixels(found.png)
        if found.format == "JPEG" and scale == 1 and wide * high > LARGE:  # is it whole? An eighth takes a 64th
            _drafted(found, 8).load()
        image = image or _drafted(found, scale)
        turn = _turn_of(image, found)
        result = rgb(image, found, lambda: _opened(found), remarks)
        del image  # a second copy is made where the image is turned
        return turned(result, turn) if turn > 1 else result


def _drafted(found: Header, scale: int) -> Image.Image:
    """Open the file, which is then decoded at a part of its size."""
    image = _opened(found)
    if scale > 1:
        image.draft(None, (found.width // scale, found.height // scale))
    return image


def _jpeg_scale(found: Header, at_least: int | None, max_pixels: int) -> int:
    """Return by what a JPEG may be divided while it is decoded: 1, 2, 4 or 8."""
    if found.format != "JPEG":
        return 1
    shorter, area = min(found.width, found.height), found.width * found.height
    wanted = max((s for s in (1, 2, 4, 8) if at_least is not None and shorter >= s * at_least), default=1)
    return max(wanted, next((s for s in (1, 2, 4) if area <= max_pixels * s * s), 8))


def _refuse_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RefusedError(
            f"declares {width}×{height} pixels, more than {max_pixels // MEGA} megapixels; "
            "--megapixels raises the limit"
        )


def _refuse_tiles(image: Image.Image, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles are larger than an image may be."""
    tags: Any = getattr(image, "tag_v2", {})
    wide, high = (tags.get(tag, 0) for tag in (322, 323))
    if isinstance(wide, int) and isinstance(high, int):
        _refuse_large(wide, high, max_pixels)


def _opened(found: Header) -> Image.Image:
    """Open the file with the decoder of its format, which reads no pixels yet."""
    file = io.BytesIO(b"".join(found.pieces))
    return _decoder(found.format)(file)


def _decoder(name: str) -> Callable[[IO[bytes]], Image.Image]:
    """Return Pillow's class for a format. Image.open would refuse photos of 200 megapixels before they are reduced."""
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    classes: dict[str, Any] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WEBP": WebPImagePlugin.WebPImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }
    if name == "TIFF":
        _silence_libtiff()
    if name == "HEIC":
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            raise RefusedError("a HEIC image, which needs the extra: pip install pillow-heif") from None
        opener: Callable[[IO[bytes]], Image.Image] = HeifImageFile
        return opener
    if name == "AVIF":
        try:
            from PIL import AvifImagePlugin
        except ImportError:
            raise RefusedError("an AVIF image, which this version of Pillow does not read") from None
        return AvifImagePlugin.AvifImageFile
    return classes[name]  # type: ignore[no-any-return]


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff, with which Pillow reads TIFF files, from writing lines of its own to stderr.

    It calls a function for each error, and writes if there is one. To turn stderr away instead would concern all
    threads. The functions are looked for in what Pillow's own library loads; where they are hidden, the lines stay.
    """
    try:
        library = ctypes.CDLL(_imaging.__file__)
    except OSError:
        return
    for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandler", "TIFFSetWarningHandlerExt"):
        setter = getattr(library, name, None)
        if setter is not None:
            setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            setter(None)


def _turn_of(image: Image.Image, found: Header) -> int:
    """Return the orientation that is left to be undone: Pillow turns TIFF itself, and knows AVIF's."""
    if found.format in ("AVIF", "HEIC"):
        return orientation(image.info.get("exif") or b"")
    return found.orientation


def _in_our_words(name: str, error: Exception) -> str:
    """Say what is wrong with a file that its decoder gave up on."""
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or "unexpected end" in text.lower() or isinstance(error, EOFError):
        return "cut off: the file ends before the image does"
    return f"damaged, or a kind of {name} that is not read" + (f" ({text[:100]})" if text else "")
