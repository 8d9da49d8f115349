"""What happens to the pixels of a view, a whole stack of images at a time.

Each function is plain arithmetic on arrays, NumPy or CuPy, with the random part (where to crop, how
much to change) passed in; `augment.py` draws it and says what comes first. Images are float32 in
[0,1], x (3,B,P): three planes, one a colour, each of B images of P = side² pixels. So red is one
contiguous piece of memory, whatever B is. Definitions are torchvision's throughout.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module
from ..processor import pieces

Host: TypeAlias = NDArray[Any]
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's; they sum to 0.9999
BAND = 32  # rows of a banded matrix that are multiplied at a time


# ── Geometry: a matrix for the rows and one for the columns ───────────────────────────────────────


def resample(images: Array, A_h: Array, A_w: Array) -> Array:
    """A_h · X · A_wᵀ of each image: uint8 (B,H,W,3), (B,S,H), (B,S,W) -> float32 (3,B,S²) in [0,1].

    The colours of a pixel are neighbours in X, and in different planes afterwards. They part on the
    way: Xᵀ · A_hᵀ is (W,3,S), of which each colour is a matrix (W,S) that BLAS can read.
    """
    xp = array_module(images)
    B, H, W, _ = images.shape
    S = A_w.shape[1]
    rows = images.astype(np.float32).reshape(B, H, 3 * W)
    half = xp.empty((B, 3 * W, S), dtype=xp.float32)
    banded_product(A_h / 255, rows, out=half.swapaxes(1, 2))  # and bytes to [0,1]
    x = xp.empty((3, B, S, S), dtype=xp.float32)
    banded_product(A_w, half.reshape(B, W, 3, S).transpose(2, 0, 1, 3), out=x.swapaxes(2, 3))
    return x.reshape(3, B, S * S)


def banded_product(A: Array, X: Array, out: Array) -> None:
    """out = A @ X for stacks of matrices whose rows are zero but for a band.

    For every few rows of A, the columns in which they are all zero take no part.
    """
    xp = array_module(A)
    bands = pieces(xp, A.shape[-2], BAND)
    for rows in bands:
        some = A[..., rows, :]
        columns = slice(None)
        if len(bands) > 1:
            used = np.flatnonzero(some.any(axis=tuple(range(A.ndim - 1))))
            columns = slice(int(used[0]), int(used[-1]) + 1)
        xp.matmul(some[..., columns], X[..., columns, :], out=out[..., rows, :])


def resize_matrices(xp: Any, start: Host, length: Host, side: int, size: int, flip: Host | None = None) -> Array:
    """The matrices that resize pixels start … start+length−1 of `side` to `size` pixels: (B,size,side).

    Row i weighs the input pixels by a triangle about the point where the centre of output pixel i
    lies (seen from the other end if flipped). The triangle reaches one pixel to each side, or one
    *output* pixel if that is larger: shrinking must average all pixels, not skip some ("antialias").
    It stops at the border of the crop, and the weights sum to 1: Pillow's and torch's bilinear resize.
    """
    flip = np.zeros(len(start)) if flip is None else flip
    shrinks = bool((length > size).any())
    start, length, flip = (xp.asarray(v, dtype=xp.float32)[:, None] for v in (start, length, flip))  # (B,1)
    i = (xp.arange(size, dtype=xp.float32) + 0.5) / size  # (size,) in (0,1)
    j = (xp.arange(side, dtype=xp.float32) + 0.5)[:, None, None]  # first, so that all runs along memory
    centre = start + length * (i + flip * (1 - 2 * i))  # (B,size); flipped: 1 − i
    reach = xp.maximum(length / size, 1)
    if not shrinks:  # two neighbours share a weight of 1, and beyond the outermost pixel's centre it has it all
        centre = xp.clip(centre, start + 0.5, start + length - 0.5)
    weights = j - centre  # (side,B,size)
    xp.abs(weights, out=weights)
    if shrinks:
        weights /= reach
    xp.subtract(1, weights, out=weights)
    xp.clip(weights, 0, 1, out=weights)
    if shrinks:
        weights *= (start < j) & (j < start + length)
        weights /= weights.sum(axis=0)
    return weights.transpose(1, 2, 0)


def gaussian_blur(x: Array, sigma: Array) -> Array:
    """Blur each image with a Gaussian of its `sigma`: (3,B,P), (B,) -> (3,B,P).

    The kernel is a tenth of the side, made odd (one pixel, so nothing happens, below a side of 20);
    beyond the border it sees the image mirrored about its outermost pixel (torch's "reflect").
    """
    xp = array_module(x)
    _, B, P = x.shape
    size = round(P**0.5)
    radius = size // 10 // 2
    t = xp.arange(-radius, radius + 1, dtype=xp.float32)
    kernel = xp.exp(-0.5 * (t / sigma[:, None]) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)  # (B,2·radius+1)
    wide = xp.zeros((B, size, size + 2 * radius), dtype=xp.float32)  # pixel i reads from i−radius on:
    diagonals = wide.reshape(B, -1)
    for tap in range(2 * radius + 1):  # … each tap is a diagonal
        diagonals[:, tap :: size + 2 * radius + 1][:, :size] = kernel[:, tap, None]
    K = wide[:, :, radius : radius + size]
    for beyond in range(1, radius + 1):  # the mirrors, at pixels 0 and size−1
        K[:, :, beyond] += wide[:, :, radius - beyond]
        K[:, :, size - 1 - beyond] += wide[:, :, radius + size - 1 + beyond]
    x = x.reshape(3, B, size, size)
    half, whole = xp.empty_like(x), xp.empty_like(x)
    banded_product(K, x, out=half)
    banded_product(K, half.swapaxes(2, 3), out=whole.swapaxes(2, 3))
    return whole.reshape(3, B, P)


# ── Colour: x (3,B,P) in [0,1] and a factor for each image; x is changed in place ─────────────────


def _blend(x: Array, other: Any, factor: Array) -> Array:
    """factor·x + (1−factor)·other, clipped to [0,1]."""
    x *= factor[:, None]
    x += (1 - factor)[:, None] * other
    return array_module(x).clip(x, 0, 1, out=x)


def grey_of(x: Array) -> Array:
    """The brightness that the eye sees: (3,…) -> (…)."""
    xp = array_module(x)
    return (xp.asarray(GREY_WEIGHTS, dtype=x.dtype) @ x.reshape(3, -1)).reshape(x.shape[1:])


def brightness(x: Array, factor: Array) -> Array:
    """Away from black (or towards it, if factor < 1)."""
    x *= factor[:, None]
    return array_module(x).clip(x, 0, 1, out=x)


def contrast(x: Array, factor: Array) -> Array:
    """Away from the mean grey of the whole image."""
    pixels = x.shape[2]
    mean = x @ array_module(x).full(pixels, 1 / pixels, dtype=x.dtype)  # (3,B), a product: np.mean is slower
    return _blend(x, grey_of(mean)[:, None], factor)


def saturation(x: Array, factor: Array) -> Array:
    """Away from the grey of each pixel; with factor 0 the image is greyscale."""
    return _blend(x, grey_of(x), factor)


def hue(x: Array, shift: Array) -> Array:
    """Turn the colour circle by `shift` (1 is once around); value and saturation (HSV) stay.

    Count hues in sextants from red: green at 2, blue at −2. With high and low the largest and the
    smallest channel and chroma = high − low, the hue is

        h = ±(g + b − r + high − 2·low) / chroma,  with the sign of g − b,

    in each sextant. As a function of it, a channel is a trapezoid between low and high: high within
    one sextant of its own hue, low from two on. For −7 ≤ z ≤ 7 that is low + chroma·clip(||z|−3|−1, 0, 1).
    Below all of this is multiplied by chroma: no case for each sextant, and no division by zero.
    """
    xp = array_module(x)
    r, g, b = x  # (B,P)
    high, low = x.max(axis=0), x.min(axis=0)
    chroma = high - low
    h = (g - low) + (b - low) + (high - r)
    xp.copysign(h, g - b, out=h)  # −3·chroma … 3·chroma
    turn = 6 * shift - 2 * xp.arange(3, dtype=x.dtype)[:, None]  # (3,B), from each one's own hue
    turn -= 6 * xp.rint(turn / 6)  # the shorter way around
    xp.multiply(turn[:, :, None], chroma, out=x)
    x += h
    xp.abs(x, out=x)
    x -= 3 * chroma
    xp.abs(x, out=x)
    x += low - chroma
    xp.maximum(x, low, out=x)
    return xp.minimum(x, high, out=x)
