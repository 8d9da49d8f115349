"""Layers, and the one setting that says in which form each operation of a network runs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from . import ops
from .backend import Array, array_module
from .engine.autograd import Tensor
from .module import Module
from .values import by_default, check_method, pairs_of, text

# ── Which form of an operation runs ───────────────────────────────────────────────────────────────

# Each kind of operation that has a plain form and faster ones, with the names of its forms. They are spelled out here,
# so that one can read the setting without the files that serve it; a test compares them with those of each kind.
METHODS = {
    "conv": ("plain", "slabs", "padded", "winograd", "auto"),
    "norm": ("plain", "fused", "auto"),
    "pool": ("plain", "threaded", "auto"),
    "ntxent": ("composed", "plain", "exact", "reference", "tiled", "cuda", "cuda-bf16x3", "cuda-bf16", "auto"),
    "views": ("plain", "batched", "auto"),
}
# The form that runs if nobody says otherwise: "slabs" is not the fastest convolution everywhere, but rounds less than
# Winograd's. The other fast forms lose hardly a digit, so the fastest is taken.
DEFAULT_FORMS = {"conv": "slabs", "norm": "auto", "pool": "auto", "ntxent": "auto", "views": "auto"}
METHOD = "conv=slabs"  # the default setting, which says the same: the other kinds run their default too


def method_of(kind: str, method: str) -> str:
    """Return the form that a setting gives to one kind of operation.

    "plain" and "auto" hold for all kinds. "conv=winograd,ntxent=exact" names the forms of two; a kind that is not
    named keeps its default.

    Raises: ValueError for a kind that does not exist, and for a form that its kind does not have.

    >>> setting = "conv=winograd,ntxent=exact"
    >>> method_of("ntxent", setting), method_of("norm", setting), method_of("norm", "plain")
    ('exact', 'auto', 'plain')
    """
    check_method(text("method", method), METHODS)
    return method if method in ("plain", "auto") else {**DEFAULT_FORMS, **pairs_of(method, DEFAULT_FORMS)}[kind]


# ── Layers ────────────────────────────────────────────────────────────────────────────────────────


def parameter(array: Any) -> Tensor:
    """Return a float32 leaf that wants a gradient."""
    # First weights are drawn on the host, whatever the backend, so that the same seed gives the same ones everywhere.
    return Tensor(np.asarray(array, np.float32), requires_grad=True)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> Array:
    """Draw from N(0, 2/fan), which keeps the variance of activations through layers with ReLU (He et al. 2015)."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan))


def in_dtype(x: Tensor, dtype: Any) -> Tensor:
    """Return x in this dtype; None leaves it as it is."""
    # It is an operation, so that autograd knows of it and the gradient comes back in the dtype of x.
    return x if dtype is None or x.dtype == dtype else ops.cast(x, dtype=dtype)


class Linear(Module):
    """Compute y = x W + b.

    product_dtype  the dtype of the product x W, if it is not that of x and W: half precision, for example

    Shapes: x (N,in) -> (N,out)
    Raises: ValueError, which names the layer, if the last axis of x is not `in`.
    """

    stored_axes: ClassVar = {"weight": (1, 0)}

    def __init__(
        self, in_dim: int, out_dim: int, *, bias: bool = True, product_dtype: Any = None, rng: np.random.Generator
    ) -> None:
        self.product_dtype = product_dtype
        bound = 1 / np.sqrt(in_dim)  # torch's default: uniform in ±1/√in, which keeps x W of the order of x
        self.weight = parameter(rng.uniform(-bound, bound, (in_dim, out_dim)))  # (in,out)
        if bias:
            self.bias = parameter(rng.uniform(-bound, bound, out_dim))  # (out,)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        if x.shape[-1:] != self.weight.shape[:1]:  # NumPy would speak of gufuncs and name no layer
            self._refuse(f"N,{self.weight.shape[0]}", x)
        # The weight is rounded each time it is used, never where it is kept: small updates are not lost.
        x, weight = (in_dtype(factor, self.product_dtype) for factor in (x, self.weight))
        y = x @ weight  # (N,out)
        return y + self.bias if hasattr(self, "bias") else y  # (N,out)


