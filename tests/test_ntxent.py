"""NT-Xent: closed forms, identities, accuracy, pinned edge cases; every check on every method.

The oracle for values is Eq. 1 of the paper as two loops of plain Python; for float32 accuracy, the
exact form in float64. The last section breaks exact.py and plain.py on purpose, to see these checks refuse them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import re
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import devices
import numpy as np
import pytest
from devices import assert_close, host, on_device, tensor
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import minisimclr.ntxent as ntxent
from minisimclr import Tensor
from minisimclr.checks.table import TABLE, Entry
from minisimclr.ntxent import METHODS, cuda, exact, few, nt_xent, plain

DEVICE_METHODS = {"cpu": ["exact", "tiled"], "cuda": ["exact", "auto"]}[devices.DEVICE]
if not cuda.usable(devices.xp()):  # then "auto" is "exact"
    DEVICE_METHODS = [name for name in DEVICE_METHODS if name != "auto"]
PLAIN_METHODS = ["composed", "plain"]
TILES = "tiles of few images"  # the tiled form where it would compute one matrix, few.py
ALL_DIGITS = DEVICE_METHODS + [TILES] * ("tiled" in DEVICE_METHODS)
TEMPERATURES = [1e-3, 0.01, 0.03, 0.05, 0.07, 0.1, 0.5, 1, 10, 1e3]

Array = np.ndarray[Any, Any]
ValueAndGrad = Callable[[Array, Array, float], tuple[Any, Array, Array]]


def nt_xent_value_and_grad(
    za: Any, zb: Any, temperature: float = 0.1, method: str = "auto"
) -> tuple[float, Array, Array]:
    """The package's function on the device; NumPy arrays in and out."""
    return host(ntxent.nt_xent_value_and_grad(on_device(za), on_device(zb), temperature, method))


def by(method: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, Array, Array]]:
    """nt_xent_value_and_grad by one method."""
    if method == TILES:
        monkeypatch.setattr(few, "MOST_IMAGES", 0)
        method = "tiled"
    return lambda za, zb, temperature=0.1: nt_xent_value_and_grad(za, zb, temperature, method)


@pytest.fixture(params=ALL_DIGITS)
def f(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, Array, Array]]:
    """nt_xent_value_and_grad by each method that loses no digits, in turn."""
    return by(request.param, monkeypatch)


@pytest.fixture(params=PLAIN_METHODS + ALL_DIGITS)
def g(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, Array, Array]]:
    """nt_xent_value_and_grad by each method, the plain forms too."""
    return by(request.param, monkeypatch)


def views(n: int, d: int = 16, seed: int = 0, noise: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng([seed, n, d])
    a = rng.standard_normal((n, d))
    return a, a + noise * rng.standard_normal((n, d))


def equation_1(za: Array, zb: Array, temperature: float) -> float:
    """The paper's Eq. 1 and the mean of Algorithm 1, read off the page."""
    z = [list(map(float, row)) for row in [*za, *zb]]
    n = len(z)

    def sim(i: int, j: int) -> float:
        dot = sum(x * y for x, y in zip(z[i], z[j]))
        return dot / math.sqrt(sum(x * x for x in z[i])) / math.sqrt(sum(x * x for x in z[j]))

    def ell(i: int, j: int) -> float:
        top = math.exp(sim(i, j) / temperature)
        return -math.log(top / sum(math.exp(sim(i, k) / temperature) for k in range(n) if k != i))

    return sum(ell(k, k + n // 2) + ell(k + n // 2, k) for k in range(n // 2)) / n


# ── The value ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1, 10])
def test_value_is_equation_1(g: Any, n: int, temperature: float) -> None:
    a, b = views(n, seed=1)
    assert g(a, b, temperature)[0] == pytest.approx(equation_1(a, b, temperature), rel=1e-12, abs=1e-13)


def test_value_that_other_implementations_test_for(g: Any) -> None:
    z = np.eye(2)
    assert g(z, z, 0.5)[0] == pytest.approx(0.2395447662218846, rel=1e-14)


@pytest.mark.parametrize("n", [2, 3, 16, 33])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1, 100])
class TestClosedForms:
    def test_all_rows_equal(self, f: Any, n: int, temperature: float) -> None:
        z = np.tile(np.arange(1.0, 5.0), (n, 1))
        loss, da, db = f(z, 3 * z, temperature)
        assert loss == pytest.approx(math.log(2 * n - 1), rel=1e-12)
        assert max(abs(da).max(), abs(db).max()) < 1e-14 / temperature

    def test_views_equal_images_orthogonal(self, f: Any, n: int, temperature: float) -> None:
        z = 2.0 * np.eye(n)
        assert f(z, z, temperature)[0] == pytest.approx(math.log1p((2 * n - 2) * math.exp(-1 / temperature)), rel=1e-12)

    def test_simplex_is_the_least_loss(self, f: Any, n: int, temperature: float) -> None:
        z = np.eye(n) - 1 / n
        least = math.log1p((2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / temperature))
        assert f(z, z, temperature)[0] == pytest.approx(least, rel=1e-12)
        a, b = views(n, seed=2, noise=0.01)
        assert f(a, b, temperature)[0] >= least

    def test_views_opposed(self, f: Any, n: int, temperature: float) -> None:
        v = np.tile([3.0, -1.0, 2.0], (n, 1))
        expected = 2 / temperature + math.log(n * math.exp(-2 / temperature) + n - 1)
        assert f(v, -v, temperature)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.5])
