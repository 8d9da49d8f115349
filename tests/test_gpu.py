"""On a GPU as on a CPU: every operation, the views, the loss, training; the same twice; and no memory is lost.

    python -m pytest -m gpu          # this file and the kernels of NT-Xent (test_ntxent_cuda.py), on a real GPU
    python -m pytest --device cuda   # besides: the ordinary tests, with all arrays there

Where there is none each test says what is missing. That the tests themselves are right is seen without one: with
`--device stand-in` their bodies run like all others, in which case what they compare is two ways of using NumPy.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
from test_padded import SHAPES, case

import minisimclr as ms
from minisimclr import Tensor, backend, ops
from minisimclr.checks.table import TABLE, Entry, normal
from minisimclr.ntxent import METHODS
from minisimclr.ntxent import exact as exact_form
from minisimclr.ops.conv import padded, plain
from minisimclr.ops.conv.cublas import add_product
from minisimclr.training.config import PRECISIONS, Config, build_model, build_optimizer
from minisimclr.views.augment import two_views

STAND_IN = devices.DEVICE == "cuda" and hasattr(devices.xp(), "_traffic")
pytestmark = [] if STAND_IN else [pytest.mark.gpu]

# Largest distance from NumPy's float64, relative to the largest element (operations) or the whole length (the rest)
OPERATION = {"float32": 1e-5, "float64": 1e-11}
CONVOLUTION = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 2e-6, "float64": 1e-13}
NTXENT = {"composed": 1e-5, "plain": 1e-5, "exact": 1e-5, "cuda": 1e-5, "cuda-bf16x3": 1e-4, "cuda-bf16": 3e-2}
VIEWS = 2e-6
NETWORK = {"float32": (1e-5, 5e-3), "float64": (1e-12, 1e-9)}  # loss; the whole gradient of a ResNet-18
# The largest of the losses of 20 steps, and the weights after them. Measured here, without a GPU: float32 1.5e-7 and
# 4e-8, float16 3e-3 and 1e-3. TF32 rounds the factors of products as float16 does, bfloat16 eight times as much.
TRAINING = {"float32": (1e-5, 1e-5), "tf32": (1e-2, 5e-3), "float16": (1e-2, 5e-3), "bfloat16": (8e-2, 4e-2)}


def missing() -> str:
    """Why there is no GPU to be tested: no CuPy, no driver, no device; "" if there is one."""
    try:
        import cupy
    except ImportError as error:
        return f"no CuPy: {error}"
    try:
        if cupy.cuda.is_available():
            return ""
        return f"no device: CuPy sees {cupy.cuda.runtime.getDeviceCount()} GPUs"
    except Exception as error:  # CUDARuntimeError says whether it is the driver or the device
        return f"no driver or device: {error}"


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture
def cp() -> Any:
    import cupy

    return cupy


def gpu(value: Any, dtype: Any = None) -> Any:
    """The array on the GPU; floating-point numbers in `dtype`."""
    if isinstance(value, dict):
        return {name: gpu(item, dtype) for name, item in value.items()}
    if type(value) is tuple:
        return tuple(gpu(item, dtype) for item in value)
    if not isinstance(value, np.ndarray):
        return value
    return backend.to_device(value.astype(dtype) if dtype and value.dtype.kind == "f" else value, "cuda")


def off(got: Any, exact: Any) -> float:
    """Distance relative to the length of what is exact."""
    got = np.asarray(backend.to_numpy(got) if backend.is_array(got) else got).astype(np.float64)
    assert got.shape == np.shape(exact)
    return float(np.linalg.norm(got - exact) / (np.linalg.norm(exact) or 1))


# ── Operations ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("entry", "inputs", "settings"),
    [
        pytest.param(entry, *sample, id=f"{entry.name} {k}")
        for entry in TABLE
        if not entry.only_on_host
        for k, sample in enumerate(entry.samples)
    ],
)
def test_every_operation_on_a_gpu_is_that_of_float64_rounded(
    entry: Entry, inputs: Any, settings: Any, dtype: str
) -> None:
    inputs = [np.asarray(x, dtype) for x in inputs]
    results = []
    for place, kind in ((lambda x, _: x, np.float64), (gpu, dtype)):
        leaves = [Tensor(place(np.asarray(x, kind), kind), requires_grad=True) for x in inputs]
        value = entry.function(place(settings, kind))(*leaves)
        assert value.dtype == settings.get("dtype", kind)
        g = np.random.default_rng(0).uniform(0.5, 1.5, value.shape)
        value.backward(place(np.asarray(g), kind))
        assert all(leaf.grad.dtype == kind for leaf in leaves)
        results.append([backend.to_numpy(a) for a in (value.data, *(leaf.grad for leaf in leaves))])
    for exact, got in zip(*results):
        assert np.abs(got - exact).max(initial=0) <= OPERATION[dtype] * max(1, np.abs(exact).max(initial=0))


def numbers(name: str) -> Any:
    """The dtype of this name; bfloat16 comes with ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    if STAND_IN:
        pytest.skip("the stand-in has no bfloat16")
    return np.dtype(pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16)


