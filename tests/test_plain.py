"""Plain forms and fast forms of convolution, batch norm and max-pool: equal, and each runs where its name is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from devices import assert_same, host, on_device, tensor, xp
from fast_forms import FAST_FORMS, FastFormEntered, forbid_fast_forms
from hypothesis import example, given
from hypothesis import strategies as st

from minisimclr import Tensor, ops, processor
from minisimclr.checks.table import normal, positive, spaced
from minisimclr.nn import BatchNorm2d
from minisimclr.ops.norm import fused

Array = np.ndarray[Any, Any]
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
DTYPES = st.sampled_from([np.float64, np.float32])


def both_ways(f: Callable[..., Tensor], *inputs: Array) -> list[Array]:
    """Compute the value and the gradients of all inputs, for a gradient g that is the same for every form."""
    leaves = [tensor(x, requires_grad=True) for x in inputs]
    value = f(*leaves)
    value.backward(on_device(np.random.default_rng(7).uniform(0.5, 1.5, value.shape).astype(value.dtype)))
    return host([value.data, *(leaf.grad for leaf in leaves)])


def assert_equal_to_plain(f: Callable[..., Tensor], method: str, *inputs: Array, scale: float = 0.0) -> None:
    """`scale` is the size of terms that may cancel in a gradient: what they round off stays."""
    got = both_ways(lambda *xs: f(*xs, method=method), *inputs)
    plain = both_ways(lambda *xs: f(*xs, method="plain"), *inputs)
    for a, b in zip(got, plain):
        assert a.dtype == b.dtype == inputs[0].dtype
        np.testing.assert_allclose(
            a, b, rtol=0, atol=TOLERANCE[a.dtype.type] * max(scale, np.abs(b).max(initial=1e-300))
        )


# ── Each fast form equals the plain form ──────────────────────────────────────────────────────────


@given(method=st.sampled_from(["slabs", "padded", "winograd", "auto"]), data=st.data())
def test_a_fast_convolution_and_the_plain_one_agree_on_any_geometry(method: str, data: st.DataObject) -> None:
    number = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    K, stride, padding, dtype = number(1, 7), number(1, 3), number(0, 4), data.draw(DTYPES)
    if data.draw(st.booleans()):
        K, stride, padding = 3, 1, 1  # Winograd's only geometry, and that of most layers
    H, W = (number(max(1, K - 2 * padding), 9) for _ in "HW")
    x = normal(H, W, number(1, 3), number(1, 20)).astype(dtype)
    w = normal(K, K, x.shape[-1], number(1, 5)).astype(dtype)

    def conv(x: Tensor, w: Tensor, method: str) -> Tensor:
        return ops.conv2d(x, w, stride=stride, padding=padding, method=method)

    assert_equal_to_plain(conv, method, x, w, scale=float(K * np.sqrt(x.shape[-1])))


@given(
    rows=st.integers(2, 30),
    channels=st.integers(1, 5),
    batch=st.booleans(),
    relu=st.booleans(),
    others=st.integers(0, 1),
    chunk=st.sampled_from([40, 1 << 20]),
    dtype=DTYPES,
)
@example(rows=30, channels=2, batch=True, relu=True, others=1, chunk=40, dtype=np.float64)
def test_fused_batch_norm_and_the_plain_one_agree(
    rows: int, channels: int, batch: bool, relu: bool, others: int, chunk: int, dtype: Any
) -> None:
    x, shortcut = (normal(rows, 2, channels, seed=seed).astype(dtype) for seed in (0, 1))
    scale, shift = positive(channels).astype(dtype), normal(channels).astype(dtype)

    def norm(x: Tensor, *rest: Tensor, method: str) -> Tensor:
        mean, variance = ops.moments(xp(), x.data, method=method)
        return ops.batch_norm(x, *rest, mean=mean, variance=variance, batch=batch, relu=relu, method=method)

    size = float(np.abs(scale / (x.std(axis=(0, 1)) + 1e-3)).max() * x.size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_BYTES", chunk)
        assert_equal_to_plain(norm, "fused", x, scale, shift, *[shortcut][:others], scale=size)


@given(rows=st.integers(1, 40), channels=st.integers(1, 5), offset=st.sampled_from([0.0, 1e3]), dtype=DTYPES)
def test_fused_moments_and_the_plain_ones_agree(rows: int, channels: int, offset: float, dtype: Any) -> None:
    x = on_device((offset + normal(rows, 2, channels)).astype(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "CHUNK_BYTES", 60)
        pairs = zip(host(ops.moments(xp(), x, method="fused")), host(ops.moments(xp(), x, method="plain")))
        for (a, b), size in zip(pairs, (1 + offset, 10)):  # the variance does not know how far from 0 x lies
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * size)


@given(threads=st.integers(1, 3), data=st.data())
def test_max_pooling_on_threads_and_the_plain_one_give_the_same_bits(threads: int, data: st.DataObject) -> None:
    number = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    kernel, stride = number(1, 5), number(1, 4)
    padding = number(0, kernel // 2)
    H, W = (number(max(1, kernel - 2 * padding), 9) for _ in "HW")
    rng = np.random.default_rng(number(0, 99))
    x = rng.integers(-2, 3, (H, W, number(1, 4), number(1, 3))).astype(data.draw(DTYPES))  # with many ties
    x[rng.random(x.shape) < 0.05] = np.nan

    def pool(x: Tensor, method: str) -> Tensor:
        return ops.max_pool2d(x, kernel=kernel, stride=stride, padding=padding, method=method)

    processor.set_threads(threads)
    try:
        got, plain = both_ways(lambda x: pool(x, "threaded"), x), both_ways(lambda x: pool(x, "plain"), x)
    finally:
        processor.set_threads(None)
    for a, b in zip(got, plain):
        np.testing.assert_array_equal(a, b)


# ── Which form runs ───────────────────────────────────────────────────────────────────────────────


def call_conv(method: str) -> Any:
    x, w = (tensor(a.astype(np.float32), requires_grad=True) for a in (normal(8, 8, 2, 16), normal(3, 3, 16, 16)))
    return ops.conv2d(x, w, padding=1, method=method)


def call_norm(method: str) -> Any:
    x, scale, shift = (tensor(a, requires_grad=True) for a in (normal(6, 3), positive(3), normal(3)))
    mean, variance = on_device((np.zeros(3), np.ones(3)))
    return ops.batch_norm(x, scale, shift, x, mean=mean, variance=variance, batch=True, relu=True, method=method)


def call_moments(method: str) -> Any:
    return ops.moments(xp(), on_device(normal(6, 3)), method=method)


def call_layer(method: str) -> Any:
    layer = BatchNorm2d(3, method=method).to("cpu" if xp() is np else "cuda")
    x = tensor(normal(2, 2, 4, 3).astype(np.float32), requires_grad=True)
    layer(x, train=False)
    return layer(x, train=True, shortcut=x, relu=True)


def call_pool(method: str) -> Any:
    return ops.max_pool2d(tensor(spaced(4, 4, 2, 1), requires_grad=True), kernel=2, stride=2, method=method)


CALLS = [call_conv, call_norm, call_moments, call_layer, call_pool]
FAST = [
    *((call_conv, method) for method in ("slabs", "padded", "winograd", "auto")),
    *((call, method) for call in (call_norm, call_moments, call_layer) for method in ("fused", "auto")),
    *((call_pool, method) for method in ("threaded", "auto")),
]


@pytest.mark.parametrize("call", CALLS)
def test_where_plain_is_asked_for_no_fast_form_is_entered(
    call: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_fast_forms(monkeypatch)
    result = call("plain")
    if isinstance(result, Tensor):
        result.backward(on_device(np.ones(result.shape, result.dtype)))


@pytest.mark.parametrize(("call", "method"), FAST)
def test_where_a_fast_form_is_asked_for_it_is_entered(
    call: Callable[[str], Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_fast_forms(monkeypatch)
    with pytest.raises(FastFormEntered):
        call(method)


@pytest.mark.host
@pytest.mark.parametrize("method", ["slabs", "padded", "winograd"])
def test_a_convolution_runs_in_the_form_of_its_name(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_fast_forms(monkeypatch)
    with pytest.raises(FastFormEntered, match=rf"conv\.{method}\."):
        call_conv(method)


def test_the_list_of_fast_forms_names_functions_that_exist() -> None:
    with pytest.MonkeyPatch.context() as patch:
        forbid_fast_forms(patch)  # setattr refuses a name that is not there
    assert len(FAST_FORMS) >= 5


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_method_is_refused_with_those_that_exist(call: Callable[[str], Any]) -> None:
    with pytest.raises(ValueError, match=r"method must be one of plain, .*auto; not 'fft'"):
        call("fft")


# ── What a form promises beside ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["plain", "threaded"])
def test_the_first_nan_of_a_window_is_the_largest_and_gets_the_gradient(method: str) -> None:
    window = np.array([[1.0, 5.0, 2.0], [np.nan, 3.0, np.nan], [0.0, 7.0, 4.0]])
    x = tensor(window.reshape(3, 3, 1, 1), requires_grad=True)
    y = ops.max_pool2d(x, kernel=3, stride=1, method=method)
    assert np.isnan(host(y.data)).all()
    y.backward(on_device(np.full((1, 1, 1, 1), 2.0)))
    assert_same(x.grad.reshape(3, 3), [[0, 0, 0], [2, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(("method", "handed_on"), [("plain", 0.0), ("threaded", 2.0)])
def test_a_window_of_nothing_but_minus_infinity_is_beyond_the_plain_form(method: str, handed_on: float) -> None:
    """In such a window the plain form takes the padding, which is −∞ as well, for the first of the largest pixels."""
    x = tensor(np.full((1, 1, 1, 1), -np.inf), requires_grad=True)
    ops.max_pool2d(x, kernel=2, stride=1, padding=1, method=method)[0, 0].backward(on_device(np.full((1, 1), 2.0)))
    assert_same(x.grad.ravel(), [handed_on])


def test_plain_batch_norm_of_half_precision_is_that_of_float32_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x, shortcut = ((rng.standard_normal((4, 4, 8, 3)) + 20).astype(np.float16) for _ in "xs")
    results = []
    for dtype in (np.float16, np.float32):
        layer = BatchNorm2d(3, method="plain").to("cpu" if xp() is np else "cuda")
        inputs = [tensor(a.astype(dtype), requires_grad=True) for a in (x, shortcut)]
        y = layer(inputs[0], train=True, shortcut=inputs[1], relu=True)
        y.backward(on_device(np.ones(x.shape, dtype)))
        assert y.dtype == inputs[0].grad.dtype == dtype
        assert layer.weight.grad.dtype == layer.running_mean.dtype == np.float32
        results.append(host([y.data, layer.weight.grad, layer.running_mean, layer.running_var]))
    for ours, expected in zip(*results):
        assert np.abs(ours - expected).max() <= 2.0**-10 * max(1e-3, np.abs(expected).max())


def test_the_mean_of_many_large_values_of_half_precision_stays_in_range() -> None:
    """Their sum is beyond float16's largest number, 65,504."""
    x = on_device(np.full((1000, 2), 300, np.float16))
    for moment, expected in zip(host(ops.moments(xp(), x, method="plain")), (300, 0)):
        assert moment.dtype == np.float32
        assert moment.tolist() == [expected, expected]
