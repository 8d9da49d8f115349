"""The contestants of the NT-Xent benchmark: our forms, and each peer's loss as its users write it.

A contestant is a function `prepare(za, zb, temperature) -> run`. `run()` gives (loss, dza, dzb) as its own kind of
array, and returns when the work is finished. Importing a missing package raises ImportError.

Install the peers with `pip install ".[peers]"` (PyTorch's CPU wheels are enough on a CPU).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

_until_the_end = contextlib.ExitStack()

Run = Callable[[], tuple[Any, Any, Any]]
Prepare = Callable[[Any, Any, float], Run]


# ── NumPy ─────────────────────────────────────────────────────────────────────────────────────────


def numpy_textbook(za: Any, zb: Any, temperature: float) -> Run:
    """The closed form as one writes it first: logits, log-sum-exp, softmax minus one-hot."""
    n = len(za)
    partner = (np.arange(2 * n) + n) % (2 * n)
    anchor = np.arange(2 * n)

    def run() -> tuple[Any, Any, Any]:
        z = np.concatenate([za, zb])
        length = np.linalg.norm(z, axis=1, keepdims=True)
        u = z / length
        logits = u @ u.T / temperature
        np.fill_diagonal(logits, -np.inf)
        shift = logits.max(axis=1, keepdims=True)
        e = np.exp(logits - shift)
        total = e.sum(axis=1, keepdims=True)
        loss = (np.log(total) + shift).mean() - logits[anchor, partner].mean()
        g = e / total
        g[anchor, partner] -= 1
        du = (g + g.T) @ u / (2 * n * temperature)
        dz = (du - u * (u * du).sum(axis=1, keepdims=True)) / length
        return loss, dz[:n], dz[n:]

    return run


def minisimclr(method: str, keep_bytes: int | None = None) -> Prepare:
    """Our function with one method, as in a bare call; with keep_bytes the tiles alone, in a run.

    keep_bytes: memory of the tiled form for exp(u·uᵀ/τ) between its two passes; with 0 it is computed twice.
    """

    def prepare(za: Any, zb: Any, temperature: float) -> Run:
        from minisimclr.ntxent import few, nt_xent_value_and_grad, tiled
        from minisimclr.processor import keep_freed_memory

        if keep_bytes is None:
            return lambda: nt_xent_value_and_grad(za, zb, temperature, method)
        few.MOST_IMAGES = 0  # in this process of its own: tiles for few images, too
        keep_freed_memory()  # as `pretrain` does, for all forms alike
        return lambda: tiled.value_and_grad(za, zb, temperature, keep_bytes)

    return prepare


def in_a_run(za: Any, zb: Any, temperature: float) -> Run:
    """Our choice as a training run calls it: tensors, `backward`, freed memory kept, BLAS held once for all calls."""
    from minisimclr import Tensor, nt_xent
    from minisimclr.processor import blas_at_one_thread, keep_freed_memory

    keep_freed_memory()
    _until_the_end.enter_context(blas_at_one_thread())
    a, b = Tensor(za, requires_grad=True), Tensor(zb, requires_grad=True)

    def run() -> tuple[Any, Any, Any]:
        a.grad = b.grad = None
        loss = nt_xent(a, b, temperature)
        loss.backward()
        return loss.data, a.grad, b.grad

    return run


def whole_matrix(za: Any, zb: Any, temperature: float) -> Run:
    """The form for few images, at any number of them, in a run."""
    from minisimclr.ntxent import few
    from minisimclr.processor import blas_at_one_thread, keep_freed_memory

    keep_freed_memory()

    def run() -> tuple[Any, Any, Any]:
        with blas_at_one_thread():
            return few.value_and_grad(za, zb, temperature)

    return run


def on_gpu(method: str) -> Prepare:
    def prepare(za: Any, zb: Any, temperature: float) -> Run:
        import cupy

        from minisimclr.ntxent import nt_xent_value_and_grad

        a, b = cupy.asarray(za), cupy.asarray(zb)

        def run() -> tuple[Any, Any, Any]:
            result = nt_xent_value_and_grad(a, b, temperature, method)
            cupy.cuda.get_current_stream().synchronize()
            return result

        return run

    return prepare


def has_gpu() -> bool:
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


# ── PyTorch ───────────────────────────────────────────────────────────────────────────────────────


def _torch_run(loss_of: Callable[[Any, Any], Any], za: Any, zb: Any) -> Run:
    """Loss and gradients of a PyTorch function of two tensors."""
    import torch

    a, b = (torch.from_numpy(z.copy()).requires_grad_() for z in (za, zb))

    def run() -> tuple[Any, Any, Any]:
        a.grad = b.grad = None
        loss = loss_of(a, b)
        loss.backward()
        return loss.detach(), a.grad, b.grad

    def forget() -> None:
        a.grad = b.grad = None

    run.forget = forget  # type: ignore[attr-defined]
    return run


def _torch_loss(temperature: float) -> Callable[[Any, Any], Any]:
    """The similarity matrix and a cross-entropy, as in most SimCLR repositories."""
    import torch
    from torch.nn import functional as F

    def loss_of(a: Any, b: Any) -> Any:
        n = len(a)
        u = F.normalize(torch.cat([a, b]), dim=1)
        logits = u @ u.T / temperature
        logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
        return F.cross_entropy(logits, (torch.arange(2 * n) + n) % (2 * n))

    return loss_of


def torch_eager(za: Any, zb: Any, temperature: float) -> Run:
    return _torch_run(_torch_loss(temperature), za, zb)


def torch_compile(za: Any, zb: Any, temperature: float) -> Run:
    import torch

    torch._dynamo.reset()  # one batch size, as in training; else the second size is compiled for any size
    return _torch_run(torch.compile(_torch_loss(temperature), dynamic=False), za, zb)


def lightly(za: Any, zb: Any, temperature: float) -> Run:
    from lightly.loss import NTXentLoss

    return _torch_run(NTXentLoss(temperature), za, zb)


def pytorch_metric_learning(za: Any, zb: Any, temperature: float) -> Run:
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return _torch_run(SelfSupervisedLoss(NTXentLoss(temperature)), za, zb)


# ── JAX ───────────────────────────────────────────────────────────────────────────────────────────


def _jax_run(loss_of: Callable[[Any, Any], Any], za: Any, zb: Any) -> Run:
    import jax

    if za.dtype != np.float32:
        raise TypeError("JAX computes in float32 unless it is told otherwise")

    both = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)))
    a, b = jax.numpy.asarray(za), jax.numpy.asarray(zb)

    def run() -> tuple[Any, Any, Any]:
        loss, (da, db) = jax.block_until_ready(both(a, b))
        return loss, da, db

    return run


def jax_jit(za: Any, zb: Any, temperature: float) -> Run:
    """The same matrix form, compiled by XLA."""
    import jax.numpy as jnp
    from jax.nn import logsumexp

    def loss_of(a: Any, b: Any) -> Any:
        n = len(a)
        z = jnp.concatenate([a, b])
        u = z / jnp.linalg.norm(z, axis=1, keepdims=True)
        logits = jnp.where(jnp.eye(2 * n, dtype=bool), -jnp.inf, u @ u.T / temperature)
        positive = (u * jnp.roll(u, n, axis=0)).sum(axis=1) / temperature
        return (logsumexp(logits, axis=1) - positive).mean()

    return _jax_run(loss_of, za, zb)


def optax(za: Any, zb: Any, temperature: float) -> Run:
    import jax.numpy as jnp
    from optax.losses import ntxent

    labels = jnp.tile(jnp.arange(len(za)), 2)
    return _jax_run(lambda a, b: ntxent(jnp.concatenate([a, b]), labels, temperature), za, zb)


OURS: dict[str, Prepare] = {
    "auto": minisimclr("auto"),
    "auto, in a run": in_a_run,
    "whole matrix": whole_matrix,
    "tiled, E kept": minisimclr("tiled", 2**40),
    "tiled, E recomputed": minisimclr("tiled", 0),
    "exact": minisimclr("exact"),
    "NumPy textbook": numpy_textbook,
    "plain": minisimclr("plain"),
    "composed": minisimclr("composed"),
}
GPU: dict[str, Prepare] = {"cuda": on_gpu("cuda"), "exact on the GPU": on_gpu("exact")}
PEERS: dict[str, Prepare] = {
    "torch eager": torch_eager,
    "torch.compile": torch_compile,
    "lightly": lightly,
    "pytorch-metric-learning": pytorch_metric_learning,
    "jax.jit": jax_jit,
    "optax": optax,
}
PACKAGE = {
    "torch eager": "torch", "torch.compile": "torch", "lightly": "lightly",
    "pytorch-metric-learning": "pytorch_metric_learning", "jax.jit": "jax", "optax": "optax",
}  # fmt: skip
ALIASES = {"reference": "exact", "reference on the GPU": "exact on the GPU"}  # names in older results
FORMS = ("whole matrix", "tiled, E kept", "tiled, E recomputed")  # of which "auto" chooses
LARGEST = {
    "plain": 1024,
    "composed": 1024,
    "whole matrix": 1024,
    "exact": 4096,
    "NumPy textbook": 4096,
}  # images per batch; beyond, one call takes seconds and a GiB or more