def test_closed_values_where_each_view_is_the_next_images_other_view(g: Any, temperature: float, dtype: Any) -> None:
    """A negative of cosine 1, all else 0. At a low τ each anchor's largest negative lies in the other view."""
    z = np.eye(6, dtype=dtype)
    expected = 1 / temperature + math.log1p(10 * math.exp(-1 / temperature))
    rounding = 1e-6 if dtype == np.float32 else 1e-12
    assert g(z, np.roll(z, 1, axis=0), temperature)[0] == pytest.approx(expected, rel=rounding)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_image_has_no_negatives(g: Any, dtype: Any) -> None:
    loss, da, db = g(np.array([[1, 2]], dtype), np.array([[3, -1]], dtype))
    assert loss == 0
    assert not da.any()
    assert not db.any()


# ── Identities of the value and the gradient ──────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 5, 32])
@pytest.mark.parametrize("temperature", [0.03, 0.1, 1])
class TestIdentities:
    def test_gradient_is_tangent_to_the_sphere(self, g: Any, n: int, temperature: float) -> None:
        a, b = views(n, seed=3)
        _, da, db = g(a, b, temperature)
        np.testing.assert_allclose((a * da).sum(1), 0, atol=1e-14 / temperature)
        np.testing.assert_allclose((b * db).sum(1), 0, atol=1e-14 / temperature)

    def test_a_common_rotation_changes_nothing(self, g: Any, n: int, temperature: float) -> None:
        a, b = views(n, seed=4)
        z, dz = np.concatenate([a, b]), np.concatenate(g(a, b, temperature)[1:])
        np.testing.assert_allclose(z.T @ dz, dz.T @ z, atol=1e-12 / temperature)  # zᵀdz is symmetric

    def test_length_does_not_matter(self, g: Any, n: int, temperature: float) -> None:
        a, b = views(n, seed=5)
        loss, da, db = g(a, b, temperature)
        loss8, da8, db8 = g(8 * a, 0.25 * b, temperature)  # powers of two: exact
        assert loss8 == loss
        np.testing.assert_array_equal(da8, da / 8)
        np.testing.assert_array_equal(db8, db * 4)

    def test_order_of_images_and_views_does_not_matter(self, g: Any, n: int, temperature: float) -> None:
        a, b = views(n, seed=6)
        order = np.random.default_rng(0).permutation(n)
        loss, da, db = g(a, b, temperature)
        shuffled, dbs, das = g(b[order], a[order], temperature)
        assert shuffled == pytest.approx(loss, rel=1e-13)
        np.testing.assert_allclose(das, da[order], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(dbs, db[order], rtol=1e-9, atol=1e-13)

    def test_gradient_against_finite_differences(self, g: Any, n: int, temperature: float) -> None:
        a, b = views(n, d=4, seed=7)
        _, da, db = g(a, b, temperature)
        rng, step = np.random.default_rng(1), 1e-6
        for z, dz in ((a, da), (b, db)):
            for _ in range(6):
                i = (rng.integers(n), rng.integers(4))
                z[i] += step
                up = g(a, b, temperature)[0]
                z[i] -= 2 * step
                down = g(a, b, temperature)[0]
                z[i] += step
                assert dz[i] == pytest.approx((up - down) / (2 * step), rel=1e-6, abs=1e-8)

    def test_gradient_along_a_path_sums_to_the_difference(self, g: Any, n: int, temperature: float) -> None:
        """∫⟨∇L, dz/dt⟩dt = L(end) − L(start): no small step, so it sees errors that differences cannot."""
        a0, b0 = views(n, seed=8)
        a1, b1 = views(n, seed=9)
        nodes, weights = np.polynomial.legendre.leggauss(60)
        integral = 0.0
        for t, w in zip((nodes + 1) / 2, weights / 2):
            _, da, db = g(a0 + t * (a1 - a0), b0 + t * (b1 - b0), temperature)
            integral += w * float((da * (a1 - a0)).sum() + (db * (b1 - b0)).sum())
        difference = g(a1, b1, temperature)[0] - g(a0, b0, temperature)[0]
        assert integral == pytest.approx(difference, rel=1e-3, abs=1e-9)


def test_methods_agree_on_random_shapes() -> None:
    rng = np.random.default_rng(10)
    for _ in range(20):
        a, b = views(int(rng.integers(1, 80)), int(rng.integers(1, 40)), seed=int(rng.integers(99)))
        temperature = float(10 ** rng.uniform(-3, 3))
        expected = nt_xent_value_and_grad(a, b, temperature, "exact")
        for method in DEVICE_METHODS:
            for x, y in zip(nt_xent_value_and_grad(a, b, temperature, method), expected):
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12 * np.abs(y).max())


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1, 3])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 5), (7, 16), (33, 24)])
def test_all_forms_have_one_value_and_one_gradient(n: int, d: int, temperature: float) -> None:
    """Composed = plain = exact = tiled to 1e-12 in float64, as arrays and as tensors."""
    a, b = views(n, d, seed=22)
    expected, *gradients = nt_xent_value_and_grad(a, b, temperature, "exact")
    size = max(np.abs(gradients).max(), 1e-3)
    for method in PLAIN_METHODS + DEVICE_METHODS:
        x, y = tensor(a, requires_grad=True), tensor(b, requires_grad=True)
        value = nt_xent(x, y, temperature, method)
        value.backward()
        loss, *by_arrays = nt_xent_value_and_grad(a, b, temperature, method)
        assert abs(loss - expected) <= 1e-12 * max(expected, 1), method
        assert value.item() == loss, method
        for got in (by_arrays, host([x.grad, y.grad])):
            assert np.abs(np.subtract(got, gradients)).max() <= 1e-12 * size, method


