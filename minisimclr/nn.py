"""Layers: parameters with names. A module is a plain object whose attributes are found by looking at it.

* a Tensor attribute is a parameter, an array attribute a buffer (running statistics), a Module a child;
  names are the attribute names joined by dots, in the order of assignment, and are torchvision's.
* Training or evaluating is an argument of the call, model(x, train=True), not a mode that one forgets.
* Inside, kernels are (K,K,C,D) and matrices (in,out), as the ops want them; `state_dict` speaks
  torchvision's layout, (D,C,K,K) and (out,in).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from . import ops
from .backend import Array, array_module, device_of, is_array, to_device, to_numpy
from .engine.autograd import Tensor


class Module:
    """Something with parameters that can be called, saved, loaded and moved."""

    # parameter -> the axes of its array in the order in which torchvision stores them
    stored_axes: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __call__(self, x: Any, train: bool = False) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, with the prefix of their names."""
        yield prefix, self
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield from value.modules(f"{prefix}{name}.")

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        return [
            (prefix + name, value)
            for prefix, module in self.modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]

    def parameters(self) -> list[Tensor]:
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Every parameter and buffer: a NumPy copy in torchvision's layout, under torchvision's name."""
        state = {}
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) or is_array(value):
                    array = to_numpy(value.data if isinstance(value, Tensor) else value)
                    axes = module.stored_axes.get(name, tuple(range(array.ndim)))
                    state[prefix + name] = array.transpose(axes).copy(order="C")
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all parameters and buffers; `num_batches_tracked` is ignored.

        Raises ValueError, before anything is changed, if names or shapes differ.
        """
        own = self.state_dict()
        given = {name: np.asarray(value) for name, value in state.items() if not name.endswith("num_batches_tracked")}
        for what, names in (("misses", own.keys() - given.keys()), ("has the unknown", given.keys() - own.keys())):
            if names:
                raise ValueError(f"load_state_dict: the state {what} {_listed(names)}")
        for name, array in own.items():
            if given[name].shape != array.shape:
                raise ValueError(f"load_state_dict: {name} has shape {given[name].shape}, expected {array.shape}")
            if given[name].dtype.kind not in "fiub":
                raise ValueError(f"load_state_dict: {name} has dtype {given[name].dtype}, expected numbers")
        for prefix, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) or is_array(value):
                    old = value.data if isinstance(value, Tensor) else value
                    axes = module.stored_axes.get(name, tuple(range(old.ndim)))
                    array = given[prefix + name].transpose(np.argsort(axes)).astype(old.dtype, order="C")
                    module._put(name, to_device(array, device_of(old)))

    def astype(self, dtype: Any) -> Self:
        """Compute in this floating-point dtype from now on: parameters and buffers are converted."""
        return self._convert(lambda array: array.astype(dtype))

    def to(self, device: str) -> Self:
        """Move parameters and buffers to "cpu" or "cuda"."""
        return self._convert(lambda array: to_device(array, device))

    def _convert(self, change: Any) -> Self:
        for _, module in self.modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor) or is_array(value):
                    module._put(name, change(value.data if isinstance(value, Tensor) else value))
        return self

    def _put(self, name: str, array: Array) -> None:
        """Replace a parameter's or buffer's array; the Tensor object stays the same."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            value.data = array
        else:
            setattr(self, name, array)


def _listed(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def parameter(array: Any) -> Tensor:
    """A float32 leaf that wants a gradient."""
    return Tensor(np.asarray(array, np.float32), requires_grad=True)


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan: int) -> Tensor:
    """N(0, 2/fan): keeps the variance of activations through layers followed by ReLU (He et al. 2015)."""
    return parameter(rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan)))


def in_dtype(x: Tensor, dtype: Any) -> Tensor:
    """x in this dtype; None: as it is."""
    return x if dtype is None or x.dtype == dtype else ops.cast(x, dtype=dtype)


class Linear(Module):
    """y = x W + b.  x (N,in) -> (N,out)."""

    product_dtype: Any = None  # in which x W is computed; None: in that of x and W. Config.precision sets another
    stored_axes: ClassVar = {"weight": (1, 0)}

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool = True, rng: np.random.Generator) -> None:
        bound = 1 / np.sqrt(in_dim)  # torch's default: uniform in ±1/√in
        self.weight = parameter(rng.uniform(-bound, bound, (in_dim, out_dim)))
        if bias:
            self.bias = parameter(rng.uniform(-bound, bound, out_dim))

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        y = in_dtype(x, self.product_dtype) @ in_dtype(self.weight, self.product_dtype)
        return y + self.bias if hasattr(self, "bias") else y


class Conv2d(Module):
    """A convolution without bias (batch norm follows and would remove it).  x (H,W,N,in) -> (H',W',N,out)."""

    method = "slabs"  # how ops.conv2d computes it; Config.conv sets another
    product_dtype: Any = None  # in which; as in Linear
    stored_axes: ClassVar = {"weight": (3, 2, 0, 1)}

    def __init__(
        self, in_dim: int, out_dim: int, kernel: int, *, stride: int = 1, padding: int = 0, rng: np.random.Generator
    ) -> None:
        self.stride, self.padding = stride, padding
        # drawn in torchvision's layout and scaled by the fan-out, as torchvision's ResNet is
        drawn = he_normal(rng, (out_dim, in_dim, kernel, kernel), fan=out_dim * kernel * kernel)
        self.weight = parameter(drawn.data.transpose(2, 3, 1, 0))

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        x, weight = in_dtype(x, self.product_dtype), in_dtype(self.weight, self.product_dtype)
        return ops.conv2d(x, weight, stride=self.stride, padding=self.padding, method=self.method)


class BatchNorm2d(Module):
    """Normalize each channel over all other axes, then scale and shift.  x (…,C) -> (…,C).

    Training uses the statistics of the batch, and moves the running statistics a tenth of the way towards them.
    Evaluation uses the running statistics. As in torch, the running variance is the unbiased one.
    shift=False leaves out the shift, as the last layer of SimCLR's head does.
    method is that of ops.batch_norm: "plain", "fused" or "auto".

    Raises: ValueError in training on one value per channel, of which there is no variance
    """

    eps, momentum = 1e-5, 0.1

    def __init__(self, dim: int, *, shift: bool = True, method: str = "auto") -> None:
        self.method = method
        self.weight = parameter(np.ones(dim))
        if shift:
            self.bias = parameter(np.zeros(dim))
        self.running_mean = np.zeros(dim, np.float32)
        self.running_var = np.ones(dim, np.float32)

    def __call__(self, x: Tensor, train: bool = False, *, shortcut: Tensor | None = None, relu: bool = False) -> Tensor:
        """Normalize x; then add the shortcut, if there is one, and with relu=True take max(·, 0).

        They are arguments because the fast form does all three in one pass over memory.
        """
        xp = array_module(x.data)
        shift = self.bias if hasattr(self, "bias") else xp.zeros_like(self.running_mean)
        mean, variance = self.running_mean, self.running_var  # (C,), (C,)
        if train:
            mean, variance = ops.moments(xp, x.data, method=self.method)
            count = x.data.size // x.shape[-1]  # values per channel
            if count < 2:
                raise ValueError("batch norm in training needs more than one value per channel; use a larger batch")
            self.running_mean = self._towards(self.running_mean, mean)
            # the mean of squared deviations is too small by (n−1)/n, because the batch's own mean was subtracted
            self.running_var = self._towards(self.running_var, variance * (count / (count - 1)))
        inputs = (x, self.weight, shift) if shortcut is None else (x, self.weight, shift, shortcut)
        settings: dict[str, Any] = {"mean": mean, "variance": variance, "eps": self.eps, "method": self.method}
        # batch=True: the statistics moved with x, so gradient flows through them as well
        return ops.batch_norm(*inputs, **settings, batch=train, relu=relu)  # (…,C)

    def _towards(self, running: Array, new: Array) -> Array:
        return ((1 - self.momentum) * running + self.momentum * new).astype(running.dtype)


class ReLU(Module):
    """max(x, 0)."""

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        return ops.relu(x)


class Sequential(Module):
    """One after the other; the children's names are their numbers."""

    def __init__(self, *layers: Module) -> None:
        for k, layer in enumerate(layers):
            setattr(self, str(k), layer)

    def __call__(self, x: Any, train: bool = False) -> Any:
        for layer in vars(self).values():
            x = layer(x, train=train)
        return x
