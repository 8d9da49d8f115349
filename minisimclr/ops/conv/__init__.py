"""Convolution of feature maps: one check, and the choice between the forms.

`slabs.py` is nine products, slab by slab; `winograd.py` takes fewer multiplications; `padded.py` is for a GPU.
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp, primitive
from ...processor import prefers_large_calls
from . import padded, slabs, winograd


@primitive
def conv2d(
    xp: Any, x: Array, w: Array, *, stride: int = 1, padding: int = 0, method: str = "direct"
) -> tuple[Array, Vjp]:
    """Slide a bank of D kernels over feature maps: (3.1), a cross-correlation as everywhere in deep learning.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)   with H' = ⌊(H + 2·padding − K)/stride⌋ + 1
    VJP:    dx by (3.2), dw by (3.3)
    method: "direct" is the nine products; "winograd" the fast twin where it can be used (3×3, stride 1, padding 1,
            float32, NumPy), and "auto" where it is also faster
    """
    if x.ndim != 4 or w.ndim != 4 or w.shape[:3] != (len(w), len(w), x.shape[-1]):
        raise ValueError(f"conv2d: an input (H,W,N,C) and a kernel (K,K,C,D) expected, not {x.shape} and {w.shape}")
    if stride < 1 or padding < 0:
        raise ValueError(f"conv2d: stride from 1 on and padding from 0 on expected, not {stride} and {padding}")
    H, W, K = x.shape[0], x.shape[1], len(w)
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    if out_h < 1 or out_w < 1:
        raise ValueError(f"conv2d: a {H}×{W} map with padding {padding} is too small for a {K}×{K} kernel")
    if winograd.applies(xp, x, w, stride, padding, method):
        return winograd.convolution(xp, x, w)
    if prefers_large_calls(xp):
        return padded.convolution(xp, x, w, stride, padding)
    return slabs.convolution(xp, x, w, stride, padding)
