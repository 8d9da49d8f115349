"""Number formats: float32, TF32, or half precision with float32 where that matters.

    float32    everything
    tf32       products round their factors to 11 bits (a GPU's tensor cores); the rest is float32
    bfloat16   activations and products have 8 bits and the range of float32
    float16    activations and products have 11 bits, and overflow beyond 65,504; what is below 3e-8 becomes 0

In all of them the weights, their gradients, momentum, batch norm's statistics, h, z and the loss are float32. A
weight is rounded to half precision each time it is used, but stored in float32, so small updates are not lost.

float16 needs one thing more, because gradients of 1e-8 would become 0. The backward pass begins with a large number,
the loss scale, in the place of 1, and the gradients are divided by it at the end, in float32. If the scale is too
large, some gradient overflows; then that step is left out and the scale halved (Micikevicius et al. 2018, §3.2). All of
this happens on the device: no number is read from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..backend import Array, array_module, compute_capability, to_numpy
from ..simclr import SimCLR
from .config import Config, build_model, build_optimizer
from .optim import Optimizer

FIRST = 2.0**15  # the initial loss scale: the largest power of two that float16 holds
LEAST = 1.0  # the smallest loss scale; if gradients overflow even then, the scale is not the cause
PATIENCE = 1000  # steps in a row without overflow before the scale doubles


def build(config: Config, own: SimCLR | None = None, ranks: Any = None) -> tuple[SimCLR, Optimizer]:
    """Build the network of a configuration and its optimizer, on the device and in the precision that it names.

    own    a model to be trained in place of the configuration's; it chose the precision of its products itself
    ranks  the processes that share each batch (collective.py)

    Raises: RuntimeError, in one line, if the device does not have that precision; ValueError for half precision if
            the model is `own`.
    """
    if own is not None and config.precision not in ("float32", "tf32"):
        raise ValueError(f"precision must be float32 or tf32 for a model of one's own, not {config.precision}")
    use_tf32(config.precision == "tf32", config.device)
    product_dtype = half_dtype(config.precision, config.device)
    loss_scale = LossScale() if config.precision == "float16" else None
    model = (build_model(config, product_dtype, ranks) if own is None else own).to(config.device)
    return model, build_optimizer(config, model, loss_scale)


class LossScale:
    """The number with which the backward pass begins: the largest power of two with which nothing overflows."""

    def __init__(self) -> None:
        self.value: Array = np.asarray(FIRST, np.float32)
        self.good: Array = np.asarray(0, np.int32)  # steps in a row without overflow
        self.finite: Array = np.asarray(True)  # True if every gradient of this step is finite

    def seed(self, loss: Array) -> Array:
        """Return the number with which the backward pass of a loss begins, on the device of the loss."""
        self.value = array_module(loss).asarray(self.value)
        return self.value

    def unscale(self, gradients: list[Array]) -> None:
        """Divide the gradients by the scale, in place."""
        for g in gradients:
            g /= self.value

    def judge(self, size: Array) -> Array:
        """Note whether Σ max|g| is finite, and return it as it is reported.

        If a smaller scale may avoid the overflow, 0 is reported, because `step` leaves that step out.
        """
        xp = array_module(size)
        self.finite = xp.isfinite(size)
        return xp.where(self.finite | (self.value <= LEAST), size, 0)

    def step(self, arrays: list[Array], gradients: list[Array], update: Callable[[], None]) -> None:
        """Call `update`, which changes the arrays, undo it if the gradient overflowed, and adapt the scale.

        Only the device knows if the gradient overflowed. So the update is always made, and then kept or undone there.
        """
        xp = array_module(*arrays)
        value, good, finite = (xp.asarray(number) for number in (self.value, self.good, self.finite))
        left_out = ~finite
        before = [array.copy() for array in arrays]
        for g in gradients:
            xp.copyto(g, 0, where=left_out)
        update()
        for array, old in zip(arrays, before):
            xp.copyto(array, old, where=left_out)
        good = xp.where(left_out, 0, good + 1)
        patient = good >= PATIENCE
        self.good = xp.where(patient, 0, good).astype(np.int32)
        factor = xp.where(left_out, 0.5, xp.where(patient, 2.0, 1.0))
        self.value = xp.maximum(value * factor, LEAST).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as NumPy arrays."""
        numbers = {"value": self.value, "good": self.good}
        return {name: to_numpy(array_module(number).asarray(number)) for name, number in numbers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a stored state. An empty one, of a run in another precision, changes nothing."""
        if state:
            self.value = np.asarray(state["value"], np.float32)
            self.good = np.asarray(state["good"], np.int32)


# ── The formats that a device has ─────────────────────────────────────────────────────────────────


def half_dtype(precision: str, device: str) -> Any:
    """Return the dtype of products in float16 or bfloat16, and None in a precision that is not half.

    Raises: RuntimeError, in one line, if the device does not have it.
    """
    if precision not in ("float16", "bfloat16"):
        return None
    if precision == "float16":
        return np.dtype(np.float16)
    if device == "cpu":
        raise RuntimeError(
            f'precision "{precision}" needs device "cuda": NumPy does not have it; use float32 or float16'
        )
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeError(f'precision "{precision}" needs ml_dtypes: pip install ml_dtypes; or use float16') from None
    _require_tensor_cores(precision)
    return np.dtype(ml_dtypes.bfloat16)


_tf32: bool | None = None  # the choice of this process, if one was made


def use_tf32(on: bool, device: str) -> None:
    """Switch on or off that products of float32 matrices round their factors to TF32; on a GPU once per process.

    (CuPy asks the environment at its first product, and never again.)

    Raises: RuntimeError if the device has no TF32, or if this process chose otherwise before.
    """
    global _tf32
    if device == "cpu":
        if on:
            raise RuntimeError('precision "tf32" needs device "cuda"; use float32')
        return
    if on:
        _require_tensor_cores("tf32")
    if _tf32 not in (None, on):
        raise RuntimeError("TF32 is switched on or off once a process; for another precision start a new one")
    _tf32, os.environ["CUPY_TF32"] = on, "1" if on else "0"


def _require_tensor_cores(precision: str) -> None:
    major, minor = compute_capability()
    if major < 8:
        raise RuntimeError(
            f'precision "{precision}" needs a GPU of compute capability 8.0, this one has '
            f"{major}.{minor}; use float32 or float16"
        )
