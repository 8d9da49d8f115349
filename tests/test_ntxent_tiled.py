"""The tiled NT-Xent: equal to the exact form on awkward sizes, the same bits again, and lean.

Everything in test_ntxent.py runs on the tiled version too; here is what only tiles can get wrong.
"""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minisimclr import processor
from minisimclr.ntxent import exact, few, nt_xent_value_and_grad, tiled
from minisimclr.ntxent import tiled as tournament

pytestmark = pytest.mark.host

Array = np.ndarray[Any, Any]


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    processor.set_threads(request.param)
    yield
    processor.set_threads(None)


def views(n: int, d: int = 24, dtype: Any = np.float64) -> tuple[Array, Array]:
    rng = np.random.default_rng([n, d])
    a = rng.standard_normal((n, d))
    return a.astype(dtype), (a + rng.standard_normal((n, d))).astype(dtype)


def assert_equal_to_the_exact_form(a: Array, b: Array, temperature: float, keep_bytes: int, tolerance: float) -> None:
    loss, *gradients = tiled.value_and_grad(a, b, temperature, keep_bytes)
    expected, *expected_gradients = exact.value_and_grad(a, b, temperature)
    assert abs(loss - expected) <= tolerance * abs(expected), a.shape
    for g, e in zip(gradients, expected_gradients):
        assert g.dtype == e.dtype == a.dtype
        assert np.abs(g - e).max() <= tolerance * np.abs(e).max(), a.shape


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("keep_bytes", [0, 2**30], ids=["recomputed", "kept"])
@pytest.mark.parametrize("tile", [7, 256])
class TestEqualToTheExactForm:
    @pytest.fixture(autouse=True)
    def tile_rows(self, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiled, "TILE", tile)
        monkeypatch.setattr(tiled, "_scratch", threading.local())
        if tile == 7:  # else the whole matrix is computed in one piece
            monkeypatch.setattr(few, "MOST_IMAGES", 0)

    @pytest.mark.parametrize("temperature", [1e-3, 5e-3, 0.1, 1, 2.5, 1e3])
    def test_any_number_of_images(self, temperature: float, keep_bytes: int) -> None:
        for n in (1, 2, 3, 6, 7, 8, 13, 14, 15, 50):
            a, b = views(n)
            if temperature == 5e-3:
                a[0], b[-1] = b[0], -a[-1]  # some rows with a near partner and some without: each its own shift
            assert_equal_to_the_exact_form(a, b, temperature, keep_bytes, tolerance=1e-11 * max(1, 0.05 / temperature))

    @pytest.mark.parametrize("d", [1, 2, 300])
    def test_any_width(self, d: int, keep_bytes: int) -> None:
        assert_equal_to_the_exact_form(*views(20, d), 0.2, keep_bytes, tolerance=1e-11)

    def test_float32(self, keep_bytes: int) -> None:
        for temperature in (0.01, 0.0125, 0.02, 0.1):  # around the smallest that needs no shift
            a, b = views(40, dtype=np.float32)
            assert_equal_to_the_exact_form(a, b, temperature, keep_bytes, tolerance=2e-6 * max(1, 0.05 / temperature))


@pytest.mark.parametrize("n", [128, 129, 255, 256, 257, 300, 511, 600])
def test_sizes_next_to_those_at_which_the_form_changes_give_the_exact_form(n: int) -> None:
    a, b = views(n, dtype=np.float32)
    assert_equal_to_the_exact_form(a, b, 0.1, tiled.KEEP_BYTES, tolerance=2e-6)


@pytest.mark.parametrize("n", [200, 700])  # in one piece, in two strips; and in tiles
def test_same_bits_again_and_on_any_number_of_threads(n: int) -> None:
    a, b = views(n, dtype=np.float32)
    for temperature in (0.005, 0.1):
        results = []
        for count in (1, 2, 2, 2, 5, 16):
            processor.set_threads(count)
            results.append(nt_xent_value_and_grad(a, b, temperature, "tiled"))
        processor.set_threads(None)
        for loss, da, db in results[1:]:
            assert loss == results[0][0]
            np.testing.assert_array_equal(da, results[0][1])
            np.testing.assert_array_equal(db, results[0][2])


def test_kept_and_recomputed_are_the_same_bits() -> None:
    a, b = views(400, dtype=np.float32)
    for temperature in (0.1, 3):
        results = [tiled.value_and_grad(a, b, temperature, keep_bytes) for keep_bytes in (2**30, 0)]
        for x, y in zip(*results):
            np.testing.assert_array_equal(x, y)


