"""In what a network computes: float32, TF32, or half precision with float32 wherever that matters.

    float32    everything
    tf32       products round their factors to 11 bits (a GPU's tensor cores); the rest is float32
    bfloat16   activations and products have 8 bits and the range of float32
    float16    activations and products have 11 bits, and overflow beyond 65,504; what is below 3e-8 becomes 0

In all of them the weights, their gradients, momentum, batch norm's statistics, h, z and the loss are float32. A
weight is rounded to half precision each time it is used, never where it is kept, so small updates are not lost.

float16 needs one thing more: gradients of 1e-8 would become 0. So the way back begins with a large number in the
place of 1, and the gradients are divided by it at the end, in float32. Where it was too large something overflows;
that step is left out, and the number halved (Micikevicius et al. 2018, §3.2). No number is read from the device.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..backend import Array, array_module, compute_capability, require, to_numpy
from ..engine.guard import writing
from .optim import Optimizer

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
FIRST, LEAST, PATIENCE = 2.0**15, 1.0, 1000  # the scale, first and at least; steps without overflow before it doubles


class LossScale:
    """With what the way back begins: 1, or if `dynamic` the largest power of two with which nothing overflows."""

    def __init__(self, optimizer: Optimizer, *, dynamic: bool) -> None:
        self.optimizer, self.dynamic = optimizer, dynamic
        self.xp = array_module(optimizer.params[0].data)
        self.value: Array = self.xp.asarray(FIRST if dynamic else 1.0, dtype=np.float32)
        self.good: Array = self.xp.asarray(0, dtype=np.int32)  # steps in a row without overflow
        self.counts: Array = self.xp.asarray(True)  # whether this step does

    def quiet(self) -> Any:
        """A context in which NumPy does not warn of the overflows that we look for ourselves."""
        return np.errstate(over="ignore", invalid="ignore") if self.dynamic else nullcontext()

    def unscale(self) -> Array:
        """Divide the gradients by the scale. Returns Σ max|g|, finite exactly if every gradient is.

        (The squares of the usual norm would overflow float32.) An overflow that a smaller scale may cure is
        reported as 0: `step` will leave that step out.
        """
        xp, gradients = self.xp, [p.grad for p in self.optimizer.params if p.grad is not None]
        if self.dynamic:
            for g in gradients:
                g /= self.value
        size = xp.stack([abs(g).max() for g in gradients]).sum(dtype=np.float64)
        self.counts = xp.isfinite(size)
        return xp.where(self.counts | (self.value <= LEAST), size, 0) if self.dynamic else size

    def step(self, lr: float) -> None:
        """Update the weights, unless the gradient overflowed; then adapt the scale."""
        if not self.dynamic:
            self.optimizer.step(lr)
            return
        xp, left_out, arrays = self.xp, ~self.counts, [p.data for p in self.optimizer.params] + self.optimizer.velocity
        before = [array.copy() for array in arrays]
        for p in self.optimizer.params:
            if p.grad is not None:
                xp.copyto(p.grad, 0, where=left_out)
        self.optimizer.step(lr)
        for p, old in zip(self.optimizer.params, before):
            with writing(p) as w:
                xp.copyto(w, old, where=left_out)
        for v, old in zip(self.optimizer.velocity, before[len(self.optimizer.params) :]):
            xp.copyto(v, old, where=left_out)
        self.good = xp.where(left_out, 0, self.good + 1).astype(np.int32)
        patient = self.good >= PATIENCE
        self.good = xp.where(patient, 0, self.good).astype(np.int32)
        factor = xp.where(left_out, 0.5, xp.where(patient, 2.0, 1.0))
        self.value = xp.maximum(self.value * factor, LEAST).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep of it."""
        names = ("value", "good") if self.dynamic else ()
        return {name: to_numpy(self.xp.asarray(getattr(self, name))) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state; without one, as of a run in another precision, begin anew."""
        if self.dynamic and state:
            self.value = self.xp.asarray(state["value"], dtype=np.float32)
            self.good = self.xp.asarray(state["good"], dtype=np.int32)


# ── What the device has ───────────────────────────────────────────────────────────────────────────


def half_dtype(name: str, device: str) -> Any:
    """The dtype of float16 or bfloat16 numbers; RuntimeError, in one line, if the device does not have them."""
    if name == "float16":
        return np.dtype(np.float16)
    if device == "cpu":
        raise RuntimeError(f'precision "{name}" needs device "cuda": NumPy does not have it; use float32 or float16')
    require(device)
    try:
        import ml_dtypes
    except ImportError:
        raise RuntimeError(f'precision "{name}" needs ml_dtypes: pip install ml_dtypes; or use float16') from None
    _require_tensor_cores(name)
    return np.dtype(ml_dtypes.bfloat16)


_tf32: bool | None = None  # what this process has chosen


def use_tf32(on: bool, device: str) -> None:
    """Have products of float32 matrices round their factors to TF32, or not. On a GPU it is chosen once a process.

    (CuPy asks the environment at its first product, and never again.)
    """
    global _tf32
    if device == "cpu":
        if on:
            raise RuntimeError('precision "tf32" needs device "cuda"; use float32')
        return
    require(device)
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
