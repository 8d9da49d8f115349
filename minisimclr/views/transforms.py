"""Operations on the pixels of a whole stack of images at once.

Each function is arithmetic on arrays of `xp`, NumPy or CuPy. The random part (where to crop, how much to change) is
passed in: `parameters.py` draws it, and `augment.py` says what comes first. Definitions are torchvision's throughout.

Images are float32 in [0,1], x (3,B,P): three planes, one a colour, each of B images of P = side² pixels. So red is one
contiguous piece of memory, whatever B is. What the plain form lacks is this stack: there each call serves one image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array
from ..values import by_default, plain_array, unmasked, whole

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # shares of red, green, blue in grey; torchvision's, they sum to 0.9999
BAND_ROWS = 32  # rows of a banded matrix that a CPU multiplies at a time; few, so that most columns are zero in them


# ── Bytes to numbers, planes to images ─────────────────────────────────────────────────────────


@by_default
def to_float(images: Array) -> Array:
    """Convert bytes to numbers in [0,1]: uint8 (N,H,W,3) -> float32 (N,H,W,3).

    >>> to_float(np.array([[[[0, 51, 255]]]], np.uint8))
    array([[[[0. , 0.2, 1. ]]]], dtype=float32)

    Raises: TypeError if the images are not uint8; ValueError for a wrong shape.
    """
    check_images(images)
    return plain_array(images).astype(np.float32) / np.float32(255)


def check_images(images: Array, size: int = 1) -> tuple[int, int, int]:
    """Return (N, H, W).

    Raises: TypeError if the images are not uint8 or size is no integer; ValueError for a wrong shape or size.
    """
    dtype = getattr(images, "dtype", type(images).__name__)  # a list has none: its type is named then
    if dtype != np.uint8:
        raise TypeError(f"images must be a uint8 array, not {dtype}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(f"images must have the shape (N,H,W,3), not {images.shape}")
    unmasked(images, "the views")
    whole("size", size, 1)  # 8.0 would fail far from here
    count, height, width, _ = images.shape
    return count, height, width


def interleaved(xp: Any, x: Array, size: int) -> Array:
    """Convert planes to images, clipped to [0,1] as weights may sum to 1 + 1e-7: (3,B,P) -> (B,size,size,3)."""
    _, B, P = x.shape
    images = xp.empty((B, P, 3), dtype=xp.float32)
    for channel in range(3):  # three times faster than a transposed copy
        images[..., channel] = x[channel]
    return xp.clip(images, 0, 1, out=images).reshape(B, size, size, 3)


# ── Geometry: a matrix for the rows and one for the columns ───────────────────────────────────────


def resample(xp: Any, images: Array, A_h: Array, A_w: Array) -> Array:
    """Compute A_h · X · A_wᵀ of each image: uint8 (B,H,W,3), (B,S,H), (B,S,W) -> float32 (3,B,S²) in [0,1].

    In X the three colours of a pixel are neighbours; in the result they lie in different planes. They are separated
    between the two products: Xᵀ · A_hᵀ is (W,3,S), and each colour of it is a matrix (W,S) that BLAS can read.
    """
    B, H, W, _ = images.shape
    S = A_w.shape[1]
    rows = images.astype(np.float32).reshape(B, H, 3 * W)  # colours beside each other: one matrix an image
    half = xp.empty((B, 3 * W, S), dtype=xp.float32)  # Xᵀ · A_hᵀ
    banded_product(xp, A_h / 255, rows, out=half.swapaxes(1, 2))  # the 255 turns bytes into [0,1] for free
    x = xp.empty((3, B, S, S), dtype=xp.float32)
    colours = half.reshape(B, W, 3, S).transpose(2, 0, 1, 3)  # (3,B,W,S), a view
    banded_product(xp, A_w, colours, out=x.swapaxes(2, 3))
    return x.reshape(3, B, S * S)  # (3,B,P)


def banded_product(xp: Any, A: Array, X: Array, out: Array) -> None:
    """Compute out = A @ X for stacks of matrices A whose rows are zero except in a band.

    A CPU takes a few rows of A at a time, and leaves out the columns in which they are all zero. A GPU multiplies
    all rows at once: Python would have to wait for it to find the columns, and a few large calls are faster there.
    """
    total = A.shape[-2]
    step = BAND_ROWS if xp is np else total
    for first in range(0, total, step):
        band = A[..., first : first + step, :]  # (…,32,K)
        columns = slice(None)
        if step < total:
            used = np.flatnonzero(band.any(axis=tuple(range(A.ndim - 1))))  # not zero in any matrix of the stack
            columns = slice(int(used[0]), int(used[-1]) + 1)
        xp.matmul(band[..., columns], X[..., columns, :], out=out[..., first : first + step, :])


def resize_matrices(
    xp: Any,
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    side: int,
    size: int,
    flip: NDArray[np.bool_] | None = None,
) -> Array:
    """Build the matrices that resize pixels start … start+length−1 of `side` to `size` pixels: (B,size,side).

    Row i weighs the input pixels by a triangle about the point where the centre of output pixel i
    lies (counted from the other end if the view is flipped). The triangle reaches one pixel to each side, or one
    *output* pixel if that is larger: shrinking must average all pixels, not skip some ("antialias").
    It stops at the border of the crop, and the weights sum to 1: Pillow's and torch's bilinear resize.
    """
    flip = np.zeros(len(start), np.bool_) if flip is None else flip
    shrinks = bool((length > size).any())  # known on the host, so a GPU is not asked
    start, length, flip = (xp.asarray(v, dtype=xp.float32)[:, None] for v in (start, length, flip))  # (B,1)
    i = (xp.arange(size, dtype=xp.float32) + 0.5) / size  # (size,) in (0,1)
    # The input pixels are the first axis, so that NumPy's loops run along memory.
    j = (xp.arange(side, dtype=xp.float32) + 0.5)[:, None, None]  # (side,1,1)
    centre = start + length * (i + flip * (1 - 2 * i))  # (B,size); flipped: 1 − i
    reach = xp.maximum(length / size, 1)  # (B,1)
    if not shrinks:
        # Enlarging: two neighbouring pixels share a total weight of 1. Outside the centre of the border pixel,
        # that pixel gets all of it.
        centre = xp.clip(centre, start + 0.5, start + length - 0.5)
    weights = j - centre  # (side,B,size)
    xp.abs(weights, out=weights)
    if shrinks:
        weights /= reach
    xp.subtract(1, weights, out=weights)  # the triangle: 1 at its centre, 0 at its reach
    xp.clip(weights, 0, 1, out=weights)
    if shrinks:
        weights *= (start < j) & (j < start + length)  # a wide triangle would look beyond the crop
        weights /= weights.sum(axis=0)
    return weights.transpose(1, 2, 0)  # (B,size,side)


def gaussian_blur(xp: Any, x: Array, sigma: Array) -> Array:
    """Blur each image with a Gaussian of its `sigma`: (3,B,P), (B,) -> (3,B,P).

    The kernel is a tenth of the side, made odd (one pixel, so nothing happens, below a side of 20);
    beyond the border it sees the image mirrored about its outermost pixel (torch's "reflect").
    """
    _, B, P = x.shape
    size = round(P**0.5)
    radius = size // 10 // 2
    t = xp.arange(-radius, radius + 1, dtype=xp.float32)  # (2·radius+1,) pixels from the centre
    kernel = xp.exp(-0.5 * (t / sigma[:, None]) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)  # (B,2·radius+1)
    # Row i of a blurring matrix is the kernel from column i on, so each entry of the kernel fills a diagonal.
    wide = xp.zeros((B, size, size + 2 * radius), dtype=xp.float32)
    diagonals = wide.reshape(B, -1)
    for tap in range(2 * radius + 1):
        diagonals[:, tap :: size + 2 * radius + 1][:, :size] = kernel[:, tap, None]
    K = wide[:, :, radius : radius + size]  # (B,size,size)
    for beyond in range(1, radius + 1):  # what lies outside is a mirror image, about pixel 0 and pixel size−1
        K[:, :, beyond] += wide[:, :, radius - beyond]
        K[:, :, size - 1 - beyond] += wide[:, :, radius + size - 1 + beyond]
    x = x.reshape(3, B, size, size)
    half, whole = xp.empty_like(x), xp.empty_like(x)  # after the first product, and after both
    banded_product(xp, K, x, out=half)
    banded_product(xp, K, half.swapaxes(2, 3), out=whole.swapaxes(2, 3))
    return whole.reshape(3, B, P)


# ── Colour: x (3,B,P) in [0,1] and a factor for each image; x is changed in place ─────────────────


def _blend(xp: Any, x: Array, other: Any, factor: Array) -> Array:
    """Blend x with another image: factor·x + (1−factor)·other, clipped to [0,1]."""
    x *= factor[:, None]
    x += (1 - factor)[:, None] * other
    return xp.clip(x, 0, 1, out=x)


def grey_of(xp: Any, x: Array) -> Array:
    """Return the brightness that the eye sees: (3,…) -> (…)."""
    return (xp.asarray(GREY_WEIGHTS, dtype=x.dtype) @ x.reshape(3, -1)).reshape(x.shape[1:])


def brightness(xp: Any, x: Array, factor: Array) -> Array:
    """Move away from black (or towards it, if factor < 1)."""
    x *= factor[:, None]
    return xp.clip(x, 0, 1, out=x)


def contrast(xp: Any, x: Array, factor: Array) -> Array:
    """Move away from the mean grey of the whole image."""
    pixels = x.shape[2]
    mean = x @ xp.full(pixels, 1 / pixels, dtype=x.dtype)  # (3,B); a product, because np.mean is slower
    return _blend(xp, x, grey_of(xp, mean)[:, None], factor)


def saturation(xp: Any, x: Array, factor: Array) -> Array:
    """Move away from the grey of each pixel; with factor 0 the image is greyscale."""
    return _blend(xp, x, grey_of(xp, x), factor)


def hue(xp: Any, x: Array, shift: Array) -> Array:
    """Turn the colour circle by `shift` (1 is once around); value and saturation (HSV) stay.

    Count hues in sextants from red: green at 2, blue at −2. With high and low the largest and the
    smallest channel and chroma = high − low, the hue is

        h = ±(g + b − r + high − 2·low) / chroma,  with the sign of g − b,

    in each sextant. As a function of it, a channel is a trapezoid between low and high: high within
    one sextant of its own hue, low from two on. For −7 ≤ z ≤ 7 that is low + chroma·clip(||z|−3|−1, 0, 1).
    The code multiplies all of this by chroma, so it needs no case for each sextant and never divides by zero.
    """
    r, g, b = x  # (B,P)
    high, low = x.max(axis=0), x.min(axis=0)  # (B,P)
    chroma = high - low
    h = (g - low) + (b - low) + (high - r)
    xp.copysign(h, g - b, out=h)  # −3·chroma … 3·chroma
    turn = 6 * shift - 2 * xp.arange(3, dtype=x.dtype)[:, None]  # (3,B), counted from each channel's own hue
    turn -= 6 * xp.rint(turn / 6)  # the shorter way round the circle
    xp.multiply(turn[:, :, None], chroma, out=x)  # (3,B,P)
    x += h
    xp.abs(x, out=x)
    x -= 3 * chroma
    xp.abs(x, out=x)  # ||z|−3|·chroma
    x += low - chroma
    xp.maximum(x, low, out=x)
    return xp.minimum(x, high, out=x)