# ── The plain forms ───────────────────────────────────────────────────────────────────────────────


def recorded(loss: Tensor) -> list[str]:
    """The operations in the graph of a loss, each once, from the last back to the first."""
    names: list[str] = []
    waiting = [loss._node]
    while waiting:
        node = waiting.pop(0)
        if node is not None and node.name not in names:
            names.append(node.name)
            waiting += node.parents
    return names


def test_the_composed_form_records_the_operations_that_it_is_composed_of() -> None:
    a, b = (tensor(z, requires_grad=True) for z in views(3))
    composed = recorded(nt_xent(a, b, method="composed"))
    assert composed[0] == "cross_entropy"
    assert {"matmul", "l2_normalize", "concatenate", "leaf"} <= set(composed)
    assert not any("nt_xent" in name for name in composed)
    assert "nt_xent_plain" in recorded(nt_xent(a, b, method="plain"))
    assert recorded(nt_xent(a, b, method="exact")) == ["nt_xent_at_once", "leaf"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_gradient_of_a_form_is_computed_in_another_dtype_and_rounded_later(dtype: Any) -> None:
    a, b = on_device(tuple(z.astype(dtype) for z in views(4)))
    one = on_device(np.ones((), dtype))
    for primitive, settings in ((plain.nt_xent_plain, {}), (ntxent.nt_xent_at_once, {"method": "exact"})):
        value, vjp = primitive.__wrapped__(devices.xp(), a, b, temperature=0.1, **settings)  # type: ignore[attr-defined]
        assert [x.dtype for x in (value, *vjp(one))] == [dtype] * 3


@pytest.mark.parametrize("method", PLAIN_METHODS)
@pytest.mark.parametrize("temperature", [1e-3, 0.01])
def test_no_temperature_overflows_in_a_plain_form(method: str, temperature: float) -> None:
    z = np.eye(6)
    expected = 1 / temperature + math.log1p(10 * math.exp(-1 / temperature))
    for dtype, rounding in ((np.float32, 1e-6), (np.float64, 1e-12)):
        loss, da, _ = nt_xent_value_and_grad(z.astype(dtype), np.roll(z, 1, axis=0).astype(dtype), temperature, method)
        assert loss == pytest.approx(expected, rel=rounding)
        assert np.isfinite(da).all()


@pytest.mark.parametrize("method", PLAIN_METHODS)
def test_nan_in_one_row_makes_the_plain_loss_nan(method: str) -> None:
    a, b = views(3)
    b[2, 1] = np.nan
    loss, da, db = nt_xent_value_and_grad(a, b, 0.1, method)
    assert math.isnan(loss)
    assert np.isnan(da).all()
    assert np.isnan(db).all()


def test_the_composed_form_counts_a_zero_row_as_u_zero_and_the_plain_form_says_nan() -> None:
    a, b = views(4, seed=14)
    a[1] = 0
    expected, ea, eb = nt_xent_value_and_grad(a, b, 0.1, "exact")
    loss, da, db = nt_xent_value_and_grad(a, b, 0.1, "composed")
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(da, ea, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(db, eb, rtol=1e-10, atol=1e-14)
    expects = pytest.warns(RuntimeWarning, match="invalid value") if devices.DEVICE == "cpu" else nullcontext()
    with expects:  # CuPy divides by zero in silence
        assert math.isnan(nt_xent_value_and_grad(a, b, 0.1, "plain")[0])


BEYOND_PLAIN = [
    pytest.param(entry, inputs, settings, id=f"{entry.name}: {reason}")
    for entry in TABLE
    for reason, (inputs, settings) in entry.beyond_plain
    if not (entry.only_on_host and devices.DEVICE != "cpu")
]


@pytest.mark.parametrize(("entry", "inputs", "settings"), BEYOND_PLAIN)
def test_where_a_row_of_the_table_is_beyond_plain_the_plain_form_fails_and_the_row_does_not(
    entry: Entry, inputs: Any, settings: Any
) -> None:
    expected = entry.expected(tuple(x.astype(np.float64) for x in inputs), settings)

    def error(method: str) -> float:
        value = dataclasses.replace(entry, method=method).function(settings)(*map(on_device, inputs))
        assert value.dtype == np.float32
        return abs(value.item() - expected) / expected

    assert error(entry.method) <= 1e-6
    with np.errstate(all="ignore"):
        assert not error("plain") <= 1e-3  # NaN, or wrong in the third digit


def test_at_a_high_temperature_only_the_exact_form_keeps_the_gradient_of_opposed_views() -> None:
    a = views(300, 24, seed=23)[0].astype(np.float32)
    wide = a.astype(np.float64)
    expected = np.concatenate(nt_xent_value_and_grad(wide, -wide, 1000.0, "exact")[1:])
    error = {}
    for method in PLAIN_METHODS + DEVICE_METHODS[:2]:
        got = np.concatenate(nt_xent_value_and_grad(a, -a, 1000.0, method)[1:])
        error[method] = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error["exact"] <= 1e-5
    assert min(error[method] for method in PLAIN_METHODS) >= 1e-4


@pytest.mark.parametrize("method", PLAIN_METHODS)
def test_a_plain_form_of_half_precision_computes_in_float32(method: str) -> None:
    a, b = (z.astype(np.float16) for z in views(9, seed=16))
    x, y = tensor(a, requires_grad=True), tensor(b, requires_grad=True)
    loss = nt_xent(x, y, 0.2, method)
    loss.backward()
    expected, da, db = nt_xent_value_and_grad(a.astype(np.float32), b.astype(np.float32), 0.2, method)
    assert loss.dtype == x.grad.dtype == np.float16
    assert loss.item() == np.float16(expected)
    for got, wanted in ((x.grad, da), (y.grad, db)):
        np.testing.assert_allclose(host(got), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.host
def test_the_file_that_is_read_first_holds_the_formula_and_its_tags() -> None:
    text = inspect.getsource(plain)
    assert "ℓᵢ = −log" in text
    for tag in ("5.1", "5.2", "5.3", "5.7", "5.9", "5.10", "5.11"):
        assert f"({tag})" in text


@pytest.mark.host
def test_the_code_on_the_page_of_the_chapter_is_the_code_that_runs() -> None:
    chapter = Path(__file__).parent.parent / "docs" / "05_nt_xent.md"
    if not chapter.exists():
        pytest.skip("the book is not part of this installation")
    by_hand = re.sub(
        r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", "", chapter.read_text(), flags=re.DOTALL
    )  # the rest is copied
    shown = [
        line.strip() for block in re.findall(r"```python\n(.*?)```", by_hand, re.DOTALL) for line in block.splitlines()
    ]
    runs = {line.strip() for line in inspect.getsource(plain).splitlines()}
    assert len(shown) > 15
    assert [line for line in shown if line not in runs] == []


# ── Accuracy in float32 ───────────────────────────────────────────────────────────────────────────


def rows(kind: str, n: int, d: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Embeddings of one kind, with lengths from 1e-30 to 1e30."""
    a, b, v = rng.standard_normal((n, d)), rng.standard_normal((n, d)), rng.standard_normal(d)
    match kind:
        case "aligned":
            b = a + 0.1 * b
        case "identical":
            b = a.copy()
        case "duplicate":
            a, b = a[rng.integers(0, n // 2 + 1, n)], b[rng.integers(0, n // 2 + 1, n)]
        case "collapsed":
            a, b = v + 0.1 * a, v + 0.1 * b
        case "antipodal":
            a, b = v + 0.1 * a, -v + 0.1 * b
        case "opposed":
            b = -a
    a, b = a * 10 ** rng.uniform(-30, 30, (n, 1)), b * 10 ** rng.uniform(-30, 30, (n, 1))
    return a.astype(np.float32), b.astype(np.float32)


def tolerance(method: str, kind: str, temperature: float) -> float:
    """5e-6, and more below τ = 0.05, where the rounding of the cosines grows; 6 times that where the gradient is left
    over from a cancellation."""
    on_gpu = method not in ("exact", "tiled")
    if on_gpu and kind == "opposed" and temperature >= 1:  # the GPU's kernels do not have (5.13) yet
        return 2e-4 * max(1, temperature / 10)
    if kind == "opposed" and 1 <= temperature < exact.HIGH_TEMPERATURE:  # reached: 3e-5 at N = 4096
        return 2e-4
    return 5e-6 * max(1, 0.05 / temperature) * (6 if kind in ("collapsed", "antipodal", "opposed") else 1)


def check_accuracy(
    method: str, kind: str, n: int, d: int, temperature: float, seed: int, times: float = 1, tiny: float = 1e-36
) -> None:
    """Check value and gradient to the tolerance, or to `times` that for methods that multiply with less than float32.

    Below `tiny`, float32 has no full precision to offer.
    """
    a, b = rows(kind, n, d, np.random.default_rng([seed, n, d]))
    loss, da, db = nt_xent_value_and_grad(a, b, temperature, method)
    oracle = "tiled" if n > 1000 and devices.DEVICE == "cpu" else "exact"
    expected, ea, eb = nt_xent_value_and_grad(a.astype(np.float64), b.astype(np.float64), temperature, oracle)
    length = np.linalg.norm(np.concatenate([a, b]).astype(np.float64), axis=1, keepdims=True)
    dz, ez = (np.concatenate(g).astype(np.float64) for g in ((da, db), (ea, eb)))
    length[np.linalg.norm(ez, axis=1) < tiny] = 1
    du, eu = dz * length, ez * length  # as of unit rows, so that the shortest rows do not decide alone
    allowed = times * tolerance(method, kind, temperature)
    what = f"{method}, {kind}, N={n}, d={d}, τ={temperature}"
    assert abs(loss - expected) <= allowed * expected + tiny, what
    assert np.linalg.norm(du - eu) <= allowed * np.linalg.norm(eu) + tiny * len(eu) / temperature, what


KINDS = ["random", "aligned", "identical", "duplicate", "collapsed", "antipodal", "opposed"]


@pytest.mark.parametrize("method", DEVICE_METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_accuracy_is_as_promised(method: str, kind: str) -> None:
    for temperature in TEMPERATURES:
        for n, d in [(1, 8), (2, 128), (3, 16), (8, 128), (33, 64), (150, 128)]:
            check_accuracy(method, kind, n, d, temperature, seed=11)


@pytest.mark.parametrize("method", DEVICE_METHODS[:2])
@pytest.mark.parametrize("n", [16, 64, 127, 256, 300])
def test_float32_accuracy_of_simplex_rows_is_as_promised(method: str, n: int) -> None:
    """A row is one large and n − 1 equal small numbers, so the roundings of a float32 sum all have the same sign.

    In a float32 product, the cosine of such a row with itself comes out up to 3e-6 too small, which is 6e-5 of the loss
    at τ = 0.05. So the lengths and the positives' cosines are summed in float64.
    """
    z = (np.eye(n) - 1 / n).astype(np.float32)
    for temperature in (0.03, 0.05, 0.1, 0.5, 1):
        expected = math.log1p((2 * n - 2) * math.exp(-(1 + 1 / (n - 1)) / temperature))
        loss = nt_xent_value_and_grad(z, z, temperature, method)[0]
        assert abs(loss - expected) <= tolerance(method, "identical", temperature) * expected


@pytest.mark.slow
@pytest.mark.parametrize("method", DEVICE_METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_accuracy_of_large_batches(method: str, kind: str) -> None:
    for temperature in TEMPERATURES:
        for n, d in [(5, 128), (64, 512), (1024, 128)]:
            check_accuracy(method, kind, n, d, temperature, seed=12)
    if method != "tiled":
        return
    for temperature in (0.01, 0.1, 1):
        check_accuracy("tiled", kind, 4096, 128, temperature, seed=13)


# ── Pinned edge cases ─────────────────────────────────────────────────────────────────────────────


def test_a_zero_row_counts_as_u_zero(f: Any) -> None:
    a, b = views(4, seed=14)
    a[1] = 0
    loss, da, db = f(a, b, 0.1)
    u = np.concatenate([a, b])
    u /= np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-300)
    s = u @ u.T / 0.1
    np.fill_diagonal(s, -np.inf)
    expected = np.mean(np.log(np.exp(s).sum(1)) - s[np.arange(8), (np.arange(8) + 4) % 8])
    assert loss == pytest.approx(expected, rel=1e-12)
    assert not da[1].any()
    assert np.isfinite(da).all()
    assert np.isfinite(db).all()


def test_all_zero_rows_are_at_chance_and_get_no_gradient(f: Any) -> None:
    z = np.zeros((3, 2), np.float32)
    loss, da, db = f(z, z)
    assert loss == pytest.approx(math.log(5), rel=1e-6)
    assert not da.any()
    assert not db.any()


@pytest.mark.parametrize("n", [1, 2, 300])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_not_finite_in_nan_out(f: Any, n: int, temperature: float) -> None:
    for dtype, bad, where in itertools.product((np.float16, np.float32, np.float64), (np.nan, np.inf, -np.inf), (0, 1)):
        ab = [z.astype(dtype) for z in views(n, d=3)]
        ab[where][n - 1, 1] = bad
        assert math.isnan(f(*ab, temperature)[0]), (dtype, bad, where)


@pytest.mark.parametrize("temperature", [0, -0.1, math.nan, math.inf, 1e-40])
def test_temperature_must_make_sense(g: Any, temperature: float) -> None:
    z = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="temperature"):
        g(z, z, temperature)
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(on_device(z), on_device(z), temperature)


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((3,), (3,)), ((2, 2, 2), (2, 2, 2)), ((0, 3), (0, 3)), ((3, 0), (3, 0))],
)
def test_shapes_must_match(g: Any, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="za and zb must"):
        g(np.ones(a), np.ones(b))


def test_integers_and_lists_are_refused(g: Any) -> None:
    with pytest.raises(TypeError, match="int64"):
        g(np.ones((2, 2), np.int64), np.ones((2, 2), np.int64))
    with pytest.raises(TypeError, match="list"):
        g([[1.0]], [[1.0]])


def test_methods_that_cannot_run_are_refused() -> None:
    z = np.ones((2, 2))
    names = "auto, composed, plain, exact, tiled, cuda, cuda-bf16x3, cuda-bf16; not 'fused'"
    for door in (nt_xent_value_and_grad, lambda *views, method: nt_xent(*on_device(views), method=method)):
        with pytest.raises(ValueError, match=f"method must be one of {names}"):
            door(z, z, method="fused")
    other, error = ("cuda", RuntimeError) if devices.DEVICE == "cpu" else ("tiled", ValueError)
    with pytest.raises(error, match=f'method "{other}" takes'):
        nt_xent_value_and_grad(z, z, method=other)


@pytest.mark.parametrize(
    "dtypes",
    [
        (np.float16, np.float16),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float32),
        (np.float32, np.float64),
    ],
)
def test_each_gradient_has_the_dtype_of_its_input(g: Any, dtypes: tuple[Any, Any]) -> None:
    a, b = (z.astype(t) for z, t in zip(views(6), dtypes))
    expected, ea, eb = g(a.astype(np.float64), b.astype(np.float64))
    loss, da, db = g(a, b)
    assert (da.dtype, db.dtype) == dtypes
    assert loss == pytest.approx(expected, rel=1e-6)  # float16 computes in float32
    for g, e in ((da, ea), (db, eb)):
        np.testing.assert_allclose(g, e, rtol=float(np.finfo(g.dtype).eps), atol=1e-6)


@pytest.mark.parametrize(
    "dtypes",
    [
        (np.float16, np.float16),
        (np.float16, np.float32),
        (np.float32, np.float16),
        (np.float32, np.float32),
        (np.float32, np.float64),
        (np.float64, np.float32),
    ],
)
def test_auto_takes_the_method_made_for_the_arrays_and_computes_in_the_wider_dtype(
    dtypes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    compute = METHODS["exact"]
    for name in list(METHODS):

        def spy(za: Any, zb: Any, temperature: float, name: str = name) -> Any:
            seen.append((name, za.dtype, zb.dtype, temperature))
            return compute(za, zb, temperature)

        monkeypatch.setitem(METHODS, name, spy)
    a, b = (on_device(z.astype(t)) for z, t in zip(views(3), dtypes))
    ntxent.nt_xent_value_and_grad(a, b)
    nt_xent(a, b)
    wide = np.result_type(*dtypes, np.float32)
    (name, *rest), again = seen
    assert rest == [wide, wide, 0.1]
    assert again == (name, *rest)
    assert name == "tiled" if devices.DEVICE == "cpu" else name in ("cuda", "exact")


@pytest.mark.parametrize(
    ("dtype", "compiles", "method"),
    [(np.float32, True, "cuda"), (np.float32, False, "exact"), (np.float64, True, "exact")],
)
def test_auto_on_a_gpu_takes_the_kernels_if_they_compile_and_float32_will_do(
    dtype: Any, compiles: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = ModuleType("cupy")
    monkeypatch.setattr(ntxent, "array_module", lambda z, *others: np if z is None else cupy)
    monkeypatch.setattr(cuda, "usable", lambda xp: compiles and xp is cupy)
    z = np.ones((2, 2), dtype)
    assert ntxent.choose(z, z, "auto") == method
    with pytest.raises(ValueError, match='method "tiled" takes NumPy arrays'):
        ntxent.choose(z, z, "tiled")
    assert ntxent.choose(z, z, "reference") == ntxent.choose(z, z, "exact") == "exact"


def test_embeddings_and_gradients_pass_through_uncopied(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = tuple(on_device(np.ones((2, 2))) for _ in range(2))
    given: list[Any] = []

    def method(za: Any, zb: Any, temperature: float) -> Any:
        given.extend((za, zb))
        return 0.0, *answer

    monkeypatch.setitem(METHODS, "exact", method)
    za, zb = (on_device(np.ones((2, 2))) for _ in range(2))
    _, dza, dzb = ntxent.nt_xent_value_and_grad(za, zb, method="exact")
    nt_xent(za, zb, method="reference")  # its other name
    assert len(given) == 4  # nt_xent, too, asked the method that was named
    for one, other in zip((*given[:2], dza, dzb), (za, zb, *answer)):
        assert one is other


def test_the_exact_form_in_float32_needs_half_the_memory_of_float64() -> None:
    peak = {}
    for dtype in (np.float32, np.float64):
        a, b = (z.astype(dtype) for z in views(256, d=4))
        tracemalloc.start()
        exact.value_and_grad(a, b, 0.1)
        peak[dtype] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[np.float32] < 0.53 * peak[np.float64]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_exact_form_answers_in_the_dtype_that_it_was_asked_in(dtype: Any) -> None:
    for result in METHODS["exact"](*(on_device(z.astype(dtype)) for z in views(3)), 0.1):
        assert result.dtype == dtype


def test_a_list_on_one_side_is_named() -> None:
    z = on_device(np.ones((2, 2)))
    with pytest.raises(TypeError, match="arrays, not ndarray and list"):
        ntxent.nt_xent_value_and_grad(z, [[1.0, 0.0]] * 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="arrays, not list and ndarray"):
        ntxent.nt_xent_value_and_grad([[1.0, 0.0]] * 2, z)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtypes", [(np.float32, np.float64), (np.float64, np.float32), (np.float16, np.float16)])
def test_the_loss_of_tensors_has_the_wider_dtype(dtypes: tuple[Any, Any]) -> None:
    a, b = (tensor(z.astype(t)) for z, t in zip(views(3), dtypes))
    assert nt_xent(a, b).dtype == np.result_type(*dtypes)


def test_inputs_are_left_alone_and_need_not_be_contiguous(g: Any) -> None:
    a, b = views(6, d=10, seed=15)
    before = g(a[:, ::2].copy(), np.asfortranarray(b[:, ::2]))
    a.flags.writeable = b.flags.writeable = False
    for x, y in zip(g(a[:, ::2], b[:, ::2]), before):
        np.testing.assert_array_equal(x, y)


def test_numpy_scalar_temperature_does_not_promote(g: Any) -> None:
    a, b = (z.astype(np.float32) for z in views(5))
    assert g(a, b, np.float64(0.1))[1].dtype == np.float32


# ── The differentiable operation ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["auto", *PLAIN_METHODS])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nt_xent_of_tensors(dtype: Any, method: str) -> None:
    a, b = (z.astype(dtype) for z in views(9, seed=16))
    x, y = tensor(a, requires_grad=True), tensor(b, requires_grad=True)
    loss = nt_xent(x, y, 0.2, method)
    expected, da, db = nt_xent_value_and_grad(a, b, 0.2, method)
    assert loss.shape == ()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=float(np.finfo(dtype).eps))
    loss.backward(on_device(np.asarray(2, dtype)))
    step = float(np.finfo(dtype).smallest_subnormal)  # between the smallest numbers, twice a rounding is not a rounding
    assert_close(x.grad, 2 * da, atol=step)
    assert_close(y.grad, 2 * db, atol=step)


def test_one_tensor_as_both_views_gets_both_gradients() -> None:
    a, _ = views(5, seed=17)
    x = tensor(a, requires_grad=True)
    nt_xent(x, x).backward()
    _, da, db = nt_xent_value_and_grad(a, a)
    assert_close(x.grad, da + db)


# ── Contrastive accuracy ──────────────────────────────────────────────────────────────────────────


def contrastive_accuracy(za: Array, zb: Array) -> float:
    return ntxent.contrastive_accuracy(on_device(za), on_device(zb))


def test_contrastive_accuracy_counts_the_anchors_that_find_their_positive() -> None:
    eye = np.eye(4)
    assert contrastive_accuracy(eye, 5 * eye) == 1
    assert contrastive_accuracy(eye, np.roll(eye, 1, axis=0)) == 0
    assert contrastive_accuracy(np.ones((4, 2)), np.ones((4, 2))) == 0  # collapsed: all tie
    assert contrastive_accuracy(np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0.1], [1, 0.2]])) == 0.5
    assert contrastive_accuracy(np.ones((1, 2)), -np.ones((1, 2))) == 1
    a, _ = views(300, d=32, seed=18)
    rng = np.random.default_rng(19)
    assert contrastive_accuracy(a, rng.standard_normal(a.shape)) < 0.02


# ── Random cases ──────────────────────────────────────────────────────────────────────────────────

floats = st.floats(-1e3, 1e3, width=32)


@given(st.data(), st.sampled_from(DEVICE_METHODS), st.integers(1, 6), st.integers(1, 4), st.floats(0.05, 20))
def test_any_input_keeps_the_bounds_of_the_loss_and_a_tangent_gradient(
    data: st.DataObject, method: str, n: int, d: int, temperature: float
) -> None:
    """Between 0 and log(2N−1) + 2/τ; zero rows included; the gradient finite and tangent."""
    a, b = (data.draw(arrays(np.float32, (n, d), elements=floats)) for _ in range(2))
    loss, da, db = nt_xent_value_and_grad(a, b, temperature, method)
    assert 0 <= loss <= (math.log(2 * n - 1) + 2 / temperature) * (1 + 1e-6)
    for z, dz in ((a, da), (b, db)):
        if n > 1 and np.linalg.norm(z, axis=1).min() > 1e-6:
            assert np.isfinite(dz).all()
            assert abs((z.astype(np.float64) * dz).sum(1)).max() <= 1e-5 / temperature


# ── The equations ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_every_equation_tag_is_in_the_book_and_back() -> None:
    chapter = Path(__file__).parent.parent / "docs" / "05_nt_xent.md"
    if not chapter.exists():
        pytest.skip("the book is not part of this installation")
    in_book = set(re.findall(r"\\tag\{(5\.\d+)\}", chapter.read_text()))
    code = "".join(file.read_text() for file in Path(ntxent.__file__).parent.glob("*.py"))
    in_code = set(re.findall(r"\((5\.\d+)\)", code))
    assert in_code == in_book


# ── These checks refuse wrong versions ────────────────────────────────────────────────────────────


def passes(function: ValueAndGrad, closed_form: bool = True) -> bool:
    """A few of the checks above in one: Eq. 1 and finite differences at two temperatures, a closed form, N = 1.

    The closed form is of a loss of 1e-8, of which a plain form does not have ten digits.
    """

    def value_and_grad(za: Array, zb: Array, temperature: float) -> tuple[Any, Array, Array]:
        return host(function(on_device(za), on_device(zb), temperature))

    a, b = views(5, d=4, seed=20)
    direction = np.random.default_rng(21).standard_normal((2, *a.shape))
    ok = True
    for temperature in (0.3, 2.5):
        loss, da, db = value_and_grad(a, b, temperature)
        ok &= bool(np.isclose(loss, equation_1(a, b, temperature), rtol=1e-10))
        up, down = (value_and_grad(a + s * direction[0], b + s * direction[1], temperature)[0] for s in (1e-6, -1e-6))
        slope = float((da * direction[0]).sum() + (db * direction[1]).sum())
        ok &= bool(np.isclose(slope, (up - down) / 2e-6, rtol=1e-6))
    z = np.eye(4)
    if closed_form:
        ok &= bool(np.isclose(value_and_grad(z, z, 0.05)[0], math.log1p(6 * math.exp(-20)), rtol=1e-10, atol=0))
    one = value_and_grad(a[:1], b[:1], 0.3)
    return ok and float(one[0]) == 0 and not one[1].any()


@pytest.mark.parametrize("method", ["plain", "composed", "exact"])
def test_the_checks_accept_the_right_form(method: str) -> None:
    assert passes(METHODS[method], closed_form=method == "exact")


def refused(module: ModuleType, function: str, right: str, wrong: str, closed_form: bool) -> bool:
    """Exchange a piece of a module's source; the checks must refuse the result."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{module.__name__} has changed: {right!r}"
    broken: dict[str, Any] = {"__name__": module.__name__, "__package__": "minisimclr.ntxent"}
    exec(source.replace(right, wrong), broken)
    with np.errstate(all="ignore"):
        if function == "value_and_grad":
            return not passes(broken[function], closed_form)
        return not passes(functools.partial(ntxent.by_backward, broken[function]), closed_form)


@pytest.mark.parametrize(("right", "wrong"), [
    ("(p + p.T)", "p"),                                                 # half of the gradient, cosine 0.993
    ("(p + p.T)", "2 * p"),
    ("(rest + rest.T)", "rest"),
    ("(attraction + attraction[partner])", "attraction"),
    ("@ u + common_sum", "@ u"),                                        # at a high temperature: what is common to all
    ("negatives / total + common", "negatives / total"),
    ("e[anchor, anchor] = e[anchor, partner] = 0", "e[anchor, anchor] = 0"),
    ("(anchor + len(za)) % n ", "anchor ^ 1 "),                         # as if pairs were adjacent
    ("(anchor + len(za)) % n ", "(anchor + 1) % n "),
    ("(anchor + len(za)) % n ", "(anchor + len(za) // 3) % n "),        # a batch size from somewhere else
    ("margin[anchor, anchor] += -xp.inf", "margin[anchor, anchor] = -positive[:, 0] / temperature"),
    ("margin[anchor, anchor] += -xp.inf", "pass"),                      # an anchor as its own negative
    ("margin[anchor, partner] += -xp.inf", "pass"),                     # the positive counted twice
    ("log_one_plus(negatives, shift).mean()", "log_one_plus(negatives, shift).sum()"),  # Google's code: twice the paper
    ("/ (n * temperature)", "/ n"),
    ("/ (n * temperature)", "/ (n // 2 * temperature)"),
    ("du - u * (u * du).sum(axis=1, keepdims=True)", "du"),             # normalization forgotten in the backward pass
    ("tangent / norm /", "tangent * norm /"),
    ("xp.log1p(negatives + xp.expm1(-shift))", "-xp.log(xp.exp(-shift) / (negatives + xp.exp(-shift)) + 1e-8)"),
])  # fmt: skip
def test_the_checks_refuse_a_broken_exact_form(right: str, wrong: str) -> None:
    assert refused(exact, "value_and_grad", right, wrong, closed_form=True)


@pytest.mark.parametrize(("function", "right", "wrong"), [
    ("nt_xent_plain", "positive = (anchor + N) % (2 * N)", "positive = anchor ^ 1"),
    ("nt_xent_plain", "(dlogits + dlogits.T)", "dlogits"),              # an embedding's role as a choice forgotten
    ("nt_xent_plain", "dlogits *= g / (2 * N)", "dlogits *= g / N"),    # the mean over N
    ("nt_xent_plain", "dlogits[anchor, positive] -= 1", "dlogits[anchor, positive] -= 0"),
    ("nt_xent_plain", "@ u / temperature  #", "@ u  #"),
    ("nt_xent_plain", "u = z / length", "u = z + 0 * length"),
    ("nt_xent_plain", "logits[anchor, anchor] = -xp.inf", "logits[anchor, anchor] = 0"),
    ("nt_xent_plain", "(du - u * (u * du).sum(axis=1, keepdims=True))", "du"),
    ("nt_xent_composed", "(xp.arange(2 * N) + N) % (2 * N)", "(xp.arange(2 * N) + 1) % (2 * N)"),
    ("nt_xent_composed", "logits + not_itself", "logits"),
    ("nt_xent_composed", "temperature  # (2N,2N), all", "1  # (2N,2N), all"),
    ("nt_xent_composed", "ops.l2_normalize(z)", "z"),
    ("nt_xent_composed", "-xp.inf, logits.dtype", "-1.0, logits.dtype"),
])  # fmt: skip
def test_the_checks_refuse_a_broken_plain_form(function: str, right: str, wrong: str) -> None:
    assert refused(plain, function, right, wrong, closed_form=False)