@pytest.mark.parametrize("name", list(CONVOLUTION))
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), SHAPES)
def test_convolution_in_every_precision(cp: Any, shape: Any, kernel: Any, stride: int, padding: int, name: str) -> None:
    dtype = numbers(name)
    x, w = (a.astype(dtype) for a in case(shape, kernel))
    y, vjp = plain.convolution(np, x.astype(np.float64), w.astype(np.float64), stride, padding)
    g = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    exact = y, *vjp(g.astype(np.float64))
    y, vjp = padded.convolution(cp, *map(gpu, (x, w)), stride, padding)
    for got, expected in zip((y, *(gradient() for gradient in vjp(gpu(g)))), exact):
        assert got.dtype == dtype
        assert off(got, expected) <= CONVOLUTION[name]


@pytest.mark.parametrize(
    ("name", "into"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")]
)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
def test_a_product_is_added(cp: Any, name: str, into: str, turned: str) -> None:
    dtype = numbers(name)
    rng = np.random.default_rng(2)
    a, b, out = (rng.standard_normal(shape) for shape in ((40, 24), (24, 16), (40, 16)))
    a, b = a.astype(dtype), b.astype(dtype)
    expected = out + a.astype(np.float64) @ b.astype(np.float64)
    on_gpu = gpu(np.concatenate([out, out]).astype(into))
    left = gpu(a.T.copy()).T if "a" in turned else gpu(a)
    right = gpu(b.T.copy()).T if "b" in turned else gpu(b)
    add_product(cp, on_gpu[40:], left, right)
    assert off(on_gpu[40:], expected) <= CONVOLUTION[into if into == name else "float16"]
    assert off(on_gpu[:40], out) <= 1e-7  # what stands before it is left alone


# ── Views and loss ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("side", "size", "options"),
    [
        (32, 32, {}),
        (32, 24, {"strength": 1.0, "blur": True}),
        (64, 56, {"blur": True, "min_area": 0.5}),
        (20, 33, {"strength": 0.0}),
    ],
)
def test_views_are_the_same_for_the_same_seed(side: int, size: int, options: dict[str, Any]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (24, side, side, 3), np.uint8)
    expected = two_views(images, np.random.default_rng(4), size, **options)
    got = two_views(gpu(images), np.random.default_rng(4), size, **options)
    again = two_views(gpu(images), np.random.default_rng(4), size, **options)
    for a, b, c in zip(expected, got, again):
        b, c = backend.to_numpy(b), backend.to_numpy(c)
        assert off(b, a) <= VIEWS
        np.testing.assert_array_equal(b, c)


@pytest.mark.parametrize("N", [1, 2, 33, 128, 1000])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "tiled"])
def test_nt_xent_by_every_method(method: str, N: int) -> None:
    if STAND_IN and method.startswith("cuda"):
        pytest.skip("the stand-in compiles no kernels: test_ntxent_cuda.py runs them on fibres")
    za, zb = (normal(N, 128, seed=k).astype(np.float32) for k in (1, 2))
    zb = za + zb
    expected = exact_form.value_and_grad(za.astype(np.float64), zb.astype(np.float64), 0.1)
    results = [ms.nt_xent_value_and_grad(gpu(za), gpu(zb), 0.1, method) for _ in range(2)]
    tolerance = NTXENT[method]
    loss, *gradients = results[0]
    assert loss == pytest.approx(float(expected[0]), rel=tolerance, abs=1e-6)
    if N > 1:
        assert off(np.concatenate([backend.to_numpy(g) for g in gradients]), np.concatenate(expected[1:])) <= tolerance
    assert loss == results[1][0]
    for one, other in zip(gradients, results[1][1:]):
        np.testing.assert_array_equal(*map(backend.to_numpy, (one, other)))


# ── The whole network ─────────────────────────────────────────────────────────────────────────────