def test_more_rounds_at_once_round_differently_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = views(60)
    monkeypatch.setattr(tiled, "TILE", 7)
    monkeypatch.setattr(few, "MOST_IMAGES", 0)
    monkeypatch.setattr(tiled, "_scratch", threading.local())
    for size in (0, 2 * a.nbytes, 5 * a.nbytes, 2**30):  # 1, 2, 3 and all 18 rounds
        monkeypatch.setattr(tiled, "SUM_BYTES", size)
        assert_equal_to_the_exact_form(a, b, 0.1, 0, tolerance=1e-12)


@pytest.mark.parametrize("n", [200, 300])
def test_calls_side_by_side_do_not_disturb_each_other(n: int) -> None:
    a, b = views(n, dtype=np.float32)
    expected = tiled.value_and_grad(a, b, 0.1)
    results: list[tuple[Array, Array, Array]] = []
    callers = [threading.Thread(target=lambda: results.append(tiled.value_and_grad(a, b, 0.1))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert len(results) == 6
    for result in results:
        for x, y in zip(result, expected):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("players", [2, 4, 6, 8, 34])
def test_rounds_are_a_tournament(players: int) -> None:
    rounds = tournament.rounds(players)
    pairs = [pair for pairs in rounds for pair in pairs]
    assert sorted(pairs) == sorted(itertools.combinations_with_replacement(range(players), 2))
    for pairs in rounds:
        assert {player for pair in pairs for player in pair} == set(range(players))  # everybody plays …
        assert sum(1 if i == j else 2 for i, j in pairs) == players  # … and nobody twice


@pytest.mark.parametrize("images", [1, 5, 127, 128, 129, 256, 257, 1000])
def test_blocks_pair_up(images: int) -> None:
    blocks = tiled._blocks(images)
    half = len(blocks) // 2
    assert blocks[0].start == 0
    assert sum(rows.stop - rows.start for rows in blocks) == 2 * images
    for one, other in zip(blocks[:half], blocks[half:]):
        assert (other.start, other.stop) == (one.start + images, one.stop + images)
        assert 0 < one.stop - one.start <= tiled.TILE


# ── More rows than a strip, the bound of the shift, opposed views: what small batches do not reach ─


def one_hot(images: int, d: int, dtype: Any = np.float64) -> Array:
    """Rows of length 1 in d directions: image i looks along axis i modulo d."""
    return np.eye(d, dtype=dtype)[np.arange(images) % d]


def closed_form_of_one_hot_rows(images: int, d: int, temperature: float) -> tuple[float, Array]:
    """Loss and dza of `one_hot` in both views: every cosine is 1 or 0, so each row of one axis has the same sum.

    Row i, along axis c, has 2m_c − 2 negatives of cosine 1 and the rest of cosine 0. Its gradient along another axis k
    is 2m_k(p_ck + p_kc)/2Nτ, and 0 along its own, because that changes only its length.
    """
    rows = 2.0 * np.bincount(np.arange(images) % d, minlength=d)  # (d,) of both views
    far = np.exp(-1 / temperature)  # e^(cosine 0 − cosine 1)/τ
    total = rows - 1 + (2 * images - rows) * far  # (d,) the softmax's denominator over e^(1/τ)
    loss = float(rows @ np.log(total)) / (2 * images)
    slopes = rows * far * (1 / total[:, None] + 1 / total) / (2 * images * temperature)  # (d,d) of axis c along axis k
    np.fill_diagonal(slopes, 0)
    return loss, slopes[np.arange(images) % d]


MANY = [1025, 1100]  # more than one strip of 1,024 rows; five blocks of nearly 256; neither is a multiple of anything


@pytest.mark.parametrize("images", MANY)
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_closed_values_of_more_rows_than_a_strip_holds(images: int, temperature: float) -> None:
    z = one_hot(images, 8)
    loss, da, db = tiled.value_and_grad(z, 3 * z, temperature)
    expected, gradient = closed_form_of_one_hot_rows(images, 8, temperature)
    assert loss == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(da, gradient, rtol=1e-9, atol=1e-12 * gradient.max())
    np.testing.assert_allclose(3 * db, gradient, rtol=1e-9, atol=1e-12 * gradient.max())


@pytest.mark.parametrize(
    ("temperature", "dtype", "tolerance"),
    [(0.1, np.float64, 1e-11), (3.0, np.float64, 1e-11), (0.01, np.float32, 1e-5)],
)
def test_gradients_of_1100_images_agree_with_the_exact_form(temperature: float, dtype: Any, tolerance: float) -> None:
    """At the last temperature the sums need a shift: e¹⁰⁰ is no float32."""
    assert_equal_to_the_exact_form(*views(1100, 8, dtype), temperature, 0, tolerance)


# In float32, exp(1/τ) times the 256 rows of a tile overflows from 1/τ = 88.7 − log 256 = 83.2 on.
AROUND_THE_BOUND = [1 / 76, 1 / 79, 1 / 81.5, 1 / 83, 1 / 83.5, 1 / 86, 1 / 90]


@pytest.mark.parametrize("temperature", AROUND_THE_BOUND)
def test_closed_values_around_the_temperature_below_which_a_shift_is_needed(temperature: float) -> None:
    """All rows are equal: each sum is as large as it can be, and must not overflow."""
    n = 512
    z = np.tile(np.float32([3, -1, 2]), (n, 1))
    loss, da, db = tiled.value_and_grad(z, z, temperature)
    assert loss == pytest.approx(np.log(2 * n - 1), rel=1e-5)
    assert max(np.abs(da).max(), np.abs(db).max()) <= 1e-6 / temperature


@pytest.mark.parametrize("temperature", AROUND_THE_BOUND)
def test_forms_agree_around_the_temperature_below_which_a_shift_is_needed(temperature: float) -> None:
    """Rows that nearly agree: their sums are nearly as large as they can be, and their gradients are not 0."""
    a, b = (z / 50 + [5, -5] for z in views(512, 2))
    assert_equal_to_the_exact_form(a.astype(np.float32), b.astype(np.float32), temperature, 0, tolerance=1e-3)


OPPOSED = [(300, 24, 0.5), (64, 128, 1.0), (150, 64, 0.5)]


def opposed(n: int, d: int) -> tuple[Array, Array]:
    """Two views of which one is the other turned round, in float32, of length 1."""
    a = np.random.default_rng([n, d]).standard_normal((n, d)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    return a, -a


@pytest.mark.parametrize(("n", "d", "temperature"), OPPOSED)
def test_accuracy_of_opposed_views_in_float32(n: int, d: int, temperature: float) -> None:
    a, b = opposed(n, d)
    expected = np.concatenate(exact.value_and_grad(a.astype(float), b.astype(float), temperature)[1:])
    got = np.concatenate(tiled.value_and_grad(a, b, temperature)[1:])
    assert np.abs(got - expected).max() <= 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("n", "d", "temperature"), OPPOSED)
def test_the_gradient_of_opposed_views_is_tangent_to_the_last_digits(n: int, d: int, temperature: float) -> None:
    a, b = opposed(n, d)
    for z, dz in zip((a, b), tiled.value_and_grad(a, b, temperature)[1:]):
        along = np.einsum("nd,nd->n", z, dz, dtype=float)
        assert np.linalg.norm(along) <= 1e-6 * np.linalg.norm(dz)


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────


def extra_bytes(n: int, d: int, keep_bytes: int | None, temperature: float = 0.1) -> int:
    """The most that one call holds beyond its inputs and outputs, on one thread.

    On several threads it is left to chance how many of them meet a tile and make their two scratch arrays.
    """
    a, b = views(n, d, np.float32)
    tiled._scratch = threading.local()
    tiled.release()
    processor.set_threads(1)
    gc.collect()  # what earlier tests left must not be freed, and counted as ours, in between
    tracemalloc.start()
    try:
        tiled.value_and_grad(a, b, temperature, keep_bytes)
        return tracemalloc.get_traced_memory()[1] - a.nbytes - b.nbytes  # the gradients
    finally:
        tracemalloc.stop()
        processor.set_threads(None)


def test_memory_grows_with_n_not_with_n_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "SUM_BYTES", 0)  # a constant, which would hide the growth
    small, large = (extra_bytes(n, 8, keep_bytes=0) for n in (700, 2100))
    assert large - small < 5 * (1400 * 2 * 8 * 4)  # u, and the vectors of length 2N
    small, large = (extra_bytes(n, 8, keep_bytes=0, temperature=0.005) for n in (700, 1400))
    assert large - small < 5 * (700 * 2 * 8 * 4)


@pytest.mark.parametrize(("n", "budget"), [(1024, 8), pytest.param(4096, 16, marks=pytest.mark.slow)])
def test_memory_stays_within_its_budget_of_mebibytes_beside_what_is_kept(n: int, budget: int) -> None:
    assert extra_bytes(n, 128, keep_bytes=0) <= budget * 2**20
    e = 2 * n * n * 4
    assert e < extra_bytes(n, 128, keep_bytes=tiled.KEEP_BYTES) <= e + (budget + 8) * 2**20


def test_room_for_e_is_used_again_and_can_be_given_back() -> None:
    a, b = views(300, 8, np.float32)
    tiled.release()
    tiled.value_and_grad(a, b, 0.1, keep_bytes=0)
    assert not tiled._spare
    expected = tiled.value_and_grad(a, b, 0.1)
    (room,) = tiled._spare
    assert room.nbytes <= tiled.KEEP_BYTES
    room[:] = 255  # NaN: whatever is left over from another call must not be read
    for x, y in zip(tiled.value_and_grad(a, b, 0.1), expected):
        np.testing.assert_array_equal(x, y)
    assert tiled._spare[0] is room
    tiled.value_and_grad(a[:100], b[:100], 0.1)  # a smaller batch in between does not cost the room
    assert tiled._spare[0] is room
    assert_equal_to_the_exact_form(a, b, 0.005, tiled.KEEP_BYTES, tolerance=2e-5)  # nor one that keeps nothing
    assert tiled._spare[0] is room
    tiled.release()
    assert not tiled._spare


@pytest.mark.parametrize(
    ("images", "bare", "training"),
    [
        (1, "whole matrix", "whole matrix"),
        (256, "whole matrix", "whole matrix"),
        (257, "tiled, E kept", "tiled, E kept"),
        (1984, "tiled, E kept", "tiled, E kept"),
        (1985, "tiled, E recomputed", "tiled, E kept"),
        (4500, "tiled, E recomputed", "tiled, E kept"),
        (4501, "tiled, E recomputed", "tiled, E recomputed"),
    ],
)
def test_the_form_is_chosen_as_the_table_says(images: int, bare: str, training: str) -> None:
    float32 = np.dtype(np.float32)
    assert tiled.form(images, 0.1, float32, tiled.SPARE_BYTES) == bare
    assert tiled.form(images, 0.1, float32, tiled.KEEP_BYTES) == training
    assert tiled.form(images, 0.01, float32, tiled.KEEP_BYTES) == "tiled, E recomputed"  # a shift is needed
    assert tiled.form(images, 2.0, float32, 0) == "tiled, E recomputed"  # E − 1 is computed


@pytest.mark.parametrize("n", [200, 300])
@pytest.mark.parametrize("temperature", [1e-12, 1e-20, 1e-30])
def test_a_temperature_below_all_rounding_gives_no_nan(n: int, temperature: float) -> None:
    """The level is rounded to float32; a probability of e^1000 would follow, and a gradient of NaN."""
    a, b = views(n, 8, np.float32)
    _, *gradients = tiled.value_and_grad(a, b, temperature)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-6, 1e-12, 1e-30])
