"""What happens to the pixels of a view, a whole stack of images at a time.

Each function is plain arithmetic on arrays, NumPy or CuPy, with the random part (where to crop, how
much to change) passed in; `augment.py` draws it and says what comes first. Images are float32 in
[0,1], (B,3,P): the three colours are planes of P = side² pixels, so that every operation runs along
memory. Definitions are torchvision's throughout.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .backend import Array, array_module

Host: TypeAlias = NDArray[Any]
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's; they sum to 0.9999


# ── Geometry: a matrix for the rows and one for the columns ───────────────────────────────────────

def resample(images: Array, A_h: Array, A_w: Array) -> Array:
    """A_h · X · A_wᵀ of each image: uint8 (B,H,W,3), (B,S,H), (B,S,W) -> float32 (B,3,S²) in [0,1]."""
    B, H, W, _ = images.shape
    S = A_w.shape[1]
    x = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")              # (B,3,H,W)
    x = x.reshape(B, 3 * H, W) @ (A_w / 255).transpose(0, 2, 1)                 # (B,3·H,S), and bytes to [0,1]
    x = A_h[:, None] @ x.reshape(B, 3, H, S)                                    # (B,3,S,S)
    return x.reshape(B, 3, S * S)


def resize_matrices(xp: Any, start: Host, length: Host, side: int, size: int, flip: Host | None = None) -> Array:
    """The matrices that resize pixels start … start+length−1 of `side` to `size` pixels: (B,size,side).

    Row i weighs the input pixels by a triangle about the point where the centre of output pixel i
    lies (seen from the other end if flipped). The triangle reaches one pixel to each side, or one
    *output* pixel if that is larger: shrinking must average all pixels, not skip some ("antialias").
    It stops at the border of the crop, and the weights sum to 1: Pillow's and torch's bilinear resize.
    """
    flip = np.zeros(len(start)) if flip is None else flip
    start, length, flip = (xp.asarray(v, dtype=xp.float32)[:, None, None] for v in (start, length, flip))
    i = (xp.arange(size, dtype=xp.float32) + 0.5)[:, None] / size               # (size,1) in (0,1)
    j = xp.arange(side, dtype=xp.float32) + 0.5                                 # (side,)
    centre = start + length * (i + flip * (1 - 2 * i))                          # (B,size,1); flipped: 1 − i
    weights = abs(j - centre)                                                   # (B,size,side)
    weights /= xp.maximum(length / size, 1)
    xp.clip(1 - weights, 0, 1, out=weights)
    weights *= (start < j) & (j < start + length)
    weights /= weights.sum(axis=2, keepdims=True)
    return weights


def gaussian_blur(x: Array, sigma: Array) -> Array:
    """Blur each image with a Gaussian of its `sigma`: (B,3,P), (B,) -> (B,3,P).

    The kernel is a tenth of the side, made odd (one pixel, so nothing happens, below a side of 20);
    beyond the border it sees the image mirrored about its outermost pixel (torch's "reflect").
    """
    xp = array_module(x)
    B, _, P = x.shape
    size = round(P**0.5)
    radius = size // 10 // 2
    t = np.arange(-radius, radius + 1)
    kernel = xp.exp(-0.5 * (xp.asarray(t, dtype=xp.float32) / sigma[:, None]) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)                                    # (B,2·radius+1)
    pixel = abs(np.arange(size) + t[:, None])                                      # where tap t of pixel i reads …
    pixel = np.minimum(pixel, 2 * (size - 1) - pixel)                              # … after the mirrors: (taps,size)
    reads = xp.asarray(pixel[..., None] == np.arange(size), dtype=xp.float32)      # … as 0/1: (taps,size,size)
    K = (kernel @ reads.reshape(len(t), P)).reshape(B, 1, size, size)
    return (K @ x.reshape(B, 3, size, size) @ K.transpose(0, 1, 3, 2)).reshape(B, 3, P)


# ── Colour: x (B,3,P) in [0,1] and a factor for each image; x is changed in place ─────────────────

def _blend(x: Array, other: Any, factor: Array) -> Array:
    """factor·x + (1−factor)·other, clipped to [0,1]."""
    x *= factor[:, None, None]
    x += (1 - factor)[:, None, None] * other
    return array_module(x).clip(x, 0, 1, out=x)


def grey_of(x: Array) -> Array:
    """The brightness that the eye sees: (B,3,P) -> (B,1,P)."""
    r, g, b = GREY_WEIGHTS
    return r * x[:, 0:1] + g * x[:, 1:2] + b * x[:, 2:3]


def brightness(x: Array, factor: Array) -> Array:
    """Away from black (or towards it, if factor < 1)."""
    return _blend(x, 0, factor)


def contrast(x: Array, factor: Array) -> Array:
    """Away from the mean grey of the whole image."""
    return _blend(x, grey_of(x).mean(axis=2, keepdims=True), factor)


def saturation(x: Array, factor: Array) -> Array:
    """Away from the grey of each pixel; with factor 0 the image is greyscale."""
    return _blend(x, grey_of(x), factor)


def hue(x: Array, shift: Array) -> Array:
    """Turn the colour circle by `shift` (1 is once around); value and saturation (HSV) stay.

    As a function of the hue, each channel is a trapezoid between `low` and `high`: at `high` within
    one sextant of its own hue (red 0, green 2, blue 4), at `low` from two sextants on. That needs no
    case for each sextant, so all pixels go the same way.
    """
    xp = array_module(x)
    r, g, b = x[:, 0], x[:, 1], x[:, 2]                                            # (B,P)
    high, low = x.max(axis=1), x.min(axis=1)
    chroma = high - low
    red = r == high
    green = (g == high) & ~red
    blue = ~(red | green)
    h = red * (g - b) + green * (b - r) + blue * (r - g)
    h /= xp.maximum(chroma, 1e-20)                                                 # a grey pixel: 0 / tiny
    h += 2 * green + 4 * blue + 6 * shift[:, None]                                 # the new hue, in sextants
    for channel in range(3):
        away = h - 2 * channel
        away -= 6 * xp.rint(away / 6)                                              # the shorter way around
        x[:, channel] = low + chroma * xp.clip(2 - abs(away), 0, 1)
    return x
