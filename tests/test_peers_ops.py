"""Against PyTorch and torchvision, in float64: layers, whole ResNets, and NT-Xent.

Run with `pytest -m peers`. The tolerance is a relative L2 distance of 1e-8 on every parameter's gradient.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minisimclr as ms
from minisimclr import Tensor, nn, ops

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch torchvision")
pytestmark = pytest.mark.peers

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def assert_close(ours: Any, theirs: Any, what: str = "", tolerance: float = 1e-8) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape, what
    assert np.linalg.norm(ours - theirs) <= tolerance * max(np.linalg.norm(theirs), 1e-300), what


def maps(x: Any) -> Any:
    """(N,C,H,W) as torch has it <-> (H,W,N,C) as we do."""
    return x.transpose(2, 3, 0, 1)


def leaf(x: Array) -> Any:
    return torch.tensor(x, requires_grad=True)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("channels", [3, 40])
def test_conv2d_and_its_gradients_are_torchs(kernel: int, stride: int, padding: int, channels: int) -> None:
    x, w = normal(2, channels, 9, 8), normal(4, channels, kernel, kernel)
    tx, tw = leaf(x), leaf(w)
    ty = torch.nn.functional.conv2d(tx, tw, stride=stride, padding=padding)
    g = normal(*ty.shape, seed=1)
    ty.backward(torch.tensor(g))
    ours = Tensor(maps(x), requires_grad=True), Tensor(w.transpose(2, 3, 1, 0), requires_grad=True)
    y = ops.conv2d(*ours, stride=stride, padding=padding)
    y.backward(maps(g))
    assert_close(y.data, maps(ty.detach().numpy()), "value", 1e-13)
    assert_close(ours[0].grad, maps(tx.grad.numpy()), "dx", 1e-13)
    assert_close(ours[1].grad, tw.grad.numpy().transpose(2, 3, 1, 0), "dw", 1e-13)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 1), (5, 3, 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool2d_and_its_gradient_are_torchs_ties_included(
    kernel: int, stride: int, padding: int, ties: bool
) -> None:
    x = normal(2, 3, 9, 8)
    x = np.maximum(np.round(x), 0) if ties else x
    tx = leaf(x)
    ty = torch.nn.functional.max_pool2d(tx, kernel, stride, padding)
    g = normal(*ty.shape, seed=1)
    ty.backward(torch.tensor(g))
    ours = Tensor(maps(x), requires_grad=True)
    y = ops.max_pool2d(ours, kernel=kernel, stride=stride, padding=padding)
    y.backward(maps(g))
    assert_close(y.data, maps(ty.detach().numpy()), "value", 0)
    assert_close(ours.grad, maps(tx.grad.numpy()), "dx", 1e-14)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_its_gradients_and_running_statistics_are_torchs(train: bool) -> None:
    x = 3 + 2 * normal(4, 5, 3, 2)
    theirs, ours = torch.nn.BatchNorm2d(5).double(), nn.BatchNorm2d(5).astype(np.float64)
    state = {
        "weight": normal(5),
        "bias": normal(5, seed=1),
        "running_mean": normal(5, seed=2),
        "running_var": np.exp(normal(5, seed=3)),
    }
    theirs.load_state_dict({name: torch.tensor(a) for name, a in state.items()}, strict=False)
    ours.load_state_dict(state)
    theirs.train(train)
    tx, mine = leaf(x), Tensor(maps(x), requires_grad=True)
    ty, y = theirs(tx), ours(mine, train)
    g = normal(*ty.shape, seed=4)
    ty.backward(torch.tensor(g))
    y.backward(maps(g))
    assert_close(y.data, maps(ty.detach().numpy()), "value", 1e-13)
    assert_close(mine.grad, maps(tx.grad.numpy()), "dx", 1e-12)
    assert_close(ours.weight.grad, theirs.weight.grad, "dscale", 1e-12)
    assert_close(ours.bias.grad, theirs.bias.grad, "dshift", 1e-12)
    assert_close(ours.running_mean, theirs.running_mean, "running mean", 1e-13)
    assert_close(ours.running_var, theirs.running_var, "running variance", 1e-13)


def test_cross_entropy_and_its_gradient_are_torchs() -> None:
    logits, labels = 5 * normal(7, 4), np.array([0, 3, 1, 1, 2, 0, 3])
    tx, ours = leaf(logits), Tensor(logits, requires_grad=True)
    torch.nn.functional.cross_entropy(tx, torch.tensor(labels)).backward()
    ops.cross_entropy(ours, labels=labels).backward()
    assert_close(ours.grad, tx.grad, tolerance=1e-13)


# Operators that torchvision's Python half expects of its compiled half. One that was built for another PyTorch is not
# loaded, and then they are missing; no model uses them.
OPERATORS = {"nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"}
OPERATORS["qnms"] = "q" + OPERATORS["nms"]


def import_torchvision() -> Any:
    """Import torchvision, and declare what it misses until it can be imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"torchvision::(\w+)", str(error))
            if missing is None or missing[1] not in OPERATORS:
                raise
            library.define(OPERATORS.pop(missing[1]))
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]  # a half of it


