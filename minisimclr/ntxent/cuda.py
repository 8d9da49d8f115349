"""NT-Xent on an NVIDIA GPU: three kernels, in float32, equal to `loss.py` up to rounding.

The kernels are in `ntxent.cu`, with the same equation tags; this file compiles them, once a process, and
launches them. As in `tiled.py` the (2N, 2N) matrix is never whole: a block of threads owns 64 anchors, and
visits the columns tile by tile, once for the softmax's denominators and once for the gradient. It
computes with float32 accuracy throughout and does not use tensor cores.

Any D works. The gradient is gathered for 128 of its D entries at a time, and the cosines are computed
anew for each such part: up to D = 128 (SimCLR's) nothing is computed more often than needed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..backend import Array, array_module

SOURCE = Path(__file__).with_name("ntxent.cu")
THREADS, ROWS, SLAB = 256, 64, 16  # as in ntxent.cu
KERNELS = ("normalise", "row_sums", "gradient")


def value_and_grad(za: Array, zb: Array, temperature: float) -> tuple[Array, Array, Array]:
    """The loss and its gradient, as `loss.value_and_grad` computes them.

    Shapes: za, zb (N, D), CuPy, float32 -> loss (), dza (N, D), dzb (N, D).
    Memory: u (2N, D rounded up to 16) and seven numbers an anchor.
    """
    xp = array_module(za, zb)
    if xp is np:
        raise RuntimeError('method "cuda" takes CuPy arrays; use "auto" for NumPy arrays')
    if za.dtype != xp.float32 or zb.dtype != xp.float32:
        raise TypeError('method "cuda" computes in float32; use "reference" for float64 arrays')
    with za.device:
        return _launch(xp, kernels(xp), xp.ascontiguousarray(za), xp.ascontiguousarray(zb), temperature)


def _launch(
    xp: ModuleType, kernel: dict[str, Any], za: Array, zb: Array, temperature: float
) -> tuple[Array, Array, Array]:
    images, entries = za.shape
    n = 2 * images
    width = -(-entries // SLAB) * SLAB  # rows of u are padded with zeros
    u, dz = xp.empty((n, width), xp.float32), xp.empty((n, entries), xp.float32)
    norm, scale, positive, shift, weight, q, loss = xp.empty((7, n), xp.float32)
    value = xp.empty((), xp.float32)
    N, D, W, rows = np.int32(images), np.int32(entries), np.int32(width), np.int32(n)
    with np.errstate(over="ignore", under="ignore"):
        invtau, factor = np.float32(1 / temperature), np.float32(1 / (n * temperature))
    blocks, per_block = -(-n // ROWS), THREADS // 32  # a warp an image
    kernel["normalise"](
        (-(-images // per_block),), (THREADS,), (za, zb, u, norm, scale, positive, N, D, W)
    )
    kernel["row_sums"](
        (blocks,), (THREADS,), (u, positive, shift, weight, q, loss, invtau, rows, W)
    )
    kernel["gradient"](
        (blocks + 1,), (THREADS,),  # one more takes the mean
        (u, norm, scale, positive, shift, weight, q, loss, value, dz, invtau, factor, rows, D, W),
    )  # fmt: skip
    return value, dz[:images], dz[images:]


@functools.cache
def usable(xp: ModuleType) -> bool:
    """Whether kernels can be compiled here at all: what stands in for CuPy in tests cannot."""
    try:
        kernels(xp)
    except (AttributeError, NotImplementedError):
        return False
    return True


@functools.cache
def kernels(xp: ModuleType) -> dict[str, Any]:
    """The kernels by name, compiled for this GPU (CuPy keeps them on disk for the next process)."""
    module = xp.RawModule(code=ascii_source(), options=("--std=c++17",))
    return {name: module.get_function(name) for name in KERNELS}


def ascii_source() -> str:
    """The kernels without the mathematics in their comments: CuPy may write them down in any encoding."""
    return SOURCE.read_text(encoding="utf-8").encode("ascii", "replace").decode()
