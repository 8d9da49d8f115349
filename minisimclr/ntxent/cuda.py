"""NT-Xent in three kernels for an NVIDIA GPU.

The plain form writes matrices of shape (2N,2N) to memory and reads them back ten times. The three kernels here build
no such matrix: a block of threads owns 64 or 128 anchors, and computes its part of the
matrix tile by tile, once for the softmax's denominators and once for the gradient. If that gives too few blocks for the
GPU, several blocks share the columns of the same anchors, and the last to finish adds up their parts in a fixed order.
The kernels are in `ntxent.cu` (float32) and `tensor.cu` (tensor cores); `common.cuh` holds what both need. They carry
the same equation tags. This file compiles them, once in a process, and launches them. They have all cures of `exact.py`
except the one for high temperatures, in one of three precisions:

    method            products                       error of the loss, of the gradient (relative)
                                             random rows     aligned views   collapsed rows
    "cuda"            float32                1e-7   3e-7     1e-6   1e-6     1e-7   2e-6
    "cuda-bf16x3"     3 of bfloat16          2e-6   8e-6     3e-5   2e-5     2e-6   4e-5
    "cuda-bf16"       1 of bfloat16          3e-3   5e-3     7e-3   2e-2     1e-4   2e-2

These are the worst of N = 1, 3, 33, 100 and τ = 0.05, 0.1, 0.5, 1, against float64, with the kernels run on a CPU that
rounds as tensor cores do (tests/fibres.h). Aligned: the views differ by 10 % noise; collapsed: all rows are alike up to
10 %. Below τ = 0.05 all errors grow as 1/τ. CuPy compiles with -ftz=true: numbers below 1.2e-38 become 0.
The time that they gain has not been measured yet; benchmarks/notes.md has a prediction.
"""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, array_module

THREADS = 256  # threads of a block, as in the kernels
SLAB = 16  # numbers of a row that a kernel reads at a time; rows of u are padded to a multiple of SLAB
KERNELS = ("normalize", "row_sums", "gradient")


class Precision(NamedTuple):
    """The kernels of one precision: their file, and the sizes that they were written for."""

    source: str
    rows: int  # anchors of a block
    columns: int  # columns of a tile
    parts: int  # bfloat16 numbers in the place of one float32 number; 0: float32 itself
    options: tuple[str, ...] = ()
    most_entries: float = float("inf")  # the largest D


FLOAT32 = Precision("ntxent.cu", rows=64, columns=128, parts=0)
BFLOAT16X3 = Precision("tensor.cu", rows=128, columns=32, parts=2, options=("-DTERMS=3",), most_entries=128)
BFLOAT16 = Precision("tensor.cu", rows=128, columns=64, parts=1, options=("-DTERMS=1",), most_entries=128)


def value_and_grad(
    za: Array, zb: Array, temperature: float, precision: Precision = FLOAT32
) -> tuple[Array, Array, Array]:
    """Compute the loss and its gradient, as `exact.value_and_grad` does.

    Shapes: za, zb (N,D), CuPy, float32 -> loss (), dza (N,D), dzb (N,D).
    Memory: u, (2N, D rounded up to 16) floats (twice that on tensor cores); five floats per anchor; and, for batches
    too small to fill the GPU (fewer than about 130 anchors per multiprocessor), partial gradients.
    Tensor cores serve D up to 128, SimCLR's; larger D is computed in float32.
    """
    xp = array_module(za, zb)
    if xp is np:
        raise RuntimeError('method "cuda" takes CuPy arrays; use "auto" for NumPy arrays')
    if za.dtype != xp.float32 or zb.dtype != xp.float32:
        raise TypeError('method "cuda" computes in float32; use "exact" for float64 arrays')
    if za.shape[1] > precision.most_entries:
        precision = FLOAT32
    with za.device as device:
        kernel, blocks = kernels(xp, precision), 2 * processors(xp, device.id)
        return launch(xp, kernel, precision, blocks, xp.ascontiguousarray(za), xp.ascontiguousarray(zb), temperature)


