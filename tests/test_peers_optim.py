"""Twenty steps of our optimizers beside PyTorch's SGD and optax's LARS and schedule, in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minisimclr.engine.autograd import Tensor
from minisimclr.training.optim import LARS, SGD, Optimizer, warmup_cosine

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]  # peers may warn about themselves

STEPS, WARMUP = 20, 5
RATES = [warmup_cosine(step, STEPS, WARMUP, 0.4) for step in range(STEPS)]

Array = np.ndarray


def start() -> list[Array]:
    """A matrix, a bias, a kernel, and a matrix of zeros, whose norm is 0 at the first step."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((5, 4)), rng.standard_normal(4), rng.standard_normal((3, 3, 2, 4)), np.zeros((4, 4))]


def pull(step: int) -> list[Array]:
    """The place to which the loss Σ|w − target|²/2 pulls to at this step; its gradient is w − target."""
    rng = np.random.default_rng([1, step])
    return [rng.standard_normal(w.shape) for w in start()]


def ours(make: Callable[[list[Tensor]], Optimizer]) -> list[Array]:
    params = [Tensor(w, requires_grad=True) for w in start()]
    optimizer = make(params)
    for step, lr in enumerate(RATES):
        for p, target in zip(params, pull(step)):
            p.grad = p.data - target
        optimizer.step(lr)
    return [p.data for p in params]


def agree(a: list[Array], b: list[Any]) -> None:
    for x, y in zip(a, b):
        assert np.asarray(y).dtype == np.float64
        np.testing.assert_allclose(x, np.asarray(y), rtol=1e-11, atol=1e-12)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs PyTorch: pip install '.[peers]'")


@pytest.fixture
def optax() -> Any:
    jax = pytest.importorskip("jax", reason="needs JAX: pip install '.[peers]'")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)  # JAX computes in float32 unless told
    yield pytest.importorskip("optax", reason="needs optax: pip install '.[peers]'")
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_sgd_is_pytorchs(torch, decay, nesterov):
    theirs = [torch.nn.Parameter(torch.tensor(w)) for w in start()]
    optimizer = torch.optim.SGD(theirs, lr=1.0, momentum=0.9, weight_decay=decay, nesterov=nesterov)
    for step, lr in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = lr
        for p, target in zip(theirs, pull(step)):
            p.grad = p.detach() - torch.tensor(target)
        optimizer.step()
    agree(ours(lambda params: SGD(params, 1, 0.9, decay, nesterov)), [p.detach() for p in theirs])


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_lars_is_optaxs(optax, decay):
    jnp = sys.modules["jax"].numpy
    theirs = [jnp.asarray(w) for w in start()]
    matrices = [w.ndim > 1 for w in start()]  # what gets decay and trust
    optimizer = optax.lars(
        lambda step: jnp.asarray(RATES)[step],
        weight_decay=decay,
        weight_decay_mask=matrices,
        trust_coefficient=0.02,
        trust_ratio_mask=matrices,
        momentum=0.9,
    )
    state = optimizer.init(theirs)
    for step in range(STEPS):
        gradients = [w - target for w, target in zip(theirs, pull(step))]
        updates, state = optimizer.update(gradients, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    agree(ours(lambda params: LARS(params, 1, 0.9, decay, 0.02)), theirs)


@pytest.mark.parametrize(("total", "warmup"), [(20, 5), (20, 0), (1000, 100), (7, 3)])
def test_schedule_is_optaxs(optax, total, warmup):
    theirs = (
        optax.warmup_cosine_decay_schedule(0.0, 0.4, warmup, total)
        if warmup
        else optax.cosine_decay_schedule(0.4, total)
    )
    for step in range(total + 3):
        assert warmup_cosine(step, total, warmup, 0.4) == pytest.approx(float(theirs(step)), rel=1e-12, abs=1e-14)
