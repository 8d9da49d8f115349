"""Ranks that share a batch compute what one process computes. Here they are threads, without MPI."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import on_ranks

import minisimclr as ms
from minisimclr import ntxent, objectives
from minisimclr.collective import ALONE, add_up, all_rows, broadcast_text, share
from minisimclr.nn import BatchNorm2d
from minisimclr.ntxent import shared
from minisimclr.training import checkpoint, distributed
from minisimclr.training.batches import step_views, views_ahead
from minisimclr.training.config import Config, build_model
from minisimclr.training.run import environment_changes

pytestmark = pytest.mark.host("ranks are threads that exchange NumPy's arrays")

CONFIG = Config(size=8, batch=7, epochs=3, head_dim=8, lr=0.5, warmup=0.2, method="views=plain")  # 3 steps of 7 images
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3), np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    ms.set_threads(1)
    yield
    ms.set_threads(None)


def network(dtype: Any, method: str = "conv=slabs", ranks: Any = None, seed: int = 1, **options: Any) -> ms.SimCLR:
    """A small SimCLR whose ranks share each batch."""
    how = {"method": method, "rng": np.random.default_rng(seed), "ranks": ranks, **options}
    encoder = ms.resnet_small(base=2, **how)
    head = ms.ProjectionHead(encoder.features, 8, 6, **how)
    return ms.SimCLR(encoder, head, objective=objectives.named("nt_xent", ranks=ranks)).astype(dtype)


def gradient(model: ms.SimCLR) -> Any:
    return np.concatenate([p.grad.ravel() for p in model.parameters()])


def statistics(model: ms.SimCLR) -> Any:
    return np.concatenate([array for name, array in model.state_dict().items() if "running" in name])


def one_step(ranks: Any, views: Any, method: str, temperature: float) -> tuple[float, Any, Any, float]:
    """Loss, gradient, running statistics and top-1 of a step."""
    part = share(len(views[0]), ranks)
    model = network(views.dtype, method, None if ranks is ALONE else ranks)
    loss, za, zb = model.loss(views[0][part], views[1][part], temperature)
    loss.backward()
    add_up(ranks, [p.grad for p in model.parameters()])
    top1 = ntxent.contrastive_accuracy_on_device(za, zb, ranks)
    return loss.item(), gradient(model), statistics(model), float(top1)


# ── One step ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["conv=slabs", "conv=slabs,norm=plain"])
@pytest.mark.parametrize(("size", "images"), [(1, 5), (2, 8), (2, 5), (3, 7), (4, 7)])
def test_ranks_compute_the_loss_the_gradient_and_the_statistics_of_one_process(
    size: int, images: int, method: str
) -> None:
    views = np.random.default_rng(images).random((2, images, 8, 8, 3))
    loss, grad, running, top1 = one_step(ALONE, views, method, 0.2)
    for got in on_ranks(size, lambda ranks: one_step(ranks, views, method, 0.2)):
        assert abs(got[0] - loss) <= 1e-11 * abs(loss)
        np.testing.assert_allclose(got[1], grad, rtol=0, atol=1e-11 * np.abs(grad).max())
        np.testing.assert_allclose(got[2], running, rtol=0, atol=1e-11)
        assert got[3] == pytest.approx(top1)


@pytest.mark.parametrize("size", [2, 3])
def test_in_float32_ranks_agree_with_one_process_to_five_digits(size: int) -> None:
    """Of most batches: where a ReLU's input is 0 but for rounding, one opens it and the other does not (chapter 14)."""
    errors = []
    for seed in range(7):
        views = np.random.default_rng(seed).random((2, 9, 8, 8, 3)).astype(np.float32)
        one = one_step(ALONE, views, "conv=slabs", 0.5)
        got = on_ranks(size, lambda ranks, views=views: one_step(ranks, views, "conv=slabs", 0.5))[-1]
        assert got[0] == pytest.approx(one[0], rel=1e-5)
        np.testing.assert_allclose(got[2], one[2], rtol=0, atol=1e-5)
        errors.append(np.linalg.norm(got[1] - one[1]) / np.linalg.norm(one[1]))
    assert np.median(errors) < 1e-5


