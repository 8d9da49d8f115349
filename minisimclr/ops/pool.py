"""Max-pooling of feature maps (H,W,N,C): the operation, its plain form, and the same on threads.

plain       pad with −∞, then the larger of what the taps of the window show
threaded    without the padding, on shares of the images (the default)
auto        threaded
"""

from __future__ import annotations

import functools
from typing import Any

from ..backend import Array
from ..engine.autograd import Vjp, primitive
from ..processor import parallel, pieces, threads

# the forms by name; plain stands first because it is what the other must equal
METHODS = ("plain", "threaded", "auto")


@primitive
def max_pool2d(
    xp: Any, x: Array, *, kernel: int, stride: int, padding: int = 0, method: str = "auto"
) -> tuple[Array, Vjp]:
    """Take the largest value under a sliding window; what lies outside the map does not count.

    Shapes: x (H,W,N,C) -> y (H',W',N,C)   with H' = ⌊(H + 2·padding − kernel)/stride⌋ + 1
    VJP:    g goes to the first pixel of the window, in reading order, that holds the largest value
    Raises: ValueError for a window that does not fit the map, and for an unknown method

    >>> from minisimclr import Tensor, ops
    >>> row = Tensor([[[[1.0]], [[3.0]], [[2.0]]]] * 2)  # (2,3,1,1): two equal rows of three pixels
    >>> ops.max_pool2d(row, kernel=2, stride=1).data.ravel().tolist()
    [3.0, 3.0]
    """
    if method not in METHODS:
        raise ValueError(f"max_pool2d: method must be one of {', '.join(METHODS)}; not {method!r}")
    if x.ndim != 4 or kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"max_pool2d: a map (H,W,N,C), kernel and stride from 1 on and padding from 0 on expected, "
            f"not {x.shape}, {kernel}, {stride} and {padding}"
        )
    # with more padding than half a window, some windows would see nothing but padding
    if min(x.shape[:2]) + 2 * padding < kernel or 2 * padding > kernel:
        raise ValueError(f"max_pool2d: kernel {kernel} with padding {padding} does not fit a map {x.shape[:2]}")
    # both forms give the output and its vjp
    if method == "plain":
        return _plain(xp, x, kernel, stride, padding)
    return _threaded(xp, x, kernel, stride, padding)


def _plain(xp: Any, x: Array, kernel: int, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Pool the whole map, one tap of the window after the other."""
    H, W = x.shape[:2]
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in (H, W))
    ring = [(padding, padding), (padding, padding), (0, 0), (0, 0)]
    padded = xp.pad(x, ring, constant_values=-xp.inf)  # (H+2·padding, W+2·padding, N, C); −∞ is never the largest
    taps = [(i, j) for i in range(kernel) for j in range(kernel)]  # in reading order

    def below(i: int, j: int) -> tuple[slice, slice]:
        """The pixels of `padded` that tap (i, j) reads, one for each window."""
        return slice(i, i + stride * out_h, stride), slice(j, j + stride * out_w, stride)

    y = functools.reduce(xp.maximum, (padded[below(i, j)] for i, j in taps))  # (H',W',N,C)

    def vjp(g: Array) -> Array:  # g (H',W',N,C)
        dpadded = xp.zeros(padded.shape, g.dtype)
        waiting = xp.ones(y.shape, bool)  # windows whose largest value has not been met yet
        for i, j in taps:
            pixels = padded[below(i, j)]  # (H',W',N,C)
            first = waiting & _is_largest(xp, pixels, y)
            dpadded[below(i, j)] += g * first  # windows overlap, so a pixel may be the largest of several
            waiting &= ~first  # a second pixel with the same value gets nothing
        return dpadded[padding : padding + H, padding : padding + W]  # (H,W,N,C)

    return y, vjp


def _is_largest(xp: Any, pixels: Array, y: Array) -> Array:
    """True where a pixel holds the value of its window. NaN differs from itself, but where it is, it is the largest."""
    return (pixels == y) | xp.isnan(pixels)


# ── The same on threads ───────────────────────────────────────────────────────────────────────────


def _threaded(xp: Any, x: Array, kernel: int, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Pool shares of the images on threads, without the padded map that the plain form makes and keeps.

    A tap reads only the windows for which it lies on the map (`_inside`). So a window of nothing but −∞ sends its
    gradient to its first pixel; in the plain form that may be a pixel of the padding.

    Measured on a two-core CPU (32×32 maps, 128 views, 64 channels, a 3×3 window): on one thread the plain form is as
    fast. What is gained is the other threads, and the memory of the padded map.
    """
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[:2])
    rows = [_inside(k, x.shape[0], out_h, stride, padding) for k in range(kernel)]
    columns = [_inside(k, x.shape[1], out_w, stride, padding) for k in range(kernel)]
    taps = [((to_row, to_column), (row, column)) for to_row, row in rows for to_column, column in columns]
    N = x.shape[2]
    shares = pieces(xp, N, max(1, -(-N // threads())))  # on a GPU all images at once
    y = xp.full((out_h, out_w, *x.shape[2:]), -xp.inf, x.dtype)  # (H',W',N,C)

    def pool(images: slice) -> None:
        x_, y_ = x[:, :, images], y[:, :, images]  # views of the share; no two shares overlap
        for windows, pixels in taps:
            y_[windows] = xp.maximum(y_[windows], x_[pixels])  # (windows, windows, images, C)

    parallel(pool, shares)

    def vjp(g: Array) -> Array:  # g (H',W',N,C)
        dx = xp.zeros(x.shape, g.dtype)

        def hand_back(images: slice) -> None:
            x_, y_, g_, dx_ = (a[:, :, images] for a in (x, y, g, dx))
            waiting = xp.ones(y_.shape, bool)  # as in the plain form
            for windows, pixels in taps:
                first = waiting[windows] & _is_largest(xp, x_[pixels], y_[windows])
                dx_[pixels] += g_[windows] * first
                waiting[windows] &= ~first

        parallel(hand_back, shares)
        return dx

    return y, vjp


def _inside(k: int, size: int, out: int, stride: int, padding: int) -> tuple[slice, slice]:
    """The windows of which tap k lies on the map, along one side, and the pixels that it reads there."""
    first = max(0, -((k - padding) // stride))  # window t reads pixel t·stride + k − padding, which must be ≥ 0 …
    stop = max(first, min(out, (size - 1 + padding - k) // stride + 1))  # … and < size
    start = first * stride + k - padding
    return slice(first, stop), slice(start, start + (stop - first) * stride, stride)
