"""Max-pooling of feature maps (H,W,N,C)."""

from __future__ import annotations

from typing import Any

from ..backend import Array
from ..engine.autograd import Vjp, primitive
from ..processor import parallel, pieces, threads
from .conv.slabs import _meetings, _slice


@primitive
def max_pool2d(
    xp: Any, x: Array, *, kernel: int, stride: int, padding: int = 0, method: str = "auto"
) -> tuple[Array, Vjp]:
    """The largest value under a sliding window; what lies outside the map does not count.

    Shapes: x (H,W,N,C) -> y (H',W',N,C)   with H' = ⌊(H + 2·padding − kernel)/stride⌋ + 1
    VJP:    g goes to the first pixel of the window, in reading order, that holds the largest value
    """
    if x.ndim != 4 or kernel < 1 or stride < 1 or padding < 0:
        raise ValueError(
            f"max_pool2d: a map (H,W,N,C), kernel and stride from 1 on and padding from 0 on expected, "
            f"not {x.shape}, {kernel}, {stride} and {padding}"
        )
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[:2])
    if out_h < 1 or out_w < 1 or 2 * padding > kernel:
        raise ValueError(f"max_pool2d: kernel {kernel} with padding {padding} does not fit a map {x.shape[:2]}")
    windows = [
        ((_slice(to_row), _slice(to_column)), (_slice(row), _slice(column)))
        for _, to_row, row in _meetings(x.shape[0], out_h, kernel, stride, padding)
        for _, to_column, column in _meetings(x.shape[1], out_w, kernel, stride, padding)
    ]
    N = x.shape[2]
    shares = pieces(xp, N, max(1, -(-N // threads())))
    y = xp.full((out_h, out_w, *x.shape[2:]), -xp.inf, x.dtype)

    def pool(images: slice) -> None:
        x_, y_ = x[:, :, images], y[:, :, images]
        for to, pixels in windows:
            y_[to] = xp.maximum(y_[to], x_[pixels])

    parallel(pool, shares)

    def vjp(g: Array) -> Array:
        dx = xp.zeros(x.shape, g.dtype)

        def back(images: slice) -> None:
            x_, y_, g_, dx_ = (a[:, :, images] for a in (x, y, g, dx))
            open_windows = xp.ones(y_.shape, bool)  # those whose largest value has not been met yet
            for to, pixels in windows:
                here = open_windows[to] & (x_[pixels] == y_[to])
                dx_[pixels] += g_[to] * here
                open_windows[to] &= ~here

        parallel(back, shares)
        return dx

    return y, vjp