@pytest.fixture(scope="module")
def torchvision() -> Any:
    """In CI these comparisons are never left out in silence: without torchvision they fail there."""
    try:
        return import_torchvision()
    except (ImportError, RuntimeError) as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"whole ResNets were not compared with torchvision's: {error}")
        pytest.skip(f"needs torchvision: {error}")


@pytest.mark.parametrize(
    ("name", "size", "train"),
    [("resnet18", 40, True), ("resnet18", 33, False), ("resnet50", 33, True), ("resnet50", 40, False)],
)
def test_a_whole_resnet_is_torchvisions_forward_and_backward(
    torchvision: Any, name: str, size: int, train: bool
) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=10).double().train(train)
    if not train:  # running statistics that are not those of a fresh network
        theirs.train()(torch.rand(4, 3, size, size, dtype=torch.float64))
        theirs.eval()
    make: Callable[..., Any] = getattr(ms, name)
    ours = make(num_classes=10).astype(np.float64)
    ours.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    images, g = np.random.default_rng(0).random((3, size, size, 3)), normal(3, 10)

    logits = ours(images, train=train)
    logits.backward(g)
    expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2)))
    expected.backward(torch.tensor(g))

    assert_close(logits.data, expected, "logits", 1e-10)
    parameters = dict(theirs.named_parameters())
    assert [key for key, _ in ours.named_parameters()] != []
    for key, parameter in ours.named_parameters():
        gradient = parameters.pop(key).grad.numpy()
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(gradient.ndim, (0,))
        assert_close(parameter.grad, gradient.transpose(axes), key)
    assert not parameters
    for key, value in ours.state_dict().items():
        assert_close(value, theirs.state_dict()[key], key, 1e-10)


@pytest.mark.parametrize("n", [1, 2, 8, 65])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
def test_nt_xent_and_its_gradient_are_torchs_of_the_papers_formula(n: int, temperature: float) -> None:
    a = 3 * normal(n, 16)
    b = a + normal(n, 16, seed=1)
    ta, tb = leaf(a), leaf(b)
    u = torch.nn.functional.normalize(torch.cat([ta, tb]))
    logits = (u @ u.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    loss = torch.nn.functional.cross_entropy(logits, (torch.arange(2 * n) + n) % (2 * n))
    loss.backward()
    ours = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
    value = ms.nt_xent(*ours, temperature)
    value.backward()
    assert abs(value.item() - loss.item()) <= 1e-12 * max(1, abs(loss.item()))
    for mine, tensor in zip(ours, (ta, tb)):
        if n == 1:
            assert not mine.grad.any()  # type: ignore[union-attr]
        else:
            assert_close(mine.grad, tensor.grad)