def test_every_rank_has_the_same_bits() -> None:
    views = np.random.default_rng(3).random((2, 7, 8, 8, 3)).astype(np.float32)
    first, *others = on_ranks(3, lambda ranks: one_step(ranks, views, "conv=slabs", 0.1))
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(other, first))


# ── The loss ──────────────────────────────────────────────────────────────────────────────────────


def loss_on(size: int, za: Any, zb: Any, temperature: float) -> tuple[float, Any, Any]:
    """Loss and gradient of all rows, computed by `size` ranks."""

    def task(ranks: Any) -> Any:
        part = share(len(za), ranks)
        return shared.value_and_grad(za[part], zb[part], temperature, ranks)

    found = on_ranks(size, task)
    assert len({float(loss) for loss, _, _ in found}) == 1
    dza, dzb = (np.concatenate([parts[k] for parts in found]) for k in (1, 2))
    return float(found[0][0]), dza, dzb


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 50.0])
@pytest.mark.parametrize(("size", "images"), [(2, 2), (2, 9), (3, 8), (4, 300)])
def test_the_loss_of_shares_agrees_with_the_exact_one(size: int, images: int, temperature: float) -> None:
    """Also for blocks of unequal height, where a diagonal at a wrong offset would mask a negative."""
    rng = np.random.default_rng(images)
    za = rng.standard_normal((images, 5))
    zb = za + 0.3 * rng.standard_normal((images, 5))
    loss, dza, dzb = ms.nt_xent_value_and_grad(za, zb, temperature, method="exact")
    got = loss_on(size, za, zb, temperature)
    assert got[0] == pytest.approx(loss, rel=1e-11)
    for a, b in zip(got[1:], (dza, dzb)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def test_the_loss_of_shares_in_float32_keeps_the_digits_of_views_that_nearly_agree() -> None:
    rng = np.random.default_rng(0)
    za = rng.standard_normal((127, 32))
    zb = za + 0.1 * rng.standard_normal((127, 32))
    loss, dza, _ = ms.nt_xent_value_and_grad(za, zb, 0.05, method="exact")
    got = loss_on(3, za.astype(np.float32), zb.astype(np.float32), 0.05)
    assert got[0] == pytest.approx(loss, rel=1e-5)
    assert np.linalg.norm(got[1] - dza) <= 1e-5 * np.linalg.norm(dza)


def test_the_loss_of_shares_in_float32_is_as_promised_for_rows_of_a_simplex() -> None:
    """Roundings that all have the same sign: tests/test_ntxent.py asks the same of one process."""
    z = (np.eye(127) - 1 / 127).astype(np.float32)
    for temperature in (0.05, 0.1):
        loss = np.log1p(252 * np.exp(-(1 + 1 / 126) / temperature))
        assert loss_on(2, z, z, temperature)[0] == pytest.approx(loss, rel=5e-6)


def test_a_row_of_zeros_has_gradient_zero_and_a_nan_reaches_every_rank() -> None:
    rng = np.random.default_rng(0)
    za, zb = rng.standard_normal((2, 6, 4))
    za[4] = 0
    loss, dza, _ = ms.nt_xent_value_and_grad(za, zb, 0.5, method="exact")
    got = loss_on(2, za, zb, 0.5)
    assert got[0] == pytest.approx(loss)
    np.testing.assert_allclose(got[1], dza, atol=1e-12)
    assert not got[1][4].any()
    zb[0, 1] = np.nan
    assert np.isnan(
        on_ranks(3, lambda r: float(shared.value_and_grad(za[share(6, r)], zb[share(6, r)], 0.5, r)[0]))
    ).all()


def test_the_top_1_of_shares_is_that_of_the_whole_batch() -> None:
    rng = np.random.default_rng(5)
    za = rng.standard_normal((11, 6))
    zb = za + 0.8 * rng.standard_normal((11, 6))
    whole = ms.contrastive_accuracy(za, zb)
    assert 0 < whole < 1
    for top1 in on_ranks(4, lambda r: shared.contrastive_accuracy(za[share(11, r)], zb[share(11, r)], r)):
        assert float(top1) == pytest.approx(whole)


# ── Batch norm ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["plain", "fused"])
def test_batch_norm_of_shares_is_that_of_all_rows_also_far_from_zero(method: str) -> None:
    rng = np.random.default_rng(0)
    x, g = 1000 + rng.standard_normal((10, 3)), rng.standard_normal((10, 3))

    def task(ranks: Any) -> Any:
        part = slice(0, 10) if ranks is None else slice((0, 2, 9)[ranks.rank], (2, 9, 10)[ranks.rank])  # one has a row
        layer = BatchNorm2d(3, method=method, ranks=ranks).astype(np.float64)
        inputs = ms.Tensor(x[part], requires_grad=True)
        y = layer(inputs, train=True)
        y.backward(g[part])
        return y.data, inputs.grad, layer.running_var, layer.weight.grad, layer.bias.grad

    y, dx, running, dscale, dshift = task(None)
    parts = on_ranks(3, task)
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), y, atol=1e-9)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), dx, atol=1e-9)
    for part in parts:
        np.testing.assert_allclose(part[2], running, rtol=1e-12)
    np.testing.assert_allclose(sum(p[3] for p in parts), dscale, atol=1e-9)  # of the rank's rows: the loop adds them up
    np.testing.assert_allclose(sum(p[4] for p in parts), dshift, atol=1e-9)


