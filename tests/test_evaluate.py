"""Evaluation: nearest neighbours and the linear probe on made points, and what they may not depend on."""

from __future__ import annotations

import math
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device

from minisimclr import evaluation as evaluate
from minisimclr.data import Dataset
from minisimclr.evaluation import probe
from minisimclr.evaluation.embed import embed
from minisimclr.evaluation.knn import unit_rows
from minisimclr.evaluation.probe import LinearProbe
from minisimclr.protocols.compare import colour_statistics, compare
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training.config import Config, build_model
from minisimclr.training.run import Run
from minisimclr.views import to_float

Array = np.ndarray


def nearest(train_h: Array, test_h: Array, k: int) -> tuple[Array, Array]:
    return evaluate.nearest(*on_device([train_h, test_h]), k)


def knn_accuracy(train_h: Array, train_y: Array, test_h: Array, test_y: Array, **options: Any) -> float:
    return evaluate.knn_accuracy(on_device(train_h), train_y, on_device(test_h), test_y, **options)


def linear_probe(train_h: Array, train_y: Array, test_h: Array, test_y: Array, **options: Any) -> float:
    return evaluate.linear_probe(on_device(train_h), train_y, on_device(test_h), test_y, **options)


def fit_linear_probe(h: Array, y: Array, **options: Any) -> LinearProbe:
    return evaluate.fit_linear_probe(on_device(h), y, **options)


def directions(*degrees: float) -> Array:
    """Points on the unit circle: their cosine similarity is the cosine of the angle between them."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], np.float32)


def clusters(n: int, classes: int = 3, spread: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
    """Points around one corner per class, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return (np.eye(classes)[y] + spread * rng.standard_normal((n, classes))).astype(np.float32), y


# ── Nearest neighbours ────────────────────────────────────────────────────────────────────────────


def test_nearest_are_those_of_largest_cosine_nearest_first():
    indices, similarities = nearest(directions(0, 90, 20, 45), directions(30, 80), 3)
    assert indices.tolist() == [[2, 3, 0], [1, 3, 2]]
    angles = np.array([[10, 15, 30], [10, 35, 60]])
    np.testing.assert_allclose(similarities, np.cos(np.radians(angles)), rtol=1e-6)


def test_nearest_are_those_of_largest_cosine_however_long_they_are():
    long = np.float32([[0.1], [100], [1], [10]])
    assert nearest(long * directions(0, 90, 20, 45), directions(30, 80), 3)[0].tolist() == [[2, 3, 0], [1, 3, 2]]


def test_one_near_neighbour_outvotes_two_far_ones_if_the_temperature_is_low():
    """Votes weigh exp(s/τ): at 10°, against two at 60°."""
    train_h, train_y = directions(10, 60, -60), np.array([0, 1, 1])
    test_h, test_y = directions(0), np.array([0])
    s_near, s_far = math.cos(math.radians(10)), math.cos(math.radians(60))
    even = (s_near - s_far) / math.log(2)  # the temperature at which both sides weigh the same
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=3, temperature=0.98 * even) == 1
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=3, temperature=1.02 * even) == 0
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=1, temperature=1.02 * even) == 1


def test_the_nearest_alone_decides_at_a_temperature_at_which_votes_would_overflow():
    """e^(s/τ) = e^1000 is no number; a vote is taken relative to that of the nearest."""
    train_h, train_y = directions(1, 30, 31, 32), np.array([0, 1, 1, 1])
    assert knn_accuracy(train_h, train_y, directions(0), np.array([0]), k=4, temperature=1e-3) == 1
    assert knn_accuracy(train_h, train_y, directions(40), np.array([1]), k=4, temperature=1e-3) == 1


def test_a_tie_goes_to_the_first_class():
    train_h, train_y = directions(0, 0, 0, 0), np.array([2, 1, 2, 1])
    assert knn_accuracy(train_h, train_y, directions(0), np.array([1]), k=4) == 1


