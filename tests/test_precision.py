"""Half precision: what stays float32, how far it is from float64, and what becomes of a step that overflows."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device, tensor

from minisimclr import backend
from minisimclr.data.doodles import draw_doodles
from minisimclr.engine.autograd import Tensor
from minisimclr.nn import BatchNorm2d
from minisimclr.ops import conv2d, moments
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.simclr import SimCLR
from minisimclr.training import precision
from minisimclr.training.config import PRECISIONS, Config, build_model
from minisimclr.training.optim import LARS, SGD, Optimizer
from minisimclr.training.precision import LossScale, half_dtype, use_tf32
from minisimclr.training.run import Interrupted, load_run
from minisimclr.training.session import READ_EVERY
from minisimclr.training.train import pretrain
from minisimclr.views.augment import two_views

HALF = Config(size=16, batch=16, epochs=1, head_dim=16, device=devices.DEVICE, precision="float16")
SINGLE = dataclasses.replace(HALF, precision="float32")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 8 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 8, **options}))


@pytest.fixture(scope="module")
def images() -> Any:
    return draw_doodles(160, seed=0, size=16)[0]


def model_and_optimizer(config: Config) -> tuple[SimCLR, Optimizer]:
    return precision.build(config)


def loss_and_gradient(config: Config, images: Any, dtype: Any = np.float32) -> tuple[float, Any]:
    """Compute the loss of the whole network on one batch, and its gradient as one row."""
    model, optimizer = model_and_optimizer(config)
    model.astype(dtype)
    a, b = (view.astype(dtype) for view in two_views(on_device(images), np.random.default_rng(0), 16))
    loss, _, _ = model.loss(a, b, 0.5)
    optimizer.backward(loss)
    return loss.item(), np.concatenate([host(p.grad).ravel() for p in model.parameters()]).astype(float)


# ── What is rounded and what is not ───────────────────────────────────────────────────────────────


def test_weights_gradients_statistics_h_z_and_loss_are_float32_and_feature_maps_are_not(images):
    model, _ = model_and_optimizer(HALF)
    kinds = set()
    original = BatchNorm2d.__call__

    def spy(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = original(layer, x, *args, **options)
        kinds.add((x.dtype.name, y.dtype.name))
        return y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchNorm2d, "__call__", spy)
        a, b = two_views(on_device(images[:8]), np.random.default_rng(0), 16)
        loss, za, _ = model.loss(a, b, 0.5)
    loss.backward()
    assert kinds == {("float16", "float16")}
    h, z = model(a)
    for array in (loss.data, za, h.data, z.data, *(p.grad for p in model.parameters())):
        assert array.dtype == np.float32
    assert {array.dtype for array in model.state_dict().values()} == {np.dtype(np.float32)}


def test_a_small_update_of_a_weight_is_not_lost():
    """1 + 1e-4 is 1 in float16."""
    model, optimizer = model_and_optimizer(HALF)
    before = host(model.encoder.bn1.weight.data).copy()
    for p in model.parameters():
        p.grad = backend.array_module(p.data).full(p.shape, 1e-4, np.float32)
    optimizer.step(lr=1.0)
    assert (host(model.encoder.bn1.weight.data) != before).all()


def test_batch_norm_of_half_precision_is_that_of_float32_rounded_once():
    """The mean is far from 0, where a difference of rounded products would err much more."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4, 4, 8, 3)) + 20).astype(np.float16)
    arrays = [rng.standard_normal(x.shape).astype(np.float16)]
    scale, shift = (rng.standard_normal(3).astype(np.float32) for _ in "ab")
    results = []
    for dtype in (np.float16, np.float32):
        layer = BatchNorm2d(3).to(devices.DEVICE)
        layer.weight.data, layer.bias.data = on_device(scale), on_device(shift)
        inputs = [Tensor(on_device(v.astype(dtype)), requires_grad=True) for v in (x, *arrays)]
        y = layer(inputs[0], train=True, shortcut=inputs[1], relu=True)
        y.backward(on_device(np.ones(x.shape, dtype)))
        results.append(host([y.data, inputs[0].grad, inputs[1].grad, layer.weight.grad, layer.bias.grad]))
    for ours, expected in zip(*results):
        assert np.abs(ours - expected).max() <= 2.0**-10 * max(1e-3, np.abs(expected).max())
    assert results[0][0].dtype == results[0][1].dtype == np.float16
    assert results[0][3].dtype == np.float32