def launch(
    xp: ModuleType, kernel: dict[str, Any], precision: Precision, wanted: int, za: Array, zb: Array, temperature: float
) -> tuple[Array, Array, Array]:
    """Launch the three kernels, with about as many blocks as are `wanted`."""
    images, entries = za.shape
    n = 2 * images
    width = -(-entries // SLAB) * SLAB  # rows of u are padded with zeros
    blocks = -(-n // precision.rows)
    share, shares = shared_out(n, precision.columns, wanted // blocks)
    first = -(-images // (THREADS // 32))  # blocks of the first launch: each image has a warp

    u = xp.empty((n + n // 2 * precision.parts, width), xp.float32)  # after the rows stand their parts in bfloat16
    norm, scale, positive, loss = xp.empty((4, -(-n // 4) * 4), xp.float32)  # each begins at a multiple of 16 bytes
    highest, total = xp.empty((2, shares, n), xp.float32)
    arrived = xp.empty(2 * first, xp.int32)
    dz = xp.empty((n, entries), xp.float32)
    parts = dz if shares == 1 else xp.empty((shares, n, entries), xp.float32)
    value = xp.empty((), xp.float32)
    with np.errstate(over="ignore", under="ignore"):
        invtau, factor = np.float32(1 / temperature), np.float32(1 / (n * temperature))
    N, D, W, rows, S = (np.int32(x) for x in (images, entries, width, n, share))

    kernel["normalize"]((first,), (THREADS,), (za, zb, u, norm, scale, positive, arrived, N, D, W))
    kernel["row_sums"]((blocks, shares), (THREADS,), (u, positive, highest, total, loss, arrived, invtau, rows, W, S))
    kernel["gradient"](
        (blocks + 1, shares), (THREADS,),  # one more block takes the mean
        (u, norm, scale, positive, loss, value, parts, dz, arrived, invtau, factor, rows, D, W, S),
    )  # fmt: skip
    return value, dz[:images], dz[images:]


def shared_out(n: int, tile: int, blocks: int) -> tuple[int, int]:
    """Return the columns that each of several blocks takes, in whole tiles, and the number of blocks: none is idle."""
    tiles = -(-n // tile)
    share = -(-tiles // max(1, min(blocks, tiles)))
    return share * tile, -(-tiles // share)


@functools.cache
def usable(xp: ModuleType) -> bool:
    """Return True if kernels can be compiled here. Without NVRTC, or by the tests' stand-in for CuPy, they cannot."""
    try:
        kernels(xp, FLOAT32)
    except RuntimeError:
        return False
    return True


@functools.cache
def processors(xp: ModuleType, device: int) -> int:
    """Return the number of the GPU's multiprocessors."""
    return int(xp.cuda.Device(device).attributes["MultiProcessorCount"])


@functools.cache
def kernels(xp: ModuleType, precision: Precision) -> dict[str, Any]:
    """Compile the kernels for this GPU, and return them by name (CuPy keeps them on disk for the next process)."""
    try:
        module = xp.RawModule(code=ascii_source(precision), options=("--std=c++17", *precision.options))
        return {name: module.get_function(name) for name in KERNELS}  # each is compiled here
    except Exception as error:  # each layer of CuPy raises errors of its own
        raise RuntimeError(
            f'method "cuda" cannot be compiled for this GPU; NVRTC, its compiler, comes with '
            f'pip install "cupy-cuda12x[ctk]" (or 13x); method "exact" needs none. CuPy says: {error}'
        ) from error


def ascii_source(precision: Precision) -> str:
    """Return the kernel source, non-ASCII characters replaced: CuPy writes it to a file in the locale's encoding."""
    return source(precision).encode("ascii", "replace").decode()


def source(precision: Precision) -> str:
    """Return the kernels' source as it is read: the common part, then the kernels of one precision."""
    folder = Path(__file__).parent
    return "".join((folder / name).read_text(encoding="utf-8") for name in ("common.cuh", precision.source))