def test_neighbours_and_votes_equal_the_loops_over_all_pairs():
    """One test row and one training row at a time, in float64; some rows are there twice, under two labels."""
    rng = np.random.default_rng(0)
    once = rng.standard_normal((12, 4)).astype(np.float32)
    train_h, train_y = np.concatenate([once, once]), np.concatenate([np.arange(12) % 3, (np.arange(12) + 1) % 3])
    test_h, test_y = rng.standard_normal((20, 4)).astype(np.float32), rng.integers(0, 3, 20)
    indices, _ = nearest(once, test_h, 5)
    right = 0
    for row, (h, label) in enumerate(zip(test_h.astype(float), test_y)):
        cosine = [h @ other / np.linalg.norm(h) / np.linalg.norm(other) for other in once.astype(float)]
        first = sorted(range(12), key=lambda i: -cosine[i])
        assert indices[row].tolist() == first[:5]
        votes = [0.0, 0.0, 0.0]
        for i in first[:2]:  # each comes with its double: four neighbours
            votes[train_y[i]] += math.exp(cosine[i] / 0.1)
            votes[train_y[i + 12]] += math.exp(cosine[i] / 0.1)
        right += max(range(3), key=lambda c: round(votes[c] / max(votes), 6)) == label  # the first of equals
    assert knn_accuracy(train_h, train_y, test_h, test_y, k=4) == right / 20


def test_k_may_be_all_rows():
    h, y = clusters(12)
    assert knn_accuracy(h, y, h, y, k=12) == 1


@pytest.mark.parametrize("k", [0, -1, 13])
def test_k_out_of_range_is_refused(k):
    h, y = clusters(12)
    with pytest.raises(ValueError, match=f"k must lie in 1…12, the number of training rows, not {k}"):
        knn_accuracy(h, y, h, y, k=k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    h, y = clusters(12)
    with pytest.raises(ValueError, match="temperature must be positive"):
        knn_accuracy(h, y, h, y, k=1, temperature=temperature)


def test_the_length_of_a_row_does_not_matter():
    rng = np.random.default_rng(0)
    (train_h, train_y), (test_h, test_y) = clusters(60, spread=0.6), clusters(40, spread=0.6, seed=1)
    scaled = [h * 2.0 ** rng.integers(-20, 20, (len(h), 1)) for h in (train_h, test_h)]
    assert knn_accuracy(scaled[0], train_y, scaled[1], test_y) == knn_accuracy(train_h, train_y, test_h, test_y) < 1


def test_a_row_too_short_to_be_squared_still_has_a_direction():
    """In float32, 1e-30 squared is 0."""
    bank = np.array([[1e-30, 0], [0, 1]], np.float32)
    assert knn_accuracy(bank, np.array([0, 1]), np.array([[0.1, 1]], np.float32), np.array([1]), k=1) == 1
    lengths = np.linalg.norm(unit_rows(np, np.array([[3e-23, 4e-23], [1e-25, 0], [3e30, 4e30], [0, 0]])), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0], rtol=1e-6)


def test_a_row_of_zeros_is_harmless():
    h, y = clusters(12)
    h[3] = 0
    assert 0 <= knn_accuracy(h, y, h, y, k=3) <= 1


def test_a_class_that_training_never_showed_is_simply_missed():
    h, y = clusters(12)
    assert knn_accuracy(h, y, h, y + 1, k=1) == 0


@pytest.mark.parametrize("score", [knn_accuracy, linear_probe])
def test_accuracy_is_over_all_rows_at_once(score):
    """1,001 rows of which the last is wrong: an average of the accuracies of 1,000 and of 1 would say one half."""
    train_h, train_y = clusters(60)
    test_h, test_y = clusters(1001, spread=0.0)
    test_y = test_y.copy()
    test_y[-1] = (test_y[-1] + 1) % 3
    assert score(train_h, train_y, test_h, test_y) == 1000 / 1001


# ── The linear probe ──────────────────────────────────────────────────────────────────────────────


def test_the_probe_separates_what_can_be_separated():
    (train_h, train_y), (test_h, test_y) = clusters(90, classes=5), clusters(50, classes=5, seed=1)
    assert linear_probe(train_h, train_y, test_h, test_y) == 1


