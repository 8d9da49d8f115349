"""Scores of predictions and measures of features, against loops and closed forms; the two protocols of the probe."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from devices import on_device
from scipy.special import logsumexp

from minisimclr import evaluation
from minisimclr.evaluation import measures, probe, scores
from minisimclr.protocols import sgd_probe

Array = np.ndarray


def features(count: int, classes: int = 3, width: int = 6, seed: int = 0, alike: float = 1.0) -> tuple[Array, Array]:
    """Classes that overlap, on features that go together: one axis is ten times as long as another."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    centres = np.random.default_rng(7).standard_normal((classes, width))
    mixed = np.eye(width) + alike * np.random.default_rng(8).standard_normal((width, width)) * np.logspace(0, -1, width)
    return ((centres[y] + rng.standard_normal((count, width))) @ mixed).astype(np.float32), y


# ── Confusion ─────────────────────────────────────────────────────────────────────────────────────


def test_counts_accuracy_mean_of_classes_and_majority_are_those_of_the_loops():
    rng = np.random.default_rng(0)
    y, given = rng.integers(0, 4, 200) % 4, rng.integers(0, 4, 200)
    y[:60] = 2  # one class is larger
    found = scores.confusion(y, given, 5)  # and one has no rows
    for a in range(5):
        for b in range(5):
            assert found.counts[a, b] == sum(1 for t, p in zip(y, given) if (t, p) == (a, b))
    assert found.accuracy == (y == given).mean()
    assert found.per_class == pytest.approx(np.mean([(given[y == c] == c).mean() for c in range(4)]))
    assert found.majority == (y == 2).mean()


def test_the_pairs_that_are_confused_most_come_first_and_what_is_right_is_none():
    y = np.array([0] * 10 + [1] * 4)
    given = np.array([1] * 3 + [0] * 7 + [2] * 2 + [1] * 2)
    assert scores.confusion(y, given, 3).confused() == [(1, 2, 0.5), (0, 1, 0.3)]
    assert scores.confusion(y, y, 3).confused() == []


def test_an_accuracy_of_no_images_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        scores.confusion(np.zeros(0, int), np.zeros(0, int), 2)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 1.0])
def test_the_uncertainty_is_half_of_wilsons_interval_by_its_formula(p):
    """Wilson's interval holds the q for which |p − q| ≤ √(q(1−q)/n); here its ends are found by bisection."""
    n = 200

    def inside(q: float) -> bool:
        return abs(p - q) <= math.sqrt(q * (1 - q) / n) + 1e-12

    ends = []
    for out in (-0.2, 1.2):
        good, bad = (p * n + 0.5) / (n + 1), out
        for _ in range(60):
            middle = (good + bad) / 2
            good, bad = (middle, bad) if 0 <= middle <= 1 and inside(middle) else (good, middle)
        ends.append(good)
    assert scores.uncertainty(p, n) == pytest.approx((ends[1] - ends[0]) / 2, rel=1e-6)


# ── Measures ──────────────────────────────────────────────────────────────────────────────────────


def test_alignment_and_uniformity_equal_the_loops():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 9, 4)) * 3
    u, v = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (a, b))
    assert measures.alignment(a, b) == pytest.approx(np.mean([((s - t) ** 2).sum() for s, t in zip(u, v)]), rel=1e-5)
    pairs = [math.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i in range(9) for j in range(9) if i != j]
    assert measures.uniformity(a) == pytest.approx(math.log(np.mean(pairs)), rel=1e-5)


def test_in_collapse_every_measure_says_so():
    h = np.ones((20, 8)) + 1e-6 * np.random.default_rng(0).standard_normal((20, 8))
    assert measures.uniformity(h) == pytest.approx(0, abs=1e-6)
    assert measures.effective_rank(h) == pytest.approx(1, abs=1e-3)
    assert measures.spread(h) < 1e-5


@pytest.mark.parametrize("used", [1, 3, 8])
def test_the_rank_counts_the_directions_that_are_used_and_no_rotation_changes_it(used):
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    h = np.repeat(np.eye(8)[:used], 5, axis=0) @ turn
    assert measures.effective_rank(h) == pytest.approx(used)
    assert measures.effective_rank(h * 100) == pytest.approx(used)


def test_features_spread_evenly_have_a_spread_of_one():
    h = np.random.default_rng(0).standard_normal((4000, 32))
    assert measures.spread(h) == pytest.approx(1, abs=0.02)
    assert measures.spread(np.abs(h)) < 0.7  # half of the room is empty


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.full((3, 2), np.nan), np.zeros(3)])
def test_measures_refuse_what_is_no_stack_of_features(bad):
    for measure in (measures.uniformity, measures.effective_rank, measures.spread):
        with pytest.raises(ValueError, match="features must"):
            measure(bad)


# ── The probe, by both protocols ──────────────────────────────────────────────────────────────────


def objective(found: Any, h: Array, y: Array) -> float:
    """The loss that the probe minimizes, in float64 and by SciPy's logsumexp."""
    x = (h.astype(float) - found.mean) / found.std
    logits = x @ found.weights[:-1] + found.weights[-1]
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(losses.mean() + 0.5 * found.l2 * (found.weights[:-1] ** 2).sum())