def test_local_batch_norm_normalizes_each_share_and_is_another_network() -> None:
    """Each rank then normalizes as one process would that has its share alone."""
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)

    def task(ranks: Any) -> Any:
        return BatchNorm2d(3, ranks=None)(ms.Tensor(x[share(8, ranks)]), train=True).data

    apart = np.concatenate([BatchNorm2d(3)(ms.Tensor(half), train=True).data for half in (x[:4], x[4:])])
    np.testing.assert_array_equal(np.concatenate(on_ranks(2, task)), apart)
    together = BatchNorm2d(3)(ms.Tensor(x), train=True).data
    assert np.abs(apart - together).max() > 0.1

    def layers(config: Config) -> list[Any]:
        def norms(ranks: Any) -> list[bool]:
            model = build_model(config, ranks=ranks)
            loss = model.objective.keywords["ranks"]
            return [*(m.ranks is ranks for _, m in model.modules() if isinstance(m, BatchNorm2d)), loss is ranks]

        return on_ranks(2, norms)[0]

    assert all(layers(CONFIG))
    assert layers(dataclasses.replace(CONFIG, batch_norm="local"))[-1]
    assert not any(layers(dataclasses.replace(CONFIG, batch_norm="local"))[:-1])


# ── Views ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("form", "close"), [("plain", 0), ("batched", 1e-5)])
def test_the_views_of_a_share_are_those_of_the_whole_batch(form: str, close: float) -> None:
    config = dataclasses.replace(CONFIG, method=f"views={form}")
    whole = step_views(config, IMAGES)(2)
    parts = on_ranks(3, lambda ranks: step_views(config, IMAGES, None, share(7, ranks))(2))
    for k in (0, 1):
        np.testing.assert_allclose(np.concatenate([part[k] for part in parts]), whole[k], rtol=0, atol=close)


@pytest.mark.slow
def test_workers_make_the_views_of_a_share() -> None:
    with views_ahead(CONFIG, IMAGES, range(3), 2, share=slice(2, 5)) as views:
        for step in range(3):
            for got, expected in zip(views(step), step_views(CONFIG, IMAGES)(step)):
                np.testing.assert_array_equal(got, expected[2:5])


@pytest.mark.parametrize(("count", "size"), [(7, 3), (8, 4), (4, 4), (1000, 7)])
def test_shares_cover_the_batch_in_order_and_differ_by_one_image_at_most(count: int, size: int) -> None:
    parts = [range(count)[part] for part in on_ranks(size, lambda ranks: share(count, ranks))]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# ── The collectives ───────────────────────────────────────────────────────────────────────────────


