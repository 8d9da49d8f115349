"""NT-Xent in three versions of one function, and the choice between them.

`loss.py` is the one to read, and runs on both devices; `tiled.py` is the fast one on a CPU, `cuda.py` on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from ..backend import Array, array_module, is_array
from ..engine.autograd import Tensor, Vjp, primitive
from . import cuda, tiled
from . import exact as reference
from .tiled import release

__all__ = ["contrastive_accuracy", "nt_xent", "nt_xent_value_and_grad", "release"]

Method: TypeAlias = Callable[[Array, Array, float], tuple[Array, Array, Array]]


def nt_xent(za: Any, zb: Any, temperature: float = 0.1, method: str = "auto") -> Tensor:
    """NT-Xent of two views' embeddings, the mean over all 2N anchors: a scalar to call `backward` on.

    za[i] and zb[i] are the embeddings of the two views of image i, of any length: they are normalised here.
    Tensors or arrays, (N, D) each; the rest is as `nt_xent_value_and_grad` says.
    """
    return _nt_xent(za, zb, temperature=temperature, method=method)


@primitive
def _nt_xent(xp: ModuleType, za: Array, zb: Array, *, temperature: float, method: str = "auto") -> tuple[Array, Vjp]:
    check(za, zb, temperature)
    # The gradient is computed along with the value, so that nothing of size (2N, 2N) waits for `backward`.
    value, dza, dzb = compute(za, zb, temperature, method)

    def vjp(g: Array) -> tuple[Array, Array]:
        return g * dza, g * dzb

    return xp.asarray(value, dtype=xp.result_type(za.dtype, zb.dtype)), vjp


def nt_xent_value_and_grad(
    za: Array, zb: Array, temperature: float = 0.1, method: str = "auto"
) -> tuple[float, Array, Array]:
    """NT-Xent (Chen et al. 2020, Eq. 1), the mean over all 2N anchors, and its gradient.

    za[i] and zb[i] are the embeddings of the two views of image i, of any length: they are normalised here.

    Shapes: za, zb (N, D), NumPy or CuPy, float16, float32 or float64 -> loss, dza (N, D), dzb (N, D).
    Each gradient has the dtype of its input; float16 computes in float32.
    NaN or infinity in a row makes the loss NaN; a zero row counts as u = 0, with gradient 0.

    method: "reference" (loss.py), "tiled" (tiled.py, NumPy only), "cuda" (cuda.py, CuPy only, computes in
    float32), or "auto": tiled for NumPy arrays; for CuPy arrays cuda, or reference if one of them is float64
    or CuPy cannot compile kernels here. Tiled keeps exp(u·uᵀ/τ) between its two passes if that fits into
    160 MiB (float32: N up to 4,500), and the memory for the next call; `release()` frees it.
    "cuda-bf16x3" and "cuda-bf16" are cuda on tensor cores: cuda.py says what accuracy that leaves.
    Raises ValueError for shapes that differ, are not 2-D or empty, for a temperature that is not positive
    and finite, and for an unknown method; TypeError for a dtype that is not floating, and for float64 with "cuda…";
    RuntimeError for NumPy arrays with "cuda…".
    """
    check(za, zb, temperature)
    value, dza, dzb = compute(za, zb, temperature, method)
    return float(value), dza, dzb


def contrastive_accuracy(za: Array, zb: Array) -> float:
    """The share of the 2N anchors whose nearest neighbour by cosine is their positive; chance is 1/(2N−1).

    Shapes: za, zb (N, D) -> a Python float. A tie counts as a miss: collapsed embeddings score 0.
    """
    check(za, zb)
    return float(reference.contrastive_accuracy(za, zb))


def check(za: Array, zb: Array, temperature: float = 1.0) -> None:
    """Refuse, in one line that says what is wrong, arguments for which NT-Xent is not defined."""
    array_module(za, zb)  # raises if they are on different devices
    if not (is_array(za) and is_array(zb)):
        raise TypeError(f"embeddings must be NumPy or CuPy arrays, not {type(za).__name__} and {type(zb).__name__}")
    if za.ndim != 2 or za.shape != zb.shape:
        raise ValueError(f"za and zb must be (N, D), the two views of N images, not {za.shape} and {zb.shape}")
    if za.size == 0:
        raise ValueError(f"za and zb must hold at least one embedding, not {za.shape}")
    for z in (za, zb):
        if z.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"embeddings must be float16, float32 or float64, not {z.dtype}")
    if not 0 < temperature < np.inf:  # NaN fails both
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    if 2 / temperature > float(np.finfo(_computing_dtype(za, zb)).max):
        raise ValueError(f"temperature {temperature} is too small for {_computing_dtype(za, zb)}")


def compute(za: Array, zb: Array, temperature: float, method: str) -> tuple[Array, Array, Array]:
    """The checked embeddings through one method: (loss, dza, dzb), the loss still on its device."""
    dtype = _computing_dtype(za, zb)
    if method == "auto":
        xp = array_module(za)
        method = "tiled" if xp is np else "cuda" if dtype == np.float32 and cuda.usable(xp) else "reference"
    if method == "tiled" and array_module(za) is not np:
        raise ValueError('method "tiled" takes NumPy arrays; use "auto" for CuPy arrays')
    if method not in METHODS:
        raise ValueError(f"method must be one of auto, {', '.join(METHODS)}, not {method!r}")
    value, dza, dzb = METHODS[method](za.astype(dtype, copy=False), zb.astype(dtype, copy=False), float(temperature))
    return value, dza.astype(za.dtype, copy=False), dzb.astype(zb.dtype, copy=False)


def _computing_dtype(za: Array, zb: Array) -> np.dtype[Any]:
    """The wider of the two dtypes, and at least float32."""
    return np.result_type(za.dtype, zb.dtype, np.float32)


METHODS: dict[str, Method] = {
    "reference": reference.value_and_grad,
    "exact": reference.value_and_grad,
    "plain": reference.value_and_grad,
    "composed": reference.value_and_grad,
    "tiled": tiled.value_and_grad,
    "cuda": cuda.value_and_grad,
    "cuda-bf16x3": partial(cuda.value_and_grad, precision=cuda.BFLOAT16X3),
    "cuda-bf16": partial(cuda.value_and_grad, precision=cuda.BFLOAT16),
}
