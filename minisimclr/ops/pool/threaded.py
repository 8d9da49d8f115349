"""Max-pooling on threads: the plain form uses one core, and makes and keeps a padded map.

Here each thread pools a share of the images, and nothing is padded. A window of nothing but −∞ sends its gradient to
its first pixel; in the plain form that may be a pixel of the padding.

Measured on a two-core CPU (32×32 maps, 128 views, 64 channels, a 3×3 window): on one thread the plain form is as
fast. This form gains the other threads, and the memory of the padded map.
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp
from ...processor import parallel, pieces, prefers_large_calls, threads
from .plain import is_largest


def pool(xp: Any, x: Array, kernel: int, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Pool shares of the images on threads. A tap reads only the windows for which it lies on the map (`_inside`)."""
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[:2])
    rows = [_inside(k, x.shape[0], out_h, stride, padding) for k in range(kernel)]
    columns = [_inside(k, x.shape[1], out_w, stride, padding) for k in range(kernel)]
    taps = [((to_row, to_column), (row, column)) for to_row, row in rows for to_column, column in columns]
    N = x.shape[2]
    shares = pieces(xp, N, max(1, -(-N // threads())))  # on a GPU all images at once
    y = xp.full((out_h, out_w, *x.shape[2:]), -xp.inf, x.dtype)  # (H',W',N,C)

    def pool_share(images: slice) -> None:
        x_, y_ = x[:, :, images], y[:, :, images]  # views of the share; no two shares overlap
        for windows, pixels in taps:
            y_[windows] = xp.maximum(y_[windows], x_[pixels])  # (windows, windows, images, C)

    parallel(pool_share, shares)

    def vjp(g: Array) -> Array:  # g (H',W',N,C)
        dx = xp.zeros(x.shape, g.dtype)

        def hand_back(images: slice) -> None:
            x_, y_, g_, dx_ = (a[:, :, images] for a in (x, y, g, dx))
            waiting = xp.ones(y_.shape, bool)  # windows whose gradient was not handed back yet, as in the plain form
            # A NaN is rare, and to look for it once in y is quicker than in x at every tap. On a GPU the answer would
            # have to come to the host first.
            plain_numbers = not prefers_large_calls(xp) and not xp.isnan(y_).any()
            for windows, pixels in taps:
                largest = x_[pixels] == y_[windows] if plain_numbers else is_largest(xp, x_[pixels], y_[windows])
                first = waiting[windows] & largest
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
