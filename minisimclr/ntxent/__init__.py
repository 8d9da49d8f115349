"""NT-Xent in several forms of one function, and the choice between them.

`plain.py` is the form to read: the loss composed from operations, then with its gradient by hand. The other forms must
equal it: `exact.py` loses no digits, `tiled.py` is fast on a CPU, `cuda.py` on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from .. import ops
from ..backend import Array, array_module
from ..engine.autograd import Tensor, Vjp, primitive
from ..values import by_default, computing_dtype, embeddings, one_of, text
from . import cuda, exact, plain, tiled
from .shared import contrastive_accuracy as contrastive_accuracy_on_device
from .tiled import release  # frees the memory that the tiled form holds for its next call

__all__ = ["contrastive_accuracy", "contrastive_accuracy_on_device", "nt_xent", "nt_xent_value_and_grad", "release"]

ValueAndGrad: TypeAlias = Callable[[Array, Array, float], tuple[Array, Array, Array]]  # za, zb, τ -> loss, dza, dzb


# ── The public functions ──────────────────────────────────────────────────────────────────────────


def nt_xent(za: Any, zb: Any, temperature: float = 0.1, method: str = "auto") -> Tensor:
    """NT-Xent of two views' embeddings, the mean over all 2N anchors: a scalar to call `backward` on.

    za[i] and zb[i] are the embeddings of the two views of image i, of any length: they are normalized here.
    They may be tensors or arrays. The methods are described at `nt_xent_value_and_grad`.

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    dza = g·∂L/∂za, dzb = g·∂L/∂zb, by (5.9), (5.10), (5.11)
    Raises: ValueError, TypeError and RuntimeError as `nt_xent_value_and_grad` does.
    Source: Chen et al. 2020, Eq. 1 and Algorithm 1: (5.1).

    >>> import numpy as np
    >>> views = Tensor(np.eye(2), requires_grad=True)
    >>> loss = nt_xent(views, views, temperature=0.5)
    >>> round(loss.item(), 5)
    0.23954
    >>> loss.backward()
    >>> views.grad.round(3) + 0.0
    array([[0.   , 0.426],
           [0.426, 0.   ]])
    """
    a, b = (z.data if isinstance(z, Tensor) else z for z in (za, zb))  # (N,D) each; only their shape and dtype are read
    a, b, temperature = embeddings(a, b, temperature)
    method = choose(a, b, method)  # from here on the name of one form, never "auto"
    if method not in OF_TENSORS:
        return nt_xent_at_once(za, zb, temperature=temperature, method=method)
    # Forms that are functions of tensors compute in the dtype of their arguments. The 11 bits of float16 are too few to
    # add 2N exponentials, so we widen it before and round the loss after; the vjp of `cast` rounds the gradients.
    wide, asked = computing_dtype(a, b), np.result_type(a.dtype, b.dtype)
    loss = OF_TENSORS[method](ops.cast(za, dtype=wide), ops.cast(zb, dtype=wide), temperature=temperature)
    return loss if asked == wide else ops.cast(loss, dtype=asked)  # scalar


@primitive
def nt_xent_at_once(xp: ModuleType, za: Array, zb: Array, *, temperature: float, method: str) -> tuple[Array, Vjp]:
    """Compute the loss by a form that gives value and gradient at once; `nt_xent` has checked the arguments.

    Shapes: za (N,D), zb (N,D) -> scalar
    VJP:    dza = g·∂L/∂za, dzb = g·∂L/∂zb
    """
    # The gradient is computed along with the value, so that nothing of size (2N, 2N) waits for `backward`.
    value, dza, dzb = compute(za, zb, temperature, method)  # scalar, (N,D), (N,D)

    def vjp(g: Array) -> tuple[Array, Array]:
        return g * dza, g * dzb  # (N,D) each; g is 1 unless the loss is scaled or part of a larger one

    return xp.asarray(value, dtype=xp.result_type(za.dtype, zb.dtype)), vjp  # scalar


@by_default
def nt_xent_value_and_grad(
    za: Array, zb: Array, temperature: float = 0.1, method: str = "auto"
) -> tuple[float, Array, Array]:
    """NT-Xent (Chen et al. 2020, Eq. 1), the mean over all 2N anchors, and its gradient.

    za[i] and zb[i] are the embeddings of the two views of image i, of any length: they are normalized here.
    Each gradient has the dtype of its input; float16 computes in float32.
    NaN or infinity in a row makes the loss NaN; a zero row counts as u = 0, with gradient 0 ("plain" divides by zero).

    method  the form that computes it:
            "composed"           plain.py: composed from operations; autograd finds the gradient.
            "plain"              plain.py: the loss line by line, with its gradient by hand.
            "exact"              exact.py: loses no digits. "reference" is another name of it.
            "tiled"              tiled.py: fast, for NumPy arrays only. It keeps exp(u·uᵀ/τ) between its two passes, and
                                 that memory for the next call, if it fits into 32 MiB (float32: N up to 1,984), in a
                                 training run into 160 MiB (4,500). `release()` frees what is held.
            "cuda"               cuda.py: fast, for CuPy arrays only, in float32.
            "cuda-bf16x3", "cuda-bf16"  the same on tensor cores; cuda.py has a table of their accuracy.
            "auto"               tiled for NumPy arrays. For CuPy arrays cuda, or exact if one of them is float64 or
                                 CuPy cannot compile kernels here.

    Shapes: za (N,D), zb (N,D), NumPy or CuPy, float16, float32 or float64 -> loss, dza (N,D), dzb (N,D)
    Raises: ValueError for shapes that differ, are not 2-D or empty, for a temperature that is not positive and finite,
            and for an unknown method; TypeError for a dtype that is not floating, and for float64 with "cuda…";
            RuntimeError for NumPy arrays with "cuda…".
    Source: Chen et al. 2020, Eq. 1 and Algorithm 1: (5.1).

    >>> import numpy as np
    >>> loss, dza, dzb = nt_xent_value_and_grad(np.eye(2), np.eye(2), temperature=0.5)
    >>> round(loss, 5)
    0.23954
    >>> dza.round(5) + 0.0
    array([[0.     , 0.21301],
           [0.21301, 0.     ]])
    """
    za, zb, temperature = embeddings(za, zb, temperature)  # plain arrays and a float, or an error in one line
    value, dza, dzb = compute(za, zb, temperature, choose(za, zb, method))  # scalar, (N,D), (N,D)
    return float(value), dza, dzb  # `float` waits for a GPU to finish; in a training loop use `nt_xent`


@by_default
def contrastive_accuracy(za: Array, zb: Array) -> float:
    """The share of the 2N anchors whose nearest neighbour by cosine is their positive; chance is 1/(2N−1).

    A tie counts as a miss: collapsed embeddings score 0. A training loop calls `contrastive_accuracy_on_device`
    instead, which leaves the number on its device and checks nothing.

    Shapes: za (N,D), zb (N,D) -> a Python float
    Raises: ValueError and TypeError for the arguments that `nt_xent_value_and_grad` refuses.

    >>> import numpy as np
    >>> contrastive_accuracy(np.eye(4), 5 * np.eye(4))
    1.0
    """
    za, zb, _ = embeddings(za, zb)
    return float(contrastive_accuracy_on_device(za, zb))


# ── One choice ────────────────────────────────────────────────────────────────────────────────────


def choose(za: Array, zb: Array, method: str) -> str:
    """Return the name in METHODS of the form that computes the loss of these arrays."""
    xp = array_module(za)  # zb is on the same device
    # "reference" is the older name of "exact", which users have in their scripts
    method = one_of("method", "exact" if text("method", method) == "reference" else method, ("auto", *METHODS))
    if method == "auto":
        # We take the fastest form that loses no digits. The kernels compute in float32; float64 gets the exact form.
        on_gpu = "cuda" if computing_dtype(za, zb) == np.float32 and cuda.usable(xp) else "exact"
        return "tiled" if xp is np else on_gpu
    if method == "tiled" and xp is not np:  # its blocks are made for a core's cache and for threads
        raise ValueError('method "tiled" takes NumPy arrays; use "auto" for CuPy arrays')
    return method


def compute(za: Array, zb: Array, temperature: float, method: str) -> tuple[Array, Array, Array]:
    """Compute (loss, dza, dzb) of checked embeddings by a chosen method, the loss still on its device."""
    dtype = computing_dtype(za, zb)  # one for both: the forms concatenate za and zb
    value, dza, dzb = METHODS[method](za.astype(dtype, copy=False), zb.astype(dtype, copy=False), float(temperature))
    return value, dza.astype(za.dtype, copy=False), dzb.astype(zb.dtype, copy=False)  # scalar, (N,D), (N,D)


# ── The forms ─────────────────────────────────────────────────────────────────────────────────────


def by_backward(loss_of: Callable[..., Tensor], za: Array, zb: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Compute value and gradient by a form that is a function of tensors, with a backward pass through its graph."""
    a, b = Tensor(za, requires_grad=True), Tensor(zb, requires_grad=True)  # leaves of a graph of our own
    loss = loss_of(a, b, temperature=temperature)
    loss.backward()
    return loss.data, a.grad, b.grad  # scalar, (N,D), (N,D)


# Forms that are functions of tensors: autograd records them like any operation. These are the two to read.
OF_TENSORS: dict[str, Callable[..., Tensor]] = {"composed": plain.nt_xent_composed, "plain": plain.nt_xent_plain}

# Every form as a function (za, zb, temperature) -> (loss, dza, dzb), so that tests can hold all of them to the same.
METHODS: dict[str, ValueAndGrad] = {
    **{name: partial(by_backward, loss_of) for name, loss_of in OF_TENSORS.items()},
    "exact": exact.value_and_grad,
    "tiled": tiled.value_and_grad,
    "cuda": cuda.value_and_grad,
    # Tensor cores multiply bfloat16: three such products (x3) come close to one of float32, and one is faster still.
    "cuda-bf16x3": partial(cuda.value_and_grad, precision=cuda.BFLOAT16X3),
    "cuda-bf16": partial(cuda.value_and_grad, precision=cuda.BFLOAT16),
}