@functools.cache
def loss_and_gradient(device: str, dtype: str) -> tuple[float, Any]:
    """Compute the loss and the gradient of a ResNet-18 with its head, always for the same views."""
    images, size = (2, 8) if STAND_IN else (16, 32)
    views = np.random.default_rng(5).random((2, images, size, size, 3)).astype(dtype)
    model = build_model(Config(encoder="resnet18", size=size)).astype(dtype).to(device)
    loss, _, _ = model.loss(*(backend.to_device(v, device) for v in views), 0.5)
    loss.backward()
    return (
        float(backend.to_numpy(loss.data)),
        np.concatenate([backend.to_numpy(p.grad).ravel() for p in model.parameters()]),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resnet_18_forward_and_backward(dtype: str) -> None:
    """Against NumPy in float64. In float32 a few inputs of ReLUs next to 0 change their sign."""
    (exact_loss, exact), (loss, gradient) = loss_and_gradient("cpu", "float64"), loss_and_gradient("cuda", dtype)
    in_loss, in_gradient = NETWORK[dtype]
    assert abs(loss / exact_loss - 1) <= in_loss
    assert gradient.dtype == dtype
    assert off(gradient, exact) <= in_gradient


def training(**settings: Any) -> Config:
    return Config(**{"size": 8, "batch": 16, "epochs": 20, "head_dim": 32, "lr": 0.01, "temperature": 0.5, **settings})


def pictures() -> Any:
    """Sixteen images, one batch: an epoch is a step."""
    return np.random.default_rng(6).integers(0, 256, (16, 4, 4, 3), np.uint8).repeat(2, 1).repeat(2, 2)


def trained(config: Config) -> tuple[list[float], Any]:
    """The loss of each step, and all weights in the end."""
    run = ms.pretrain(config, pictures())
    return (
        [line["loss"] for line in run.history],
        np.concatenate([array.ravel() for array in run.model.state_dict().values()]),
    )


def assert_close(got: tuple[list[float], Any], expected: tuple[list[float], Any], precision: str) -> None:
    in_loss, in_weights = TRAINING[precision]
    assert len(got[0]) == len(expected[0])
    np.testing.assert_allclose(got[0], expected[0], rtol=in_loss)
    assert off(got[1], expected[1]) <= in_weights


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "tf32"])
def test_twenty_steps_are_those_of_a_cpu(precision: str) -> None:
    """The same weights at the start, the same batches, the same views; twice the same on the GPU, bit for bit."""
    numbers(precision)
    steps = 4 if STAND_IN and precision == "float16" else 20  # NumPy is slow at half precision
    config = training(device="cuda", precision=precision, epochs=steps)
    got, again = trained(config), trained(config)
    assert_close(got, trained(training(epochs=steps)), precision)
    assert got[0] == again[0]
    np.testing.assert_array_equal(got[1], again[1])


TF32 = """
import json, sys
sys.path.insert(0, sys.argv[1])
import devices
from test_gpu import trained, training
losses, weights = trained(training(device="cuda", precision="tf32"))
print(json.dumps([losses, weights.tolist()]))
"""


def test_twenty_steps_in_tf32() -> None:
    """In a process of its own: TF32 is chosen once a process."""
    if STAND_IN:
        pytest.skip("the stand-in has no TF32")
    done = subprocess.run(
        [sys.executable, "-c", TF32, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"CUPY_TF32": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses, weights = json.loads(done.stdout)
    assert_close((losses, np.array(weights)), trained(training()), "tf32")


def stepper(config: Config) -> Callable[[int], None]:
    """Make one step of training, and read no number of it."""
    model = build_model(config).to("cuda")
    optimizer, images = build_optimizer(config, model), gpu(pictures())

    def step(k: int) -> None:
        loss, _, _ = model.loss(*two_views(images, config.rng(3, k), config.size), config.temperature)
        loss.backward()
        optimizer.step(0.01)
        optimizer.zero_grad()

    return step


def test_two_hundred_steps_take_no_more_memory_than_twenty(cp: Any) -> None:
    """With the garbage collector off: what a step used is free as soon as it ends."""
    if STAND_IN:
        pytest.skip("the stand-in does not model memory")
    step, pool, held = stepper(training(device="cuda")), cp.get_default_memory_pool(), []
    gc.collect()
    gc.disable()
    try:
        for k in range(200):
            step(k)
            if k in (19, 199):
                held.append((pool.used_bytes(), pool.total_bytes()))
    finally:
        gc.enable()
    assert held[0] == held[1]


def test_steps_leave_no_device_array_behind(cp: Any) -> None:
    """The test above, without a GPU: it counts arrays instead of bytes."""
    if not STAND_IN:
        pytest.skip("on a real GPU the test above looks at its memory")
    step, alive = stepper(training(device="cuda")), []
    gc.collect()
    gc.disable()
    try:
        for k in range(6):
            step(k)
            if k in (2, 5):
                alive.append(sum(type(thing) is cp.ndarray for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert alive[0] == alive[1] > 0


def test_what_it_computes_can_be_used_on_a_cpu(tmp_path: Path) -> None:
    """A run on the GPU, loaded and used without one."""
    ms.pretrain(training(device="cuda", epochs=2), pictures(), folder=tmp_path)
    model = ms.load_run(tmp_path).model.to("cpu")
    images = pictures().astype(np.float32) / 255
    with ms.no_grad():
        h, _ = model(images)
        on_gpu, _ = model.to("cuda")(gpu(images))
    assert isinstance(h.data, np.ndarray)
    assert off(on_gpu.data, h.data) <= 1e-5
    assert ops.relu(h).shape == h.shape
