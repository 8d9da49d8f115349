"""Solutions of chapter 3: the gradient of a convolution is a convolution, and one kernel for each channel."""

from __future__ import annotations

from typing import Any

import minisimclr as ms


def gradient_by_convolution(g: Any, w: Any) -> Any:
    """dx of a convolution of stride 1 and padding (K − 1)/2, by running another convolution over g.

    (3.2) sends g at (r, s) to the input at (r + i − 1, s + j − 1). Read from the input's side: x at (p, q) receives
    from g at (p − i + 1, q − j + 1), which is tap (2 − i, 2 − j) of a kernel laid over g. So the kernel is turned by
    half a turn, and each of its matrices is transposed, because D channels now become C.
    """
    turned = w[::-1, ::-1].swapaxes(2, 3)  # (K,K,D,C)
    return ms.ops.conv2d(g, turned, stride=1, padding=len(w) // 2, method="plain").data


@ms.primitive
def depthwise(xp: Any, x: Any, w: Any) -> Any:
    """Slide one kernel over each channel: x (H,W,N,C), w (K,K,C) -> (H,W,N,C), padded with zeros.

    The matrices of (3.1) become diagonal ones, which multiply entry by entry. A 1×1 convolution after it mixes the
    channels; the two together have K²C + C² weights instead of K²C².
    """
    K, _, C = w.shape
    ring = K // 2
    H, W = x.shape[:2]
    padded = xp.pad(x, ((ring, ring), (ring, ring), (0, 0), (0, 0)))
    taps = [(i, j) for i in range(K) for j in range(K)]
    y = sum(padded[i : i + H, j : j + W] * w[i, j] for i, j in taps)  # (H,W,N,C)

    def vjp(g: Any) -> Any:
        dpadded, dw = xp.zeros(padded.shape, x.dtype), xp.empty(w.shape, w.dtype)
        for i, j in taps:
            dpadded[i : i + H, j : j + W] += g * w[i, j]
            dw[i, j] = (padded[i : i + H, j : j + W] * g).reshape(-1, C).sum(axis=0)
        return dpadded[ring : ring + H, ring : ring + W], dw

    return y, vjp
