"""Arrays of two kinds: moved when told to, never mixed, and the same results on both."""

from __future__ import annotations

from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device, placed, tensor

import minisimclr as ms
from minisimclr import Tensor, backend, ops

elsewhere = pytest.mark.skipif(devices.DEVICE == "cpu", reason="needs device arrays: --device stand-in or cuda")


def test_there_and_back_is_the_same_array(xp: Any) -> None:
    for dtype in (np.uint8, np.int64, np.bool_, np.float16, np.float32, np.float64):
        x = (np.arange(24).reshape(2, 3, 4) % 5).astype(dtype)
        moved = on_device(x.transpose(2, 0, 1))
        assert backend.is_array(moved)
        assert backend.array_module(moved, 3.0, [1]) is xp
        assert backend.device_of(moved) == devices.DEVICE
        assert backend.to_device(moved, devices.DEVICE) is moved
        assert (moved.shape, moved.dtype) == ((4, 2, 3), dtype)
        np.testing.assert_array_equal(backend.to_numpy(moved), x.transpose(2, 0, 1))


@elsewhere
@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: backend.array_module(here, there),
        lambda here, there: Tensor(here) + Tensor(there),
        lambda here, there: there * Tensor(here),
        lambda here, there: Tensor(here) * there,
        lambda here, there: ops.matmul(there, here.T),
        lambda here, there: ms.nt_xent(here, there),
        lambda here, there: ms.nt_xent_value_and_grad(here, there),
        lambda here, there: (Tensor(there, requires_grad=True) * 2).backward(here),
        lambda here, there: ops.cross_entropy(Tensor(there), labels=np.array([0, 1])),
    ],
)
def test_host_and_device_arrays_are_never_mixed(mix: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        mix(np.ones((2, 3)), on_device(np.ones((2, 3))))


@elsewhere
def test_a_seed_of_the_wrong_device_says_so_and_leaves_no_gradient() -> None:
    x = tensor(np.ones(3), requires_grad=True)
    for seed in (np.ones(3), Tensor(np.ones(3))):
        with pytest.raises(TypeError, match="NumPy and CuPy arrays are mixed"):
            (x * 2).backward(seed)
        assert x.grad is None


@elsewhere
@pytest.mark.parametrize("make", [ms.LARS, ms.SGD])
def test_three_steps_are_the_processors(make: Any) -> None:
    """From the same weights on the same views: loss, weights and running statistics, up to float32's rounding."""

    def train(move: Any) -> tuple[list[float], dict[str, Any]]:
        encoder = ms.resnet_small(base=4, rng=np.random.default_rng(0))
        model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 8, 4, rng=np.random.default_rng(1)))
        model = move(model)
        optimizer, losses = make(model.parameters(), lr=0.05, weight_decay=1e-4), []
        for step in range(3):
            views = np.random.default_rng(step).random((2, 8, 16, 16, 3), np.float32)
            a, b = (backend.to_device(v, backend.device_of(model.parameters()[0].data)) for v in views)
            loss, _, _ = model.loss(a, b, temperature=0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, model.state_dict()

    (losses, state), (expected, right) = train(placed), train(lambda model: model)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, array in right.items():
        assert isinstance(state[name], np.ndarray)
        assert np.linalg.norm(state[name] - array) <= 1e-3 * np.linalg.norm(array) + 1e-5, name


def test_a_model_goes_there_and_comes_back_with_the_same_bits() -> None:
    model = ms.resnet_small(base=4, num_classes=3)
    before = model.state_dict()
    held = model.parameters()
    assert {backend.device_of(p.data) for p in placed(model).parameters()} == {devices.DEVICE}
    model.load_state_dict(before)
    assert {backend.device_of(p.data) for p in model.parameters()} == {devices.DEVICE}
    after = model.to("cpu").state_dict()
    assert all(a is b for a, b in zip(held, model.parameters()))
    assert all(before[name].tobytes() == host(array).tobytes() for name, array in after.items())