def test_forms_agree_at_a_temperature_below_all_rounding(temperature: float, dtype: Any) -> None:
    """Of so few images no two cosines are so close that rounding decides which is larger."""
    assert_equal_to_the_exact_form(*views(20, 8, dtype), temperature, 2**30, tolerance=1e-5)


def test_the_memory_of_a_bare_call_stays_below_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """E of 700 images takes 4.7 MiB."""
    monkeypatch.setattr(tiled, "SPARE_BYTES", 2**20)
    monkeypatch.setattr(tiled, "memory_is_kept", lambda: False)
    assert extra_bytes(700, 8, keep_bytes=None) < 3 * 2**20


@pytest.mark.parametrize(("training", "kept"), [(False, False), (True, True)])
def test_a_call_keeps_e_if_the_next_call_may_have_its_memory(
    monkeypatch: pytest.MonkeyPatch, training: bool, kept: bool
) -> None:
    """Fresh memory would cost more than to compute E again. E of 300 images takes 0.7 MiB: between the two bounds."""
    a, b = views(300, 8, np.float32)
    tiled.release()
    monkeypatch.setattr(tiled, "SPARE_BYTES", 1000)
    monkeypatch.setattr(tiled, "memory_is_kept", lambda: training)
    asked: list[int] = []
    monkeypatch.setattr(tiled, "_room", lambda size: asked.append(size) or np.empty(size, np.uint8))
    tiled.value_and_grad(a, b, 0.1)
    assert bool(asked) == kept


@pytest.mark.parametrize(("training", "held"), [(False, 0), (True, 1)])
def test_a_training_run_holds_more_room_between_calls_than_a_bare_call_does(
    monkeypatch: pytest.MonkeyPatch, training: bool, held: int
) -> None:
    """E of 300 images takes 0.7 MiB: that is between the two bounds of this test."""
    a, b = views(300, 8, np.float32)
    tiled.release()
    assert tiled.SPARE_BYTES <= 32 * 2**20
    monkeypatch.setattr(tiled, "SPARE_BYTES", 1000)
    monkeypatch.setattr(tiled, "memory_is_kept", lambda: training)
    tiled.value_and_grad(a, b, 0.1)
    assert len(tiled._spare) == held
    monkeypatch.setattr(tiled, "KEEP_BYTES", 1000)
    tiled.value_and_grad(a, b, 0.1, keep_bytes=2**30)
    assert not tiled._spare
