"""Convolution of feature maps: the operation, its checks, and the choice among its forms.

plain      pad, then one shifted product per tap: the formula, to be read first
slabs      the same products on runs of pixels that fit a core's cache, without padding (the default)
padded     few large products, for a GPU
winograd   a quarter of the multiplications, for 3×3 kernels in float32; it rounds more
auto       Winograd where it is faster, else slabs (on a GPU padded)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp, primitive
from ...processor import prefers_large_calls
from . import padded, plain, slabs, winograd

# the forms by name; plain stands first because it is what the others must equal
METHODS = ("plain", "slabs", "padded", "winograd", "auto")


@primitive
def conv2d(
    xp: Any, x: Array, w: Array, *, stride: int = 1, padding: int = 0, method: str = "slabs"
) -> tuple[Array, Vjp]:
    """Slide a bank of D kernels over feature maps. As everywhere in deep learning this is a cross-correlation.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)   with H' = ⌊(H + 2·padding − K)/stride⌋ + 1
    VJP:    dx by (3.2), dw by (3.3)
    Raises: ValueError for shapes that do not fit each other, and for an unknown method

    >>> from minisimclr import Tensor, ops
    >>> image = Tensor([[[[1.0]], [[2.0]], [[3.0]]]])  # (1,3,1,1): a row of three pixels
    >>> ops.conv2d(image, Tensor([[[[10.0]]]])).data.ravel().tolist()
    [10.0, 20.0, 30.0]
    """
    _check(x.shape, w.shape, stride, padding, method)
    # every form is a function of the same five arguments, and gives the output and its vjp
    if method == "plain":
        return plain.convolution(xp, x, w, stride, padding)  # (H',W',N,D)
    form = _fast_form(xp, x, w, stride, padding, method)
    return form(xp, x, w, stride, padding)


def _check(x: tuple[int, ...], w: tuple[int, ...], stride: int, padding: int, method: str) -> None:
    """Raise ValueError, with the shapes in it, for a convolution that does not exist."""
    if method not in METHODS:
        raise ValueError(f"conv2d: method must be one of {', '.join(METHODS)}; not {method!r}")
    # the kernel is square, and has one matrix row for each channel of the map
    if len(x) != 4 or len(w) != 4 or w[:3] != (w[0], w[0], x[3]):
        raise ValueError(f"conv2d: an input (H,W,N,C) and a kernel (K,K,C,D) expected, not {x} and {w}")
    if stride < 1 or padding < 0:
        raise ValueError(f"conv2d: stride from 1 on and padding from 0 on expected, not {stride} and {padding}")
    (H, W), K = x[:2], w[0]
    # H' or W' would be 0: not one window fits on the map
    if min(H, W) + 2 * padding < K:
        raise ValueError(f"conv2d: a {H}×{W} map with padding {padding} is too small for a {K}×{K} kernel")


def _fast_form(xp: Any, x: Array, w: Array, stride: int, padding: int, method: str) -> Callable[..., tuple[Array, Vjp]]:
    """Choose a fast form. A name that does not fit the arrays gives way to the form that serves all of them."""
    # Its transforms pay on large maps with many channels only, so "auto" does not take Winograd everywhere.
    wanted = method == "winograd" or (method == "auto" and winograd.worthwhile(x.shape, w.shape[3]))
    # They are made for 3×3 kernels at stride 1 in float32. A network has other layers, too, so this is no error.
    if wanted and winograd.applies(xp, x, w, stride, padding):
        return winograd.convolution
    # a slab per call would leave a GPU waiting for its next call most of the time
    if method == "padded" or prefers_large_calls(xp):
        return padded.convolution
    return slabs.convolution