@pytest.mark.parametrize("l2", [10.0, 1e-2, 1e-5])
def test_the_fit_ends_near_the_minimum_whatever_the_penalty(l2):
    """Newton's method on a small problem goes to the minimum; the fit may be 1e-3 above, relatively."""
    h, y = features(150)
    found = evaluation.fit_linear_probe(on_device(h), y, l2_values=(l2,), iterations=200)
    x = np.c_[(h.astype(float) - h.mean(0)) / (h.std(0) + 1e-6), np.ones(len(h))]  # (N,D+1)
    weights = np.zeros((x.shape[1], 3))
    free = np.r_[np.full(x.shape[1] - 1, l2), 1e-9]  # the intercept is not penalized
    for _ in range(30):
        logits = x @ weights
        p = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
        gradient = x.T @ (p - np.eye(3)[y]) / len(x) + free[:, None] * weights
        blocks = [[x.T @ (x * (p[:, a] * ((a == b) - p[:, b]))[:, None]) / len(x) + (a == b) * np.diag(free)
                   for b in range(3)] for a in range(3)]  # fmt: skip
        weights -= np.linalg.solve(np.block(blocks), gradient.T.ravel()).reshape(3, -1).T
    best = probe.LinearProbe(h.mean(0), h.std(0) + 1e-6, weights, l2)
    for name in ("mean", "std"):
        setattr(found, name, getattr(best, name))
    assert objective(best, h, y) - 1e-9 <= objective(found, h, y) <= (1 + 1e-3) * objective(best, h, y)


def test_features_are_turned_only_where_that_is_cheap(monkeypatch):
    """Turned or not, the minimum is the same; wide features are left as they are."""
    h, y = features(200)
    turned = evaluation.fit_linear_probe(on_device(h), y, l2_values=(0.01,), iterations=300)
    monkeypatch.setattr(probe, "WIDEST", 3)
    plain = evaluation.fit_linear_probe(on_device(h), y, l2_values=(0.01,), iterations=300)
    np.testing.assert_allclose(turned.weights, plain.weights, atol=0.02)
    assert not np.array_equal(turned.weights, plain.weights)


def test_the_transfer_protocol_tries_the_papers_45_penalties_from_strong_to_weak():
    values = np.array(probe.TRANSFER_L2_VALUES)
    np.testing.assert_allclose(values, np.logspace(-6, 5, 45)[::-1], rtol=1e-12)
    (h, y), (test_h, test_y) = features(150), features(400, seed=1)
    found = evaluation.fit_linear_probe(on_device(h), y, l2_values=probe.TRANSFER_L2_VALUES, iterations=200)
    assert found.l2 in probe.TRANSFER_L2_VALUES
    assert 1e-6 < found.l2 < 1e5  # neither end is best here
    assert found.accuracy(on_device(test_h), test_y) > 0.6


@pytest.mark.slow
def test_the_sweep_needs_fewer_evaluations_than_fits_from_zero_or_on_the_features_as_they_came(monkeypatch):
    """Warm starts and the turn to the principal axes each save some, and the penalty that is chosen stays near."""
    rng, y = np.random.default_rng(0), np.random.default_rng(0).integers(0, 3, 600)
    mixed = rng.standard_normal((24, 24)) * np.logspace(0, -1, 24)
    h = ((rng.standard_normal((3, 24))[y] + 2 * rng.standard_normal((600, 24))) @ mixed).astype(np.float32)
    calls: list[int] = []
    operation, fit = probe.value_and_vjp, probe._fit
    monkeypatch.setattr(probe, "value_and_vjp", lambda *a, **options: calls.append(1) or operation(*a, **options))

    def evaluations() -> int:
        calls.clear()
        evaluation.fit_linear_probe(on_device(h), y, l2_values=probe.TRANSFER_L2_VALUES, iterations=300)
        return len(calls)

    ours = evaluations()
    assert ours < 16 * 46  # for each of the 45 penalties and for all rows at the end, 16 at most
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "WIDEST", 3)
        assert ours < 0.7 * evaluations()
    monkeypatch.setattr(probe, "_fit", lambda x, y, start, l2, iterations: fit(x, y, 0 * start, l2, iterations))
    assert ours < 0.9 * evaluations()


def test_sgd_comes_close_to_the_minimum_that_lbfgs_finds():
    (h, y), (test_h, test_y) = features(300, alike=0.2), features(400, seed=1, alike=0.2)
    ours = sgd_probe.fit_sgd_probe(on_device(h), y, batch=64, lr=4.0)
    best = evaluation.fit_linear_probe(on_device(h), y, l2_values=(0.0,), iterations=300)
    for found in (ours, best):
        found.mean, found.std = h.mean(0), h.std(0) + 1e-6
    assert objective(ours, h, y) < objective(best, h, y) + 0.02
    assert abs((ours.predict(test_h) == test_y).mean() - (best.predict(test_h) == test_y).mean()) < 0.05


def test_sgd_makes_every_step_of_every_epoch_and_asks_for_the_features_of_each():
    h, y = features(50)
    asked: list[int] = []
    rates: list[float] = []
    step = sgd_probe.SGD.step

    class Spy(sgd_probe.SGD):
        def step(self, lr: float | None = None) -> None:
            rates.append(lr or 0.0)
            step(self, lr)

    def crops(epoch: int) -> Array:
        asked.append(epoch)
        return on_device(h)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sgd_probe, "SGD", Spy)
        found = sgd_probe.fit_sgd_probe(crops, y, epochs=4, batch=16, lr=0.1)
    assert asked == [0, 1, 2, 3]
    assert len(rates) == 4 * 3
    assert rates[0] == pytest.approx(0.1 * 16 / 256)  # no warm-up
    assert rates == sorted(rates, reverse=True)
    assert found.weights.shape == (7, 3)
    again = sgd_probe.fit_sgd_probe(on_device(h), y, epochs=4, batch=16, lr=0.1)
    assert np.array_equal(found.weights, again.weights)