class Conv2d(Module):
    """A convolution without bias, because batch norm follows and would remove it.

    method         the form in which ops.conv2d computes it
    product_dtype  as in Linear

    Shapes: x (H,W,N,in) -> (H',W',N,out)
    Raises: ValueError, which names the layer, if x does not have four axes, the last of them `in`.
    """

    stored_axes: ClassVar = {"weight": (3, 2, 0, 1)}

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        method: str = "slabs",
        product_dtype: Any = None,
        rng: np.random.Generator,
    ) -> None:
        self.stride, self.padding, self.method, self.product_dtype = stride, padding, method, product_dtype
        # We draw in torchvision's layout and scale by the fan-out, as torchvision's ResNet does.
        drawn = he_normal(rng, (out_dim, in_dim, kernel, kernel), fan=out_dim * kernel * kernel)  # (out,in,K,K)
        self.weight = parameter(drawn.transpose(2, 3, 1, 0))  # (K,K,in,out)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        # A map with another number of channels means that this layer stands in the wrong place.
        if x.ndim != 4 or x.shape[3] != self.weight.shape[2]:
            self._refuse(f"H,W,N,{self.weight.shape[2]}", x)
        x, weight = (in_dtype(factor, self.product_dtype) for factor in (x, self.weight))
        return ops.conv2d(x, weight, stride=self.stride, padding=self.padding, method=self.method)  # (H',W',N,out)


class BatchNorm2d(Module):
    """Normalize each channel over all other axes, then scale and shift.

    Training uses the statistics of the batch, and moves the running statistics a tenth of the distance towards them.
    Evaluation uses the running statistics. As in torch, the running variance is the unbiased one.

    shift   False leaves out the shift, as the last layer of SimCLR's head does
    method  the form in which ops.batch_norm computes it

    Shapes: x (…,C) -> (…,C)
    Raises: ValueError, which names the layer, if the last axis of x is not C; and in training for one value per
            channel, which has no variance.
    """

    eps = 1e-5  # added to the variance, because a channel that is the same everywhere has none; torch's value
    momentum = 0.1  # share of the batch in the running statistics; torch's value

    def __init__(self, dim: int, *, shift: bool = True, method: str = "auto", ranks: Any = None) -> None:
        self.method, self.ranks = method, ranks  # ranks: the processes that share each batch, or None (collective.py)
        # At first the layer normalizes and does no more: scale 1, shift 0.
        ones, zeros = np.ones(dim, np.float32), np.zeros(dim, np.float32)  # (C,) each
        self.weight = parameter(ones)
        if shift:
            self.bias = parameter(zeros)
        # These two are buffers: they are stored with the parameters, but no gradient moves them.
        self.running_mean, self.running_var = zeros, ones

    @by_default
    def __call__(self, x: Tensor, train: bool = False, *, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x; then add the shortcut, if there is one, and with relu=True take max(·, 0).

        Shortcut and ReLU are arguments because the fast form does all three in one pass over memory.
        """
        if x.shape[-1:] != self.weight.shape:
            self._refuse(f"…,{self.weight.shape[0]}", x)
        xp = array_module(x.data)
        shift = self.bias if hasattr(self, "bias") else xp.zeros_like(self.running_mean)
        mean, variance = self.running_mean, self.running_var  # (C,), (C,)
        if train:
            mean, variance = ops.moments(xp, x.data, method=self.method)  # (C,), (C,)
            count = x.data.size // x.shape[-1]  # values per channel
            # If other processes have a share of the batch, these become the statistics of the whole batch.
            mean, variance, count = ops.norm.shared.moments(xp, mean, variance, count, self.ranks)
            if count < 2:
                raise ValueError("batch norm in training needs more than one value per channel; use a larger batch")
            self.running_mean = self._towards(self.running_mean, mean)
            # The mean of squared deviations is too small by (n−1)/n, because the batch's own mean was subtracted.
            self.running_var = self._towards(self.running_var, variance * (count / (count - 1)))
        inputs = (x, self.weight, shift) if shortcut is None else (x, self.weight, shift, shortcut)
        settings: dict[str, Any] = {"mean": mean, "variance": variance, "eps": self.eps, "method": self.method}
        # In training the statistics move with x, so gradient flows through them as well.
        return ops.batch_norm(*inputs, **settings, batch=train, relu=relu, ranks=self.ranks)  # (…,C)

    def _towards(self, running: Array, new: Array) -> Array:
        # We make a new array and do not update in place: the graph of an evaluation may still hold the old one.
        return ((1 - self.momentum) * running + self.momentum * new).astype(running.dtype)


class Sequential(Module):
    """Apply layers one after the other; the children's names are their numbers."""

    def __init__(self, *layers: Module) -> None:
        for k, layer in enumerate(layers):
            setattr(self, str(k), layer)  # "0", "1" …: torchvision's names

    def __call__(self, x: Any, train: bool = False) -> Any:
        for layer in vars(self).values():  # in the order in which the constructor was given them
            x = layer(x, train=train)
        return x
