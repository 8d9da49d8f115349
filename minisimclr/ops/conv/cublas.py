"""Add a matrix product to an array, in one launch if CuPy gives access to cuBLAS."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from ...backend import Array


def add_product(xp: Any, out: Array, a: Array, b: Array) -> None:
    """Compute out += a b. With cuBLAS, products of half precision are added to float32 without rounding.

    Shapes: a (M,K), b (K,N), out (M,N) in C order; a and b of one dtype
    """
    cuda = getattr(xp, "cuda", None)
    if hasattr(getattr(cuda, "cublas", None), "gemmEx"):
        if a.size and b.size:
            _gemm(cuda, out, a, b)
    else:
        out += a @ b


@functools.cache
def tf32() -> bool:
    """True if float32 products may round their factors to ten bits: $CUPY_TF32, read once, as CuPy reads it."""
    return int(os.environ.get("CUPY_TF32", "0")) > 0


def _gemm(cuda: Any, out: Array, a: Array, b: Array) -> None:
    """Call cublasGemmEx with α = β = 1.

    cuBLAS reads matrices column by column, and so sees each of ours transposed: we ask it for outᵀ += bᵀ aᵀ.
    (CuPy's own `cublas.gemm` has neither half precision nor TF32, and its `matmul` does not add.)
    """
    cublas, runtime = cuda.cublas, cuda.runtime
    types = {
        "bfloat16": runtime.CUDA_R_16BF,
        "float16": runtime.CUDA_R_16F,
        "float32": runtime.CUDA_R_32F,
        "float64": runtime.CUDA_R_64F,
    }
    double = out.dtype.name == "float64"
    compute = cublas.CUBLAS_COMPUTE_64F if double else cublas.CUBLAS_COMPUTE_32F
    if a.dtype.name == "float32" and tf32() and not double:
        compute = cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    one = (ctypes.c_double if double else ctypes.c_float)(1)  # α and β, in the host's memory
    (a, transpose_a, lead_a), (b, transpose_b, lead_b) = _as_stored(cublas, a), _as_stored(cublas, b)
    (M, N), K = out.shape, a.shape[1]
    # fmt: off
    cublas.gemmEx(
        cuda.device.get_cublas_handle(), transpose_b, transpose_a, N, M, K,
        ctypes.addressof(one), b.data.ptr, types[b.dtype.name], lead_b,
        a.data.ptr, types[a.dtype.name], lead_a,
        ctypes.addressof(one), out.data.ptr, types[out.dtype.name], N,
        compute, cublas.CUBLAS_GEMM_DEFAULT,
    )
    # fmt: on


def _as_stored(cublas: Any, a: Array) -> tuple[Array, int, int]:
    """Return (matrix, cuBLAS's transpose flag, its leading dimension) for a matrix in C or Fortran order."""
    if a.flags.c_contiguous or not a.flags.f_contiguous:
        a = a if a.flags.c_contiguous else a.copy(order="C")
        return a, cublas.CUBLAS_OP_N, a.shape[1]
    return a, cublas.CUBLAS_OP_T, a.shape[0]