def test_rows_of_different_number_are_joined_in_the_order_of_the_ranks() -> None:
    rows = [np.full((n, 2), n) for n in (3, 0, 1)]
    for rank, (joined, own) in enumerate(on_ranks(3, lambda ranks: all_rows(ranks, rows[ranks.rank]))):
        np.testing.assert_array_equal(joined, np.concatenate(rows))
        np.testing.assert_array_equal(joined[own], rows[rank])


def test_gradients_are_added_up_and_divided_by_nothing() -> None:
    def task(ranks: Any) -> Any:
        arrays = [np.full((2, 3), 1.0 + ranks.rank), np.full(4, 10.0 * ranks.rank)]
        add_up(ranks, arrays)
        return arrays

    for matrix, vector in on_ranks(3, task):
        np.testing.assert_array_equal(matrix, np.full((2, 3), 6.0))
        np.testing.assert_array_equal(vector, np.full(4, 30.0))


def test_a_text_comes_from_rank_0() -> None:
    texts = ["short", "a longer one", ""]
    assert on_ranks(3, lambda ranks: broadcast_text(ranks, texts[ranks.rank])) == ["short"] * 3


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────


def weights(run: ms.Run) -> dict[str, str]:
    """A digest of each array: where bytes differ, pytest would look for the difference for minutes."""
    return {name: hashlib.sha256(array).hexdigest() for name, array in run.model.state_dict().items()}


def distance(one: ms.Run, other: ms.Run) -> float:
    a, b = one.model.state_dict(), other.model.state_dict()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_run_on_three_ranks_agrees_with_that_of_one_process(optimizer: str) -> None:
    config = dataclasses.replace(CONFIG, optimizer=optimizer, temperature=0.5)
    one = ms.pretrain(config, IMAGES)
    runs = on_ranks(3, lambda ranks: ms.pretrain(config, IMAGES, ranks=ranks))
    assert all(weights(run) == weights(runs[0]) for run in runs)
    assert distance(runs[0], one) < 1e-4
    for ours, theirs in zip(runs[2].history, one.history):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["gradient"] == pytest.approx(theirs["gradient"], rel=1e-3)
        assert ours["top1"] == pytest.approx(theirs["top1"])


@pytest.mark.parametrize(
    ("size", "steps"), [(3, 6), *(pytest.param(size, 20, marks=pytest.mark.slow) for size in (2, 3, 4))]
)
def test_several_steps_in_float64_agree_to_eight_digits(size: int, steps: int) -> None:
    config = dataclasses.replace(CONFIG, epochs=20, temperature=0.5)

    def train(ranks: Any) -> Any:
        model = network(np.float64, ranks=None if ranks is ALONE else ranks)
        optimizer, views = ms.LARS(model.parameters(), 0.03), step_views(config, IMAGES, None, share(7, ranks))
        for step in range(steps):
            loss, _, _ = model.loss(*(view.astype(np.float64) for view in views(step)), config.temperature)
            optimizer.backward(loss, lambda gradients: add_up(ranks, gradients))
            optimizer.step()
            optimizer.zero_grad()
        return np.concatenate([p.data.ravel() for p in model.parameters()]), statistics(model)

    one = train(ALONE)
    for got in on_ranks(size, train):
        for a, b in zip(got, one):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * np.abs(b).max())


def test_ranks_with_other_first_weights_take_over_those_of_rank_0() -> None:
    def task(ranks: Any) -> Any:
        model = network(np.float32, seed=ranks.rank)
        optimizer = ms.SGD(model.parameters(), 0.1)
        optimizer.velocity[0][...] = ranks.rank
        run = ms.Run(CONFIG, model, steps=5 - ranks.rank)
        distributed.take_over(ranks, run, optimizer)
        return weights(run), optimizer.velocity[0].max(), run.steps

    first, *others = on_ranks(3, task)
    assert first[0] == weights(ms.Run(CONFIG, network(np.float32, seed=0)))
    assert others == [first, first]
    assert first[1:] == (0.0, 5)


