"""Normalization: batch norm over all but the last axis, and rows scaled to unit length.

plain    the formula; the shortcut and the ReLU follow as operations of their own
fused    batch norm, shortcut and ReLU in one pass over memory, in chunks that fit a cache, on all threads
auto     fused
"""

from __future__ import annotations

from typing import Any

from ...backend import Array
from ...engine.autograd import Tensor, Vjp, primitive
from ...values import by_default, need_array, truth
from .. import basic
from ..shapes import cast, sum_dtype
from . import fused, plain, shared

METHODS = ("plain", "fused", "auto")
# Two primitives stand behind one function: in the plain form shortcut and ReLU are nodes of their own in the graph.
_plain_batch_norm = primitive(plain.batch_norm)
_fused_batch_norm = primitive(fused.batch_norm)


@by_default
def moments(xp: Any, x: Array, *, method: str = "auto") -> tuple[Array, Array]:
    """Mean and biased variance of each channel of an array.

    Shapes: x (…,C) -> mean (C,), variance (C,), in the dtype of x, or in float32 if that is half precision
    Raises: ValueError for an unknown method

    >>> import numpy as np
    >>> mean, variance = moments(np, np.array([[1.0], [3.0]]))  # two rows of one channel
    >>> mean.tolist(), variance.tolist()
    ([2.0], [1.0])
    """
    _check_method("moments", method)
    x = need_array("moments: x", x)
    if method == "plain":
        # float16 ends at 65,504, so a sum over a channel would overflow.
        return plain.moments(xp, x.astype(sum_dtype(xp, x.dtype), copy=False))  # (C,), (C,)
    return fused.moments(xp, x)  # (C,), (C,)


def batch_norm(
    x: Any,
    scale: Any,
    shift: Any,
    *shortcut: Any,
    mean: Array,  # (C,)
    variance: Array,  # (C,), biased: the mean of the squared deviations
    eps: float = 1e-5,  # keeps a channel without variance from dividing by 0
    batch: bool,  # without a default: neither answer is right for most calls
    relu: bool = False,
    method: str = "auto",
    ranks: Any = None,  # the processes that share the batch, if x is one process's share of it (collective.py)
) -> Tensor:
    """Normalize each channel: x̂ = (x − mean)/√(variance + ε), then y = scale·x̂ + shift.

    batch=True says that mean and variance are those of x itself (training), so gradient flows through them as
    well; batch=False says that they are constants (running statistics, evaluation). In a ResNet a shortcut and a
    ReLU follow: at most one array `shortcut` is added to y, and relu=True takes max(y, 0) of the sum.
    If x and shortcut are of half precision, so is y; scale, shift and the statistics stay float32.

    Shapes: x (…,C), scale (C,), shift (C,), shortcut (…,C) -> y (…,C)
    VJP:    g ← g where y > 0, if relu;   dshortcut = g
            dscale = Σ g·x̂,  dshift = Σ g                                                           (4.4)
            dx = scale/σ · (g − [dshift + x̂·dscale]/M)   the bracket only if batch                   (4.7)
    Raises: ValueError for a shape that does not fit x, and for an unknown method; TypeError for numbers and lists

    >>> import numpy as np
    >>> x = np.array([[1.0], [3.0]])  # two rows of one channel, with mean 2 and variance 1
    >>> mean, variance = moments(np, x)
    >>> y = batch_norm(x, np.ones(1), np.zeros(1), mean=mean, variance=variance, eps=0.0, batch=True)
    >>> y.data.ravel().tolist()
    [-1.0, 1.0]
    """
    _check_method("batch_norm", method)
    _check_shapes(x, (scale, shift, mean, variance), shortcut)
    # Keyword arguments are constants to autograd. That mean and variance depend on x, the vjp itself knows.
    totals = shared.totals_of(ranks) if truth("batch_norm: batch", batch) else None
    statistics = {"mean": mean, "variance": variance, "eps": eps, "totals": totals}
    if method == "plain":  # up to three nodes in the graph
        return _in_steps(_plain_batch_norm(x, scale, shift, **statistics), shortcut, relu, x.dtype)
    return _fused_batch_norm(x, scale, shift, *shortcut, **statistics, relu=relu)  # one node


def _in_steps(y: Tensor, shortcut: tuple[Any, ...], relu: bool, dtype: Any) -> Tensor:
    """Add the shortcut and apply the ReLU, as operations of their own."""
    for other in shortcut:  # at most one
        y = y + other  # (…,C)
    y = basic.relu(y) if truth("relu", relu) else y  # (…,C)
    # The float32 statistics have promoted a half-precision x. We return to its dtype once, at the end.
    return y if y.dtype == dtype else cast(y, dtype=dtype)


def _check_shapes(x: Any, channels: tuple[Any, ...], shortcut: tuple[Any, ...]) -> None:
    """Raise TypeError for what is no array, and ValueError, with the shapes in it, for what does not fit x."""
    if len(shortcut) > 1 or not all(hasattr(a, "shape") for a in (x, *channels, *shortcut)):
        raise TypeError("batch_norm takes tensors and arrays, and at most one shortcut")
    # NumPy would broadcast a wrong shape without a word, and the network would train something else.
    if not all(a.shape == x.shape[-1:] for a in channels):
        raise ValueError(f"batch_norm: for {x.shape}, scale, shift, mean and variance must have shape {x.shape[-1:]}")
    if any(a.shape != x.shape for a in shortcut):
        raise ValueError(f"batch_norm: the shortcut must have the shape of x, {x.shape}, not {shortcut[0].shape}")


def _check_method(op: str, method: str) -> None:
    """Raise ValueError for a method that batch norm does not have."""
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}; not {method!r}")


@primitive
def l2_normalize(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Scale each row to unit length; a row of zeros stays zero.

    Shapes: x (N,D) -> u (N,D)
    VJP:    dx = (g − u⟨u,g⟩)/|x|, and 0 for a row of zeros                                        (5.11)

    >>> from minisimclr import Tensor, ops
    >>> ops.l2_normalize(Tensor([[3.0, 4.0], [0.0, 0.0]])).data.tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    if x.ndim != 2:
        raise ValueError(f"l2_normalize takes rows (N,D), not {x.shape}")
    # Divide by the largest entry first: the squares of very long or short rows would overflow or vanish.
    largest = xp.abs(x).max(axis=1, keepdims=True)  # (N,1)
    divisor = xp.where(largest == 0, 1, largest)  # (N,1); a row of zeros is divided by 1
    scaled = x / divisor  # (N,D); the largest entry is ±1, so that the norm is at least 1
    norm = xp.maximum(xp.sqrt((scaled * scaled).sum(axis=1, keepdims=True)), 1)  # (N,1), or 0 for a row of zeros
    u = scaled / norm  # (N,D)

    def vjp(g: Array) -> Array:
        # The part of g along u would only change the length of x, and u has length 1 whatever that length is.
        across = g - u * (u * g).sum(axis=1, keepdims=True)  # (N,D)
        return xp.where(largest == 0, 0, across / norm / divisor)

    return u, vjp  # the vjp keeps u and the two divisors, but not x