@pytest.mark.parametrize("count", [60, 2300])  # the second: two parts of 1,000 rows and one of 300
def test_the_probe_finds_the_minimum_of_its_loss(count):
    """The gradient of mean cross-entropy + ½·l2·|W|², written out in float64, is 0 where it ends; b is free."""
    h, y = clusters(count, spread=0.7)
    y = (y + (np.arange(count) > 1500)) % 3  # the parts differ in what belongs to a corner
    probe = fit_linear_probe(h, y, l2_values=(0.1,), iterations=200)
    x = (h.astype(float) - h.mean(axis=0, dtype=float)) / h.std(axis=0, dtype=float)
    logits = x @ probe.weights[:-1] + probe.weights[-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[y]
    np.testing.assert_allclose(x.T @ p / count + 0.1 * probe.weights[:-1], 0, atol=1e-4)
    np.testing.assert_allclose(p.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize(("count", "w", "rounding"), [(20, 0.5, 1e-4), (1300, 0.5, 1e-4), (20, 3.0, 1e-2)])
def test_the_weight_that_balances_its_penalty_has_a_closed_form(count, w, rounding):
    """x = ±1, a class each: log(1 + e^(−2w)) + l2·w² is least where l2·w = σ(−2w). 2,600 rows come in three parts."""
    h, y = np.repeat(np.float32([[-1], [1]]), count, axis=0), np.repeat([0, 1], count)
    probe = fit_linear_probe(h, y, l2_values=(1 / (1 + math.exp(2 * w)) / w,))
    np.testing.assert_allclose(probe.weights, [[-w, w], [0, 0]], atol=rounding)


def test_logits_far_apart_overflow_nothing_and_a_row_far_out_is_fitted_too():
    """The loss of a row is shifted by its largest logit: e^1000 is no number."""
    h, y = clusters(90, classes=2)
    h[0] = 1e4 * (h[1] - h[0])  # wrong by thousands, at first
    loss_of: list[float] = []
    operation = probe.value_and_vjp

    def spy(xp: Any, logits: Array, **settings: Any) -> Any:
        value, vjp = operation(xp, logits, **settings)
        loss_of.append(float(value))
        return value, vjp

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "value_and_vjp", spy)
        fitted = fit_linear_probe(h, y, l2_values=(1e-4,))
    assert np.isfinite(loss_of).all()
    assert np.isfinite(fitted.weights).all()
    far = probe.LinearProbe(*on_device((np.zeros(2, np.float32), np.ones(2, np.float32))), 1e4 * np.eye(3)[:, :2], 0.0)
    assert far.accuracy(on_device(h[1:]), y[1:]) == 1


def test_of_penalties_that_tie_the_strongest_is_taken():
    """Their order is that of L2_VALUES, from strong to weak, and only a better one replaces what was found."""
    h, y = clusters(90)
    assert fit_linear_probe(h, y).l2 == max(probe.L2_VALUES) == probe.L2_VALUES[0]


def test_a_tie_goes_to_the_first_penalty_in_whatever_order_they_come():
    h, y = clusters(90)
    for values in ((0.01, 0.1), (0.1, 0.01), (0.1, 1.0, 0.1)):
        assert fit_linear_probe(h, y, l2_values=values).l2 == values[0]


def test_the_penalty_is_chosen_on_training_rows_alone():
    """Nothing from the test set enters the fit, and the fit is the same every time."""
    (train_h, train_y), (test_h, test_y) = clusters(90, spread=0.8), clusters(50, spread=0.8, seed=1)
    probe = fit_linear_probe(train_h, train_y)
    right = probe.accuracy(on_device(test_h), test_y)
    assert linear_probe(train_h, train_y, test_h, test_y) == right
    wrong = (test_y + 1) % 3
    assert linear_probe(train_h, train_y, test_h, wrong) == probe.accuracy(on_device(test_h), wrong)
    far = 1000 * test_h[:1]
    assert linear_probe(train_h, train_y, far, test_y[:1]) == probe.accuracy(on_device(far), test_y[:1])
    assert np.array_equal(fit_linear_probe(train_h, train_y).weights, probe.weights)


def test_without_features_the_probe_learns_the_class_frequencies():
    """Without features only b is left, and nothing pulls it to 0: P = 3/4 and 1/4."""
    probe = fit_linear_probe(np.zeros((80, 2)), np.arange(80) % 4 // 3, l2_values=(1.0,))
    p = np.exp(probe.weights[-1]) / np.exp(probe.weights[-1]).sum()
    np.testing.assert_allclose(p, [0.75, 0.25], atol=1e-3)


def test_a_prediction_does_not_depend_on_the_other_test_rows():
    (train_h, train_y), (test_h, test_y) = clusters(90, spread=0.8), clusters(50, spread=0.8, seed=1)
    probe = fit_linear_probe(train_h, train_y)
    each = [probe.accuracy(on_device(test_h[k : k + 1]), test_y[k : k + 1]) for k in range(50)]
    assert 0 < np.mean(each) < 1
    assert probe.accuracy(on_device(test_h), test_y) == pytest.approx(np.mean(each))


def test_test_rows_all_on_one_side_belong_to_the_class_of_that_side():
    """If the test rows were standardized by their own mean, half of them would change sides."""
    h = np.array([[-1.0], [1.0]] * 30)
    far = np.linspace(1, 3, 20)[:, None]
    assert linear_probe(h, np.arange(60) % 2, far, np.ones(20, int)) == 1


def test_a_penalty_that_helps_less_changes_nothing():
    rng = np.random.default_rng(0)
    h, y = clusters(200, classes=2, spread=0.5)
    noisy = np.concatenate([h, rng.standard_normal((200, 300))], axis=1)
    one, both = (fit_linear_probe(noisy, y, l2_values=values) for values in ((1.0,), (1.0, 1e-6)))
    assert np.array_equal(one.weights, both.weights)


def test_the_penalty_that_helps_held_out_rows_is_chosen():
    """More columns of noise than rows: the strong penalty generalizes, the weak one fits the noise."""
    rng = np.random.default_rng(0)
    h, y = clusters(200, classes=2, spread=0.5)
    noisy = np.concatenate([h, rng.standard_normal((200, 300))], axis=1)
    assert fit_linear_probe(noisy, y, l2_values=(1.0, 1e-6)).l2 == 1.0
    tried: list[float] = []
    original = probe._fit

    def spy(x: Array, y: Array, start: Array, l2: float, iterations: int) -> Array:
        tried.append(l2)
        assert len(x) == (180 if len(tried) < 3 else 200)  # chosen on nine tenths, fitted on all
        return original(x, y, start, l2, iterations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "_fit", spy)
        fit_linear_probe(noisy, y, l2_values=(1.0, 1e-6))
    assert tried == [1.0, 1e-6, 1.0]


def test_constant_columns_are_harmless_and_scales_do_not_matter():
    (train_h, train_y), (test_h, test_y) = clusters(90, spread=0.5), clusters(50, spread=0.5, seed=1)
    plain = linear_probe(train_h, train_y, test_h, test_y)
    train_c, test_c = (np.concatenate([h, np.full((len(h), 2), 7.0)], axis=1) for h in (train_h, test_h))
    assert linear_probe(train_c, train_y, test_c, test_y) == pytest.approx(plain, abs=0.05)
    scales = np.array([1e-2, 1.0, 1e4])
    assert linear_probe(train_h * scales, train_y, test_h * scales, test_y) == pytest.approx(plain, abs=0.05)


# ── Both ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("score", [knn_accuracy, linear_probe])
@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (lambda a, y, b, z: (a[:, :2], y, b, z), r"one D, not \(12, 2\) and \(9, 3\)"),
        (lambda a, y, b, z: (a[0], y, b, z), r"must be \(N,D\)"),
        (lambda a, y, b, z: (a, y[:-1], b, z), r"train_y must have the shape \(12,\)"),
        (lambda a, y, b, z: (a, y, b, z[:-1]), r"test_y must have the shape \(9,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(score, cut, says):
    with pytest.raises(ValueError, match=says):
        score(*cut(*clusters(12), *clusters(9)))


# ── Embedding ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """An untrained run with an encoder of 4 channels, whose running statistics have moved."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))
    config = Config(size=8, head_dim=8, device=devices.DEVICE)
    model = build_model(config).to(devices.DEVICE)
    model(to_float(on_device(images(8, seed=1))), train=True)
    return Run(config, model)


def images(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)


def test_embed_gives_h_and_z_of_every_image_and_does_not_touch_the_model(run):
    before = run.model.state_dict()
    h, z = embed(run.model, images(7))
    assert (h.shape, z.shape) == ((7, 16), (7, 8))
    assert {h.dtype, z.dtype} == {np.dtype(np.float32)}
    expected = run.model(to_float(on_device(images(7))))
    np.testing.assert_allclose(h, host(expected[0].data), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(z, host(expected[1].data), rtol=1e-4, atol=1e-6)
    assert all(np.array_equal(array, before[name]) for name, array in run.model.state_dict().items())


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_embed_does_not_depend_on_the_batch_size(run, batch):
    for ours, theirs in zip(embed(run.model, images(7), batch=batch), embed(run.model, images(7))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_last_smaller_batch_is_embedded_too(run):
    assert [len(part) for part in embed(run.model, images(7), batch=3)] == [7, 7]


def test_embed_sends_a_batch_and_fetches_its_h_and_z(run):
    with devices.transfers() as crossed:
        embed(run.model, images(7), batch=3)
    assert crossed == {"to the device": 3, "get": 6}


def test_a_device_embeds_as_a_processor_does(run):
    h, z = embed(run.model, images(7))
    for ours, theirs in zip((h, z), embed(run.model.to("cpu"), images(7))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_embedding_leaves_the_model_alone(run):
    before = run.model.state_dict()
    embed(run.model, images(7), batch=2)
    assert all(np.array_equal(array, before[name]) for name, array in run.model.state_dict().items())


def test_another_head_changes_nothing_in_h(run):
    before, (h, z) = run.model.state_dict(), embed(run.model, images(7))
    run.model.load_state_dict({name: array + 0.1 * name.startswith("head") for name, array in before.items()})
    other_h, other_z = embed(run.model, images(7))
    run.model.load_state_dict(before)
    assert np.array_equal(h, other_h)
    assert not np.allclose(z, other_z)


def test_colour_statistics_are_means_and_deviations_of_the_channels():
    plain = np.zeros((1, 2, 2, 3), np.uint8)
    plain[0, :, 0, 1], plain[..., 2] = 255, 51
    np.testing.assert_allclose(colour_statistics(plain), [[0, 0.5, 0.2, 0, 0.5, 0]], atol=1e-7)


def test_compare_scores_every_way_of_seeing_on_every_split(run):
    """Two classes that differ in colour alone: whoever sees colours tells them apart."""

    def dataset(n: int, seed: int) -> Dataset:
        labels = np.arange(n) % 2
        return Dataset(images(n, seed) // 4 + (labels * 150).astype(np.uint8)[:, None, None, None], labels, ("a", "b"))

    told: list[str] = []
    scores = compare(run, dataset(30, 0), {"test": dataset(12, 1), "unseen": dataset(8, 2)}, k=3, progress=told.append)
    assert (
        [score.name for score in scores]
        == told
        == ["raw pixels", "colour statistics", "untrained encoder, h", "SimCLR, h", "SimCLR, z"]
    )
    for score in scores:
        assert score.knn.keys() == score.probe.keys() == {"test", "unseen"}
    assert scores[1].probe == {"test": 1, "unseen": 1}


@pytest.mark.parametrize("judge", [knn_accuracy, linear_probe])
def test_a_row_without_a_label_or_with_nan_never_takes_part(judge):
    """−1, with which some sets mark what has no label, would be the last class; NaN would be near to nothing."""
    h, y = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32), np.arange(40) % 2
    for bad_h, bad_y in [(h, np.where(y == 1, -1, y)), (np.where(h > 1, np.float32(np.nan), h), y)]:
        with pytest.raises(ValueError, match=r"_y|_h"):
            judge(bad_h, bad_y, h, y)
        with pytest.raises(ValueError, match=r"_y|_h"):
            judge(h, y, bad_h, bad_y)
