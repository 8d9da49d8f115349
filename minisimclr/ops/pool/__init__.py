"""Max-pooling of feature maps: the operation, its checks, and the choice of a form.

plain       pad with −∞, then take the largest value below the taps of each window
threaded    each thread pools a share of the images, without a padded copy (the default)
auto        threaded
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp, primitive
from . import plain, threaded

# The forms by name. Plain stands first, because the other must equal it.
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
    if method not in METHODS:  # a misspelled "plain" must not quietly run the fast form
        raise ValueError(f"max_pool2d: method must be one of {', '.join(METHODS)}; not {method!r}")
    if x.ndim != 4 or kernel < 1 or stride < 1 or padding < 0:  # slices would go wrong without a word
        raise ValueError(
            f"max_pool2d: a map (H,W,N,C), kernel and stride from 1 on and padding from 0 on expected, "
            f"not {x.shape}, {kernel}, {stride} and {padding}"
        )
    # As in torch: with more padding than half a window, the centre of a window could lie outside of the map.
    if min(x.shape[:2]) + 2 * padding < kernel or 2 * padding > kernel:
        raise ValueError(f"max_pool2d: kernel {kernel} with padding {padding} does not fit a map {x.shape[:2]}")
    # Both forms return the output and its vjp. Pooling only picks numbers, so their outputs agree bit for bit.
    if method == "plain":
        return plain.pool(xp, x, kernel, stride, padding)  # (H',W',N,C)
    return threaded.pool(xp, x, kernel, stride, padding)  # (H',W',N,C)