def test_ranks_that_would_not_train_the_same_are_refused() -> None:
    def begin(settings: Any, images: Any) -> Any:
        def task(ranks: Any) -> Any:
            with pytest.raises(ValueError, match="rank") as caught:
                ms.pretrain(settings[ranks.rank], images[ranks.rank], ranks=ranks)
            return str(caught.value)

        said = set(on_ranks(3, task))
        assert len(said) == 1  # all ranks say the same, so one of them is enough
        return said.pop()

    other = dataclasses.replace(CONFIG, temperature=0.2)
    assert begin([CONFIG, CONFIG, other], [IMAGES] * 3).startswith("rank 2 has other settings than rank 0")
    assert begin([CONFIG] * 3, [IMAGES, IMAGES[::-1], IMAGES]).startswith("rank 1 has other images than rank 0")
    few = dataclasses.replace(CONFIG, batch=2)
    assert begin([few] * 3, [IMAGES] * 3) == "a batch of 2 has no image for each of 3 ranks; use a larger --batch"


def test_one_rank_writes_and_the_checkpoint_is_that_of_one_process_but_for_the_number_of_ranks(tmp_path: Path) -> None:
    def task(ranks: Any) -> Any:
        return ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "many", ranks=ranks).folder

    folders = on_ranks(2, task)
    assert folders == [tmp_path / "many", None]
    ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "one")
    (many, about_many), (one, about_one) = (checkpoint.load(tmp_path / n / "checkpoint.npz") for n in ("many", "one"))
    assert {name: (a.shape, a.dtype) for name, a in many.items()} == {
        name: (a.shape, a.dtype) for name, a in one.items()
    }
    assert about_many.pop("environment") == about_one.pop("environment") | {"ranks": 2}
    assert about_many == about_one
    assert environment_changes(tmp_path / "many", CONFIG, 2) == []
    assert environment_changes(tmp_path / "many", CONFIG) == ["ranks was 2, is 1"]
    assert ms.load_run(tmp_path / "many").steps == 3


def test_a_run_resumes_on_as_many_ranks_bit_for_bit_and_on_another_number_nearly(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_two(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 1:
            raise Stop

    def train(size: int, folder: str | None, resume: bool, progress: Any = lambda metrics: None) -> ms.Run:
        def task(ranks: Any) -> Any:
            where = None if folder is None else tmp_path / folder
            told = progress if ranks.rank == 0 else lambda metrics: None  # the others hear of it when they wait for it
            return ms.pretrain(CONFIG, IMAGES, folder=where, resume=resume, progress=told, ranks=ranks)

        return on_ranks(size, task)[0]

    whole = train(2, None, resume=False)
    for name in ("a", "b"):
        with pytest.raises(Stop):
            train(2, name, resume=False, progress=stop_after_two)
    assert ms.load_run(tmp_path / "a").steps == 2
    assert weights(train(2, "a", resume=True)) == weights(whole)
    assert 0 < distance(train(3, "b", resume=True), whole) < 1e-4


def test_what_a_rank_sends_in_a_step_is_what_the_model_of_the_cost_counts() -> None:
    """Chapter 14: the gradients, the unit rows and their levels, and two short messages for each batch norm."""

    def task(ranks: Any) -> Any:
        model = network(np.float32, ranks=ranks)
        views = np.zeros((2, 4, 8, 8, 3), np.float32)
        before = ranks.sent
        loss, _, _ = model.loss(*views)
        loss.backward()
        add_up(ranks, [p.grad for p in model.parameters()])
        return ranks.sent - before, model

    sent, model = on_ranks(2, task)[0]
    channels = [m.weight.shape[0] for _, m in model.modules() if isinstance(m, BatchNorm2d)]
    parameters = sum(p.data.size for p in model.parameters())
    norms = sum(2 * 3 * 8 * c for c in channels)  # two messages of three float64 for each channel
    loss = 4 * 2 * 6 * 4 + 4 * 2 * 4 + 2 * 8 + 8  # u of 4 images, their levels, two numbers of rows, the sum
    assert sent == 4 * parameters + norms + loss
