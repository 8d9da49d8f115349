"""Winograd's convolution against the nine products, which are its oracle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from minisimclr import processor
from minisimclr.engine.autograd import Tensor
from minisimclr.nn import Conv2d
from minisimclr.ops.conv import METHODS, conv2d, slabs, winograd
from minisimclr.resnet import resnet_small

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _two_threads():
    processor.set_threads(2)
    yield
    processor.set_threads(None)


def arrays(H: int, W: int, N: int, C: int, D: int, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    """Feature maps, a kernel and a gradient for the output."""
    rng = np.random.default_rng([H, W, N, C, D])
    return tuple(rng.standard_normal(s).astype(dtype) for s in [(H, W, N, C), (3, 3, C, D), (H, W, N, D)])


def fast(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    y, vjp = winograd.convolution(np, x, w)
    return y, *vjp(g)


def exact(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """The nine products in float64."""
    x, w, g = (a.astype(np.float64) for a in (x, w, g))
    y, vjp = slabs.convolution(np, x, w, stride=1, padding=1)
    dx, dw = vjp(g)
    return y, dx(), dw()


def deviation(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


# ── The transforms ────────────────────────────────────────────────────────────────────────────────


def test_the_transforms_compute_a_filter_exactly():
    """Aᵀ[(G w) ⊙ (Bᵀ d)] is the correlation of d with w, in fractions: no rounding at all."""
    at, g, bt = winograd._matrices()
    d, w = [Fraction(k * k - 7, 3) for k in range(6)], [Fraction(2), Fraction(-5, 7), Fraction(11)]
    times = [sum(a * b for a, b in zip(of_w, w)) * sum(a * b for a, b in zip(of_d, d)) for of_w, of_d in zip(g, bt)]
    assert [sum(a * b for a, b in zip(row, times)) for row in at] == [
        sum(d[k + j] * w[j] for j in range(3)) for k in range(4)
    ]


def test_with_the_usual_points_they_are_the_matrices_of_lavin_and_gray(monkeypatch):
    monkeypatch.setattr(winograd, "POINTS", tuple(Fraction(p) for p in (0, 1, -1, 2, -2)))
    at, g, bt = winograd._matrices.__wrapped__()
    assert at[3] == [0, 1, -1, 8, -8, 1]
    assert bt[0] == [4, 0, -5, 0, 1, 0]
    assert g[3] == [Fraction(1, 24), Fraction(1, 12), Fraction(1, 6)]


# ── Equal to the nine products ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("H", "W"), [*((k, k) for k in (1, 2, 3, 4, 5, 7, 8, 33)), (1, 9), (6, 3), (16, 4)])
@pytest.mark.parametrize(("N", "C", "D"), [(16, 1, 1), (3, 5, 2), (37, 8, 16), (2, 64, 32)])
def test_value_and_both_gradients_equal_the_nine_products(H, W, N, C, D):
    x, w, g = arrays(H, W, N, C, D)
    for got, expected in zip(fast(x, w, g), exact(x, w, g)):
        assert got.dtype == np.float32
        assert got.shape == expected.shape
        assert deviation(got, expected) <= 3e-6


@pytest.mark.parametrize("shape", [(4, 4, 16, 256, 256), (8, 8, 6, 128, 64), (16, 16, 4, 64, 64)])
def test_the_shapes_of_a_resnet_round_little(shape):
    x, w, g = arrays(*shape)
    for got, expected in zip(fast(np.maximum(x, 0), w, g), exact(np.maximum(x, 0), w, g)):
        assert deviation(got, expected) <= 2e-6


@pytest.mark.parametrize(
    "settings",
    [
        {"SHARED_U": 0},
        {"SHARED_U": 0, "PHASE_BYTES": 1},
        {"BLOCK_BYTES": 1},
        {"PIECE": 1},
        {"BLOCK_BYTES": 1 << 16, "PIECE": 64},
    ],
)
def test_how_the_work_is_cut_changes_the_rounding_at_most(settings, monkeypatch):
    x, w, g = arrays(10, 7, 9, 6, 4)
    for name, value in settings.items():
        monkeypatch.setattr(winograd, name, value)
    for got, expected in zip(fast(x, w, g), exact(x, w, g)):
        assert deviation(got, expected) <= 3e-6


def test_maps_that_are_views_are_read_as_they_are():
    x, w, g = arrays(8, 8, 4, 6, 5)
    x_view, g_view = x.transpose(1, 0, 3, 2).copy().transpose(1, 0, 3, 2), np.broadcast_to(g[:1, :1], g.shape)
    assert all(np.array_equal(a, b) for a, b in zip(fast(x_view, w, g_view), fast(x, w, g_view.copy())))


@pytest.mark.parametrize("shape", [(9, 6, 5, 16, 8), (4, 4, 16, 64, 96), (4, 4, 70, 16, 8)])  # one block and several
def test_the_gradients_are_the_adjoints_of_the_value(shape):
    """⟨g, y(x, w)⟩ = ⟨dx, x⟩ = ⟨dw, w⟩: y is linear in each of x and w."""
    x, w, g = arrays(*shape)
    y, dx, dw = (a.astype(np.float64) for a in fast(x, w, g))
    scale = np.linalg.norm(g) * np.linalg.norm(y)
    assert abs((g * y).sum() - (dx * x).sum()) <= 1e-6 * scale
    assert abs((g * y).sum() - (dw * w).sum()) <= 1e-6 * scale


# ── Threads ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shared", [False, True])
def test_bit_equal_at_a_fixed_number_of_threads_and_nearly_so_at_another(shared, monkeypatch):
    monkeypatch.setattr(winograd, "SHARED_U", 0 if shared else 1 << 30)
    inputs = arrays(12, 9, 20, 32, 16)
    two = fast(*inputs)
    assert all(np.array_equal(a, b) for a, b in zip(two, fast(*inputs)))
    processor.set_threads(1)
    assert all(deviation(a, b) <= 2e-6 for a, b in zip(two, fast(*inputs)))


def test_results_are_arrays_of_their_own():
    """The buffers that stay from call to call are never handed out."""
    inputs = arrays(8, 8, 4, 8, 8)
    one = fast(*inputs)
    before = [a.copy() for a in one]
    fast(*arrays(8, 8, 4, 8, 8)[:2], np.ones_like(inputs[2]))
    assert all(np.array_equal(a, b) for a, b in zip(one, before))
    assert not any(np.shares_memory(a, b) for k, a in enumerate(one) for b in one[:k])


def test_buffers_stay_within_the_stated_budget(monkeypatch):
    vars(winograd._kept).clear()
    processor.set_threads(1)
    for shape in [(16, 16, 16, 32, 32), (8, 8, 8, 96, 96)]:
        for shared in (1 << 30, 0):
            monkeypatch.setattr(winograd, "SHARED_U", shared)
            monkeypatch.setattr(winograd, "PHASE_BYTES", 1 << 20)
            fast(*arrays(*shape))
            budget = winograd.BLOCK_BYTES if shared else winograd.PHASE_BYTES
            held = vars(winograd._kept)
            assert held["V"].nbytes + held["M"].nbytes <= budget
            u, pieces = 4 * 36 * shape[3] * shape[4], 3 << 20
            assert sum(buffer.nbytes for buffer in held.values()) <= budget + 2 * u + pieces
            held.clear()


@pytest.mark.parametrize(("bad", "kind"), [(1e6, "outlier"), (np.nan, "NaN")])
def test_an_outlier_or_a_nan_stays_within_the_tiles_that_see_it(bad, kind):
    """Pixel (6,6) lies in the window of the tile of rows and columns 4…7 alone; chapter 3 says what that costs."""
    x, w, g = arrays(16, 16, 2, 8, 8)
    x = x.copy()
    x[6, 6, 0, 0] = bad
    with np.errstate(invalid="ignore"):
        got = fast(x, w, g)[0]
        expected = conv2d(x.astype(np.float64), w.astype(np.float64), padding=1).data
    error = np.abs(got - expected)
    tile = np.zeros(error.shape[:3], bool)
    tile[4:8, 4:8, 0] = True
    if kind == "NaN":
        np.testing.assert_array_equal(np.isnan(got), np.broadcast_to(tile[..., None], got.shape))
    else:
        assert error[tile].max() <= 1e6 * 1e-5
    assert error[~tile].max() <= 1e-4


# ── Who is asked ──────────────────────────────────────────────────────────────────────────────────


def asked(monkeypatch: pytest.MonkeyPatch, x: np.ndarray, w: np.ndarray, **settings: object) -> bool:
    """True if this conv2d goes to Winograd."""
    calls = []
    monkeypatch.setattr(winograd, "convolution", lambda *a: calls.append(a) or (np.zeros(1), lambda g: g))
    conv2d(x, w, **settings)
    return bool(calls)


@pytest.mark.parametrize(
    ("settings", "kernel", "dtype", "yes"),
    [
        ({"padding": 1, "method": "winograd"}, 3, np.float32, True),
        ({"padding": 1, "method": "auto"}, 3, np.float32, True),
        ({"padding": 1}, 3, np.float32, False),  # slabs are the default
        ({"padding": 1, "method": "slabs"}, 3, np.float32, False),
        ({"padding": 1, "method": "winograd"}, 3, np.float64, False),
        ({"padding": 1, "method": "winograd", "stride": 2}, 3, np.float32, False),
        ({"padding": 0, "method": "winograd"}, 3, np.float32, False),
        ({"padding": 1, "method": "winograd"}, 1, np.float32, False),
    ],
)
def test_only_float32_3x3_stride_1_padding_1_goes_to_winograd(settings, kernel, dtype, yes, monkeypatch):
    x, w = np.zeros((16, 16, 8, 64), dtype), np.zeros((kernel, kernel, 64, 64), dtype)
    assert asked(monkeypatch, x, w, **settings) == yes


def test_auto_leaves_small_maps_and_few_channels_to_the_nine_products(monkeypatch):
    assert not asked(monkeypatch, np.zeros((32, 32, 2, 3), "f"), np.zeros((3, 3, 3, 64), "f"), padding=1, method="auto")
    assert not asked(monkeypatch, np.zeros((2, 2, 2, 64), "f"), np.zeros((3, 3, 64, 64), "f"), padding=1, method="auto")


def test_auto_leaves_32_channels_to_the_nine_products() -> None:
    assert not winograd.worthwhile((16, 16, 512, 32), 32)
    assert winograd.worthwhile((16, 16, 512, 32), 64)
    assert winograd.worthwhile((16, 16, 512, 64), 64)
    assert not winograd.worthwhile((16, 16, 512, 8), 512)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=f"method must be one of {', '.join(METHODS)}; not 'fft'"):
        conv2d(np.zeros((4, 4, 1, 1)), np.zeros((3, 3, 1, 1)), padding=1, method="fft")


def test_an_empty_batch_is_no_harm():
    y = conv2d(np.zeros((4, 4, 0, 8), "f"), np.zeros((3, 3, 8, 8), "f"), padding=1, method="winograd")
    assert y.shape == (4, 4, 0, 8)


# ── In a network ──────────────────────────────────────────────────────────────────────────────────


def gradient(method: str, dtype: type) -> np.ndarray:
    """The whole gradient of a small encoder, as one vector."""
    net = resnet_small(rng=np.random.default_rng(0)).astype(dtype)
    for _, module in net.modules():
        if isinstance(module, Conv2d):
            module.method = method
    images = np.random.default_rng(1).random((12, 32, 32, 3)).astype(dtype)
    h = net(Tensor(images), train=True)
    h.backward(np.random.default_rng(2).standard_normal(h.shape).astype(dtype))
    return np.concatenate([p.grad.ravel() for p in net.parameters()])


def test_the_gradient_of_a_network_turns_by_less_than_a_hundredth():
    """Rounding flips the sign of a few inputs of ReLUs; the effect grows with the depth."""
    exact, got = gradient("winograd", np.float64), gradient("winograd", np.float32).astype(np.float64)
    assert np.array_equal(exact, gradient("slabs", np.float64))
    assert deviation(got, exact) <= 1e-2
    assert got @ exact / np.linalg.norm(got) / np.linalg.norm(exact) > 0.9999


# ── The setting ───────────────────────────────────────────────────────────────────────────────────


def test_auto_leaves_a_map_to_the_nine_products_if_its_last_tiles_are_mostly_empty() -> None:
    assert winograd.worthwhile((8, 8, 8, 64), 64)
    assert not winograd.worthwhile((5, 5, 8, 64), 64)  # 13² products of nine against 2² tiles of 64
    assert not winograd.worthwhile((2, 2, 8, 64), 64)


def test_whoever_asks_for_winograd_gets_it_also_where_auto_would_not(monkeypatch) -> None:
    x, w = np.ones((2, 2, 8, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    assert asked(monkeypatch, x, w, padding=1, method="winograd")
    assert not asked(monkeypatch, x, w, padding=1, method="auto")


def test_a_buffer_is_the_same_memory_each_time_and_another_for_each_name() -> None:
    first = winograd._buffer(np, "test, first", 36, 8, 8)
    assert np.may_share_memory(first, winograd._buffer(np, "test, first", 36, 4, 4))
    assert not np.may_share_memory(first, winograd._buffer(np, "test, second", 36, 8, 8))
