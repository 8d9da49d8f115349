"""The plain form of max-pooling: pad with −∞, then take the largest value below the taps."""

from __future__ import annotations

import functools
from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp


def pool(xp: Any, x: Array, kernel: int, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Pool the whole map, one tap of the window after the other.

    Shapes: x (H,W,N,C) -> y (H',W',N,C)
    VJP:    g goes to the first pixel of the window, in reading order, that holds the largest value
    """
    H, W = x.shape[:2]
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in (H, W))
    ring = [(padding, padding), (padding, padding), (0, 0), (0, 0)]
    padded = xp.pad(x, ring, constant_values=-xp.inf)  # (H+2·padding, W+2·padding, N, C); −∞ exceeds no pixel
    # In a window of nothing but −∞ the first largest may be a pixel of the padding; its gradient is lost.
    taps = [(i, j) for i in range(kernel) for j in range(kernel)]  # in reading order, which decides ties

    def below(i: int, j: int) -> tuple[slice, slice]:
        """The pixels of `padded` that tap (i, j) reads, one for each window."""
        return slice(i, i + stride * out_h, stride), slice(j, j + stride * out_w, stride)

    y = functools.reduce(xp.maximum, (padded[below(i, j)] for i, j in taps))  # (H',W',N,C)

    def vjp(g: Array) -> Array:  # g (H',W',N,C)
        dpadded = xp.zeros(padded.shape, g.dtype)
        waiting = xp.ones(y.shape, bool)  # windows whose largest value has not been met yet
        for i, j in taps:
            pixels = padded[below(i, j)]  # (H',W',N,C)
            first = waiting & is_largest(xp, pixels, y)
            dpadded[below(i, j)] += g * first  # windows overlap, so a pixel may be the largest of several
            waiting &= ~first  # a second pixel with the same value gets nothing
        return dpadded[padding : padding + H, padding : padding + W]  # (H,W,N,C)

    return y, vjp


def is_largest(xp: Any, pixels: Array, y: Array) -> Array:
    """Return True where a pixel holds the largest value of its window."""
    # A NaN makes the value of its window NaN, but differs from itself, so == alone would not find it.
    return (pixels == y) | xp.isnan(pixels)