def test_the_mean_of_many_large_values_does_not_overflow():
    """Their sum is beyond 65,504."""
    xp = devices.xp()
    mean, variance = moments(xp, xp.full((1000, 2), 300, np.float16))
    assert host(mean).tolist() == [300, 300]
    assert host(variance).tolist() == [0, 0]


@pytest.mark.parametrize(("kernel", "stride", "channels"), [(3, 1, 20), (3, 2, 20), (1, 1, 20), (3, 1, 3)])
def test_a_convolution_of_half_precision_rounds_its_results_and_nothing_before(kernel, stride, channels):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 6, 4, channels)), rng.standard_normal((kernel, kernel, channels, 5))
    x, w = x.astype(np.float16), w.astype(np.float16)
    results = []
    for dtype in (np.float16, np.float64):
        inputs = [Tensor(on_device(v.astype(dtype)), requires_grad=True) for v in (x, w)]
        y = conv2d(*inputs, stride=stride, padding=kernel // 2)
        y.backward(on_device(np.ones(y.shape, dtype)))
        results.append(host([y.data, inputs[0].grad, inputs[1].grad]))
    for ours, expected in zip(*results):
        assert ours.dtype == np.float16
        assert np.abs(ours - expected).max() <= 2.0**-11 * 1.01 * np.abs(expected).max()


# ── How far from float64 ──────────────────────────────────────────────────────────────────────────


def test_loss_and_gradient_of_a_whole_network_are_close_to_those_of_float64(images):
    """Rounding opens and closes ReLUs, so only the direction of the gradient is promised."""
    loss64, gradient64 = loss_and_gradient(SINGLE, images[:64], np.float64)
    loss, gradient = loss_and_gradient(HALF, images[:64])
    assert abs(loss - loss64) <= 2e-4 * loss64
    assert gradient @ gradient64 / np.linalg.norm(gradient) / np.linalg.norm(gradient64) >= 0.98
    assert np.linalg.norm(gradient) == pytest.approx(np.linalg.norm(gradient64), rel=0.05)


def test_small_gradients_survive_because_the_loss_is_scaled(images, monkeypatch):
    """The loss is multiplied by 1e-6: without a scale, most of its gradient would vanish in float16."""

    def gradient_of_a_small_loss(first: float) -> Any:
        monkeypatch.setattr(precision, "FIRST", first)
        model, optimizer = model_and_optimizer(HALF)
        a, b = two_views(on_device(images[:16]), np.random.default_rng(0), 16)
        optimizer.backward(model.loss(a, b, 0.5)[0] * 1e-6)
        return host(model.encoder.conv1.weight.grad)

    scaled, plain = gradient_of_a_small_loss(2.0**15), gradient_of_a_small_loss(1.0)
    assert (scaled != 0).all()
    assert np.linalg.norm(plain - scaled) > 0.1 * np.linalg.norm(scaled)


@pytest.mark.host
@pytest.mark.slow
def test_a_run_in_half_precision_learns_what_one_in_float32_learns(images):
    """The loss comes down as far, to a quarter of it; no two runs take the same way."""
    config = dataclasses.replace(HALF, epochs=10, temperature=0.5, lr=2.0)
    down = []
    for kind in ("float16", "float32"):
        losses = [line["loss"] for line in pretrain(dataclasses.replace(config, precision=kind), images).history]
        down.append(losses[0] - np.mean(losses[-5:]))
    assert down[1] > 0.3
    assert down[0] == pytest.approx(down[1], rel=0.25)


# ── The scale of the loss ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[SGD, LARS])
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    """An optimizer of one matrix, with a loss scale, that has made one step."""
    optimizer = request.param([tensor(np.ones((2, 2), np.float32), requires_grad=True)], lr=0.1, loss_scale=LossScale())
    optimizer.params[0].grad = on_device(np.ones((2, 2), np.float32))
    optimizer.step()
    return optimizer


def step(optimizer: Optimizer, slope: float) -> float:
    """One step down a loss of this slope in each entry of the matrix; returns the size reported.

    With a scale, a slope of 3e38 overflows.
    """
    optimizer.zero_grad()
    size = float(optimizer.backward((optimizer.params[0] * slope).sum()))
    optimizer.step(0.1)
    return size


@pytest.fixture
def quiet() -> Iterator[None]:
    """NumPy warns of an overflow unless a session tells it not to."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("bad", [3e38, -3e38, np.nan])
def test_a_step_that_overflowed_is_left_out_and_the_scale_halved(optimizer, bad):
    before = [array.copy() for array in (optimizer.params[0].data, optimizer.velocity[0])]
    assert step(optimizer, bad) == 0
    devices.assert_same([optimizer.params[0].data, optimizer.velocity[0]], before)
    assert float(optimizer.loss_scale.value) == 2.0**14


@pytest.mark.usefixtures("quiet")
def test_an_overflow_changes_nothing_in_the_whole_network_but_the_scale(images, monkeypatch):
    monkeypatch.setattr(precision, "FIRST", 2.0**127)
    model, optimizer = precision.build(HALF)
    before = [p.data.copy() for p in model.parameters()]
    a, b = two_views(on_device(images[:8]), np.random.default_rng(0), 16)
    assert float(optimizer.backward(model.loss(a, b, 0.5)[0])) == 0
    optimizer.step(1.0)
    for p, old in zip(model.parameters(), before):
        devices.assert_same(p.data, old)
    assert not any(host(v).any() for v in optimizer.velocity)
    assert float(optimizer.loss_scale.value) == 2.0**126


@pytest.mark.usefixtures("quiet")
def test_the_loss_scale_does_not_matter_to_the_gradient_of_a_whole_network(images, monkeypatch):
    """A power of two changes no digit of a float16, as long as nothing overflows or becomes too small."""
    a, b = two_views(on_device(images[:8]), np.random.default_rng(0), 16)
    found = []
    for scale in (2.0**10, 2.0**12):
        monkeypatch.setattr(precision, "FIRST", scale)
        model, optimizer = precision.build(HALF)
        size = float(optimizer.backward(model.loss(a, b, 0.5)[0]))
        found.append((size, [host(p.grad) for p in model.parameters()]))
    (one, gradients), (two, others) = found
    assert one == pytest.approx(two, rel=1e-2)
    for x, y in zip(gradients, others):
        assert np.linalg.norm(x - y) <= 1e-2 * np.linalg.norm(x) + 1e-6


def test_a_step_without_overflow_is_that_of_the_unscaled_gradient(optimizer):
    other = type(optimizer)([Tensor(optimizer.params[0].data, requires_grad=True)], lr=0.1)
    other.velocity[0][...] = optimizer.velocity[0]
    assert step(other, 3) == step(optimizer, 3) == 3
    devices.assert_same(optimizer.params[0].data, other.params[0].data)
    assert float(optimizer.loss_scale.value) == 2.0**15


@pytest.mark.usefixtures("quiet")
def test_the_scale_doubles_after_some_steps_without_overflow_and_starts_counting_anew(optimizer, monkeypatch):
    monkeypatch.setattr(precision, "PATIENCE", 3)
    optimizer.loss_scale = LossScale()
    values = []
    for slope in (1, 1, 1, 1, 1, 3e38, 1, 1, 1):
        step(optimizer, slope)
        values.append(float(optimizer.loss_scale.value) / 2.0**15)
    assert values == [1, 1, 2, 2, 2, 1, 1, 1, 2]


@pytest.mark.usefixtures("quiet")
def test_what_no_scale_can_cure_is_reported(optimizer):
    sizes = [step(optimizer, np.nan) for _ in range(17)]
    assert sizes[:15] == [0] * 15
    assert np.isnan(sizes[15:]).all()
    assert float(optimizer.loss_scale.value) == 1


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_only_float16_has_a_scale(kind):
    _, optimizer = precision.build(dataclasses.replace(HALF, precision=kind))
    assert (optimizer.loss_scale is not None) == (kind == "float16")
    assert any(name.startswith("scale/") for name in optimizer.state_dict()) == (kind == "float16")


def test_without_a_scale_what_is_not_finite_is_reported_at_once(optimizer):
    optimizer.loss_scale = None
    assert np.isnan(step(optimizer, np.nan))


@pytest.mark.usefixtures("quiet")
def test_a_large_gradient_is_no_false_alarm():
    """The square of 1e30 would overflow in float32, and so would the sum of several 3e38."""
    params = [tensor(np.ones((2, 2), np.float32), requires_grad=True) for _ in range(3)]
    loss = (params[0] * -3e38).sum() + (params[1] * -3e38).sum() + (params[2] * -3e38).sum()
    assert float(SGD(params, lr=0.1).backward(loss)) == pytest.approx(9e38)


@pytest.mark.usefixtures("quiet")
def test_scaling_and_leaving_out_read_nothing_from_the_device(optimizer):
    loss = (optimizer.params[0] * 3e38).sum()
    optimizer.zero_grad()
    with devices.transfers() as crossed:
        optimizer.backward(loss)
        optimizer.step(0.1)
    assert set(crossed) <= {"to the device"}


def test_momentum_and_scale_of_an_optimizer_come_back(optimizer):
    state = optimizer.state_dict()
    assert sorted(state) == ["momentum/0", "scale/good", "scale/value"]
    fresh = type(optimizer)([tensor(np.zeros((2, 2), np.float32), requires_grad=True)], lr=0.1, loss_scale=LossScale())
    fresh.load_state_dict(state | {"scale/value": np.float32(8), "scale/good": np.int32(5)})
    devices.assert_same(fresh.velocity[0], optimizer.velocity[0])
    assert (float(fresh.loss_scale.value), int(fresh.loss_scale.good)) == (8, 5)
    fresh.load_state_dict({"momentum/0": state["momentum/0"]})  # of a run in another precision
    assert float(fresh.loss_scale.value) == 8


def test_the_scale_is_kept_with_the_run(images, tmp_path, monkeypatch):
    """Interrupted after a doubling: what goes on is what would have gone on, bit for bit."""
    monkeypatch.setattr(precision, "PATIENCE", 3)
    monkeypatch.setattr(precision, "FIRST", 2.0**4)
    monkeypatch.setitem(READ_EVERY, "cuda", 1)
    whole = pretrain(HALF, images)
    original = precision.LossScale.step

    def stop(scale: LossScale, *arguments: Any) -> None:
        original(scale, *arguments)
        if float(scale.good) == 1 and float(scale.value) == 2.0**5:
            os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(precision.LossScale, "step", stop)
        with pytest.raises(Interrupted):
            pretrain(HALF, images, folder=tmp_path)
    loaded = load_run(tmp_path)
    assert loaded.steps == 4
    assert loaded.model.head.linear1.product_dtype is None  # what is evaluated is float32
    resumed = pretrain(HALF, images, folder=tmp_path, resume=True)
    ours, theirs = (run.model.state_dict() for run in (resumed, whole))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


# ── What the device has ───────────────────────────────────────────────────────────────────────────


def test_a_half_precision_has_a_dtype_of_its_own_for_products_and_no_other_has():
    assert [half_dtype(kind, "cpu") for kind in PRECISIONS if kind != "bfloat16"] == [None, None, np.float16]


@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
def test_what_a_processor_does_not_have_is_refused_in_one_line(images, tmp_path, kind):
    with pytest.raises(RuntimeError, match=f'precision "{kind}" needs device "cuda".*; use float32') as error:
        pretrain(dataclasses.replace(HALF, device="cpu", precision=kind), images, folder=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU, as far as these questions go; its compute capability can be set."""
    properties = {"capability": (9, 0)}
    monkeypatch.setattr(precision, "compute_capability", lambda: properties["capability"])
    monkeypatch.setattr(precision, "_tf32", None)
    monkeypatch.setenv("CUPY_TF32", "0")
    return properties


@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
def test_an_old_gpu_is_told_from_a_new_one(gpu, kind, monkeypatch):
    gpu["capability"] = (7, 5)
    monkeypatch.setitem(sys.modules, "ml_dtypes", type(sys)("ml_dtypes"))
    with pytest.raises(RuntimeError, match=f'precision "{kind}" needs a GPU of compute capability 8.0.*has 7.5'):
        use_tf32(True, "cuda") if kind == "tf32" else half_dtype(kind, "cuda")


def test_bfloat16_needs_ml_dtypes_and_says_so(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # makes the import fail
    with pytest.raises(RuntimeError, match="needs ml_dtypes: pip install ml_dtypes"):
        half_dtype("bfloat16", "cuda")


def test_tf32_is_chosen_once_a_process(gpu):
    """CuPy reads the switch at its first product, and never again."""
    use_tf32(True, "cuda")
    assert os.environ["CUPY_TF32"] == "1"
    use_tf32(True, "cuda")
    with pytest.raises(RuntimeError, match="once a process"):
        use_tf32(False, "cuda")


def test_who_wants_float32_gets_it_whatever_the_environment_says(gpu, monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "1")
    use_tf32(False, "cuda")
    assert os.environ["CUPY_TF32"] == "0"


@pytest.mark.usefixtures("gpu")
def test_a_run_of_any_precision_is_evaluated_in_float32_on_a_processor():
    """This holds for a precision that the processor does not have, too."""
    config = dataclasses.replace(HALF, device="cuda", precision="bfloat16").to_evaluate("cpu")
    model = build_model(config)
    assert {getattr(module, "product_dtype", None) for _, module in model.modules()} == {None}
