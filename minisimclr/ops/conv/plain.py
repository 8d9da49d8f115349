"""The plain form of convolution: pad, then one shifted product for each tap.

A kernel of K×K taps holds a matrix w[i, j] for each tap (i, j), which turns C channels into D. The output at
pixel (r, s) adds up one product for each tap: the input pixel that lies below the tap, times the tap's matrix.

    y[r, s] = Σᵢⱼ x[r·stride+i−padding, s·stride+j−padding] w[i, j]                        (3.1)

Usually this is read pixel by pixel: collect what lies below the kernel, then multiply. We read it tap by
tap: shift the whole map, multiply it by ONE matrix, and add the result to the output.

That is why feature maps are stored as (H,W,N,C), with the batch N inside the image. Each pixel is then an
(N,C) matrix, and a shifted map is a plain slice along the first two axes. In the frameworks' layouts,
(N,C,H,W) or (N,H,W,C), the same shift would cut into every image of the batch.
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp


def convolution(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Convolve by the formula, one tap after the other.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)
    VJP:    dx by (3.2), dw by (3.3)
    """
    (H, W, _, C), (K, _, _, D) = x.shape, w.shape
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    ring = [(padding, padding), (padding, padding), (0, 0), (0, 0)]
    padded = xp.pad(x, ring)  # (H+2·padding, W+2·padding, N, C), zeros around the map
    taps = [(i, j) for i in range(K) for j in range(K)]

    def below(i: int, j: int) -> tuple[slice, slice]:
        """The pixels of `padded` that tap (i, j) reads, one for each output pixel."""
        return slice(i, i + stride * out_h, stride), slice(j, j + stride * out_w, stride)

    y = sum(padded[below(i, j)] @ w[i, j] for i, j in taps)  # (H',W',N,D)  (3.1)

    def vjp(g: Array) -> tuple[Array, Array]:  # g (H',W',N,D)
        dpadded, dw = xp.zeros(padded.shape, g.dtype), xp.empty(w.shape, g.dtype)
        for i, j in taps:
            pixels = padded[below(i, j)].reshape(-1, C)  # (H'·W'·N, C)
            # A pixel was read by up to K² outputs, so the gradients that come from them are added up.
            dpadded[below(i, j)] += g @ w[i, j].T  # (H',W',N,C)  (3.2)
            # One matrix served all pixels of all images, so its gradient sums over them.
            dw[i, j] = pixels.T @ g.reshape(-1, D)  # (C,D)  (3.3)
        return dpadded[padding : padding + H, padding : padding + W], dw  # (H,W,N,C): the ring of zeros is cut off

    return y, vjp
