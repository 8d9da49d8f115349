"""Convolution of feature maps: the operation, its checks, and the choice among its forms.

plain      pad, then one shifted product per tap: the formula, to be read first
slabs      the same products, without padding, on runs of pixels that fit a core's cache (the default)
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
from . import padded, slabs, winograd
from .plain import convolution

# The forms by name. Plain stands first, because all others must equal it.
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
    # Every form is a function of the same arguments, and returns the output and its vjp.
    if method == "plain":
        return convolution(xp, x, w, stride, padding)  # (H',W',N,D)
    form = _fast_form(xp, x, w, stride, padding, method)  # which one is fastest depends on shapes and device
    return form(xp, x, w, stride, padding)  # (H',W',N,D)


def _check(x: tuple[int, ...], w: tuple[int, ...], stride: int, padding: int, method: str) -> None:
    """Raise ValueError, with the shapes in it, for arguments that describe no convolution."""
    if method not in METHODS:
        raise ValueError(f"conv2d: method must be one of {', '.join(METHODS)}; not {method!r}")
    # The kernel is square, and its matrices have one row for each channel of the map.
    if len(x) != 4 or len(w) != 4 or w[:3] != (w[0], w[0], x[3]):
        raise ValueError(f"conv2d: an input (H,W,N,C) and a kernel (K,K,C,D) expected, not {x} and {w}")
    if stride < 1 or padding < 0:  # a negative slice would not fail: it would read the map from its other end
        raise ValueError(f"conv2d: stride from 1 on and padding from 0 on expected, not {stride} and {padding}")
    (H, W), K = x[:2], w[0]
    if min(H, W) + 2 * padding < K:  # then not one window fits on the map, and H' or W' would be 0 or less
        raise ValueError(f"conv2d: a {H}×{W} map with padding {padding} is too small for a {K}×{K} kernel")


def _fast_form(xp: Any, x: Array, w: Array, stride: int, padding: int, method: str) -> Callable[..., tuple[Array, Vjp]]:
    """Choose a fast form. Where the one that was asked for cannot serve these arrays, another takes its place."""
    # Winograd's transforms pay only on large maps with many channels. So "auto" does not take it everywhere.
    wanted = method == "winograd" or (method == "auto" and winograd.worthwhile(x.shape, w.shape[3]))
    # Its formulas are for 3×3 kernels at stride 1 in float32. A network has other layers too, so that is no error.
    if wanted and winograd.applies(xp, x, w, stride, padding):
        return winograd.convolution
    # One call for each slab would leave a GPU waiting for the next call most of the time.
    if method == "padded" or prefers_large_calls(xp):
        return padded.convolution
    return slabs.convolution  # for every kernel, stride and dtype
