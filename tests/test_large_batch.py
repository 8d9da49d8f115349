"""Gradient caching: a batch in chunks has the loss and the gradient of the whole batch, or says what differs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import devices
import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed

from minisimclr import objectives, ops
from minisimclr.cli import main
from minisimclr.data.doodles import draw_doodles
from minisimclr.engine.autograd import Tensor, no_grad
from minisimclr.ntxent import contrastive_accuracy, nt_xent
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.simclr import ProjectionHead, SimCLR
from minisimclr.training import batches, large_batch, precision
from minisimclr.training.config import Config, build_model
from minisimclr.training.large_batch import even_parts, loss_by_chunks, remarks, two_views_late
from minisimclr.training.run import Interrupted, NonFiniteError, load_run
from minisimclr.training.session import READ_EVERY
from minisimclr.training.train import pretrain
from minisimclr.views.augment import two_views

CONFIG = Config(size=8, batch=9, chunk=4, epochs=2, head_dim=8, warmup=0.2, device=devices.DEVICE)  # chunks of 3
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 10, 12, 3), np.uint8)
STEPS = 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32; each step is read, on a GPU too."""
    monkeypatch.setitem(READ_EVERY, "cuda", 1)
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


def model_and_views(dtype: Any = np.float64, n: int = 7, batch_norm: bool = True) -> tuple[SimCLR, Any, Any]:
    """A network with running statistics of its own, and the views of n images."""
    encoder = resnet_small(base=4)
    model = placed(SimCLR(encoder, ProjectionHead(16, 16, 8, batch_norm=batch_norm)).astype(dtype))
    images, _, _ = draw_doodles(n, seed=0, size=16)
    a, b = (view.astype(dtype) for view in two_views(images, np.random.default_rng(0), 16, min_area=0.3))
    a, b = on_device((a, b))
    with no_grad():
        for _ in range(5):
            model.loss(a, b)
    return model, a, b


def one_graph(model: SimCLR, a: Any, b: Any, temperature: float = 0.1, train: bool = False) -> Tensor:
    """The loss of the whole batch in one graph, from the definition."""
    _, z = model(devices.xp().concatenate([a, b]), train)
    return nt_xent(z[: len(a)], z[len(a) :], temperature)


def gradient(model: SimCLR, loss: Tensor, seed: Any = None) -> Any:
    """All parameters' gradients as one row, and none afterwards."""
    loss.backward(seed)
    row = np.concatenate([host(p.grad).ravel() for p in model.parameters()])
    model.zero_grad()
    return row


def distance(x: Any, y: Any) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def statistics(model: SimCLR) -> dict[str, Any]:
    return {name: array for name, array in model.state_dict().items() if "running" in name}


# ── The loss and its gradient ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("chunk", "batch_norm"), [(1, True), (3, True), (6, False), (100, True)])
def test_with_running_statistics_chunks_and_one_graph_agree_to_the_last_digits(chunk, batch_norm):
    """In float64, for chunks that divide the batch and such that do not; a head without batch norm, too."""
    model, a, b = model_and_views(batch_norm=batch_norm)
    whole = one_graph(model, a, b)
    loss, za, zb = loss_by_chunks(model, a, b, chunk=chunk, train=False)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    with no_grad():
        _, z = model(devices.xp().concatenate([a, b]))
    assert_close(devices.xp().concatenate([za, zb]), z.data, rtol=1e-12)
    assert distance(gradient(model, loss), gradient(model, whole)) < 1e-12


def test_in_float32_chunks_and_one_graph_agree_to_rounding():
    """BLAS rounds a product of another length otherwise. (A ReLU at its kink would answer with a jump.)"""
    model, a, b = model_and_views(np.float32, n=12)
    whole, (loss, _, _) = one_graph(model, a, b), loss_by_chunks(model, a, b, chunk=5, train=False)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    assert loss.dtype == np.float32
    assert distance(gradient(model, loss), gradient(model, whole)) < 1e-5


def test_the_gradient_agrees_with_finite_differences():
    """Along a random direction of all parameters, with batch norm that takes the statistics of each chunk."""
    model, a, b = model_and_views()
    parameters = model.parameters()
    rng = np.random.default_rng(1)
    direction = [on_device(rng.standard_normal(p.shape)) for p in parameters]

    def along(t: float) -> float:
        for p, start, d in zip(parameters, starts, direction):
            p.data = start + t * d
        return loss_by_chunks(model, a, b, 0.5, chunk=3)[0].item()

    starts, h = [p.data.copy() for p in parameters], 1e-6
    quotient = (along(h) - along(-h)) / (2 * h)
    along(0.0)
    slope = gradient(model, loss_by_chunks(model, a, b, 0.5, chunk=3)[0]) @ np.concatenate(
        [host(d).ravel() for d in direction]
    )
    assert slope == pytest.approx(quotient, rel=1e-5)


def test_in_training_each_chunk_is_normalized_by_its_own_statistics_both_views_together():
    """The loss is NT-Xent of all embeddings, each computed as if its chunk were a batch, and so is the gradient."""
    xp = devices.xp()
    model, a, b = model_and_views()
    parts = even_parts(7, 3)  # 3, 2 and 2 images
    zs = [model(xp.concatenate([a[part], b[part]]), train=True)[1] for part in parts]
    za, zb = zip(*((z[: len(z.data) // 2], z[len(z.data) // 2 :]) for z in zs))
    explicit = nt_xent(ops.concatenate(*za), ops.concatenate(*zb), 0.2)
    loss, _, _ = loss_by_chunks(model, a, b, 0.2, chunk=3)
    assert loss.item() == pytest.approx(explicit.item(), rel=1e-12)
    expected = gradient(model, explicit)
    assert distance(gradient(model, loss), expected) < 1e-12
    assert distance(expected, gradient(model, one_graph(model, a, b, 0.2, train=True))) > 0.1  # not the whole batch's


def test_all_negatives_of_the_batch_count_and_not_those_of_the_chunk():
    """Plain accumulation, the mean of the losses of the chunks, is another loss."""
    model, a, b = model_and_views()
    loss, _, _ = loss_by_chunks(model, a, b, chunk=2, train=False)
    accumulated = np.mean([one_graph(model, a[part], b[part]).item() for part in even_parts(7, 2)])
    assert loss.item() > accumulated + 0.5


def test_gradients_scale_with_the_seed_of_the_backward_pass():
    """The loss scale of float16 is such a seed."""
    model, a, b = model_and_views()
    loss = lambda: loss_by_chunks(model, a, b, chunk=3, train=False)[0]  # noqa: E731
    once, scaled = gradient(model, loss()), gradient(model, loss(), on_device(np.asarray(1024.0)))
    np.testing.assert_allclose(scaled, 1024 * once, rtol=1e-12, atol=1e-12)


def test_gradients_that_are_there_are_added_to_as_by_any_other_backward_pass():
    model, a, b = model_and_views()
    alone = gradient(model, loss_by_chunks(model, a, b, chunk=3, train=False)[0])
    one_graph(model, a, b).backward()
    assert distance(gradient(model, loss_by_chunks(model, a, b, chunk=3, train=False)[0]), 2 * alone) < 1e-12


def test_two_backward_passes_in_chunks_leave_twice_the_gradient():
    model, a, b = model_and_views()
    once = gradient(model, loss_by_chunks(model, a, b, chunk=3, train=False)[0])
    loss_by_chunks(model, a, b, chunk=4, train=False)[0].backward()
    assert distance(gradient(model, loss_by_chunks(model, a, b, chunk=3, train=False)[0]), 2 * once) < 1e-12


def test_a_failure_in_a_chunk_leaves_the_gradients_as_they_were(monkeypatch):
    model, a, b = model_and_views()
    one_graph(model, a, b).backward()
    before = [p.grad.copy() for p in model.parameters()]
    loss, _, _ = loss_by_chunks(model, a, b, chunk=3)
    calls: list[int] = []
    whole = SimCLR.__call__

    def fails(self: SimCLR, *inputs: Any) -> Any:
        calls.append(1)
        return whole(self, *inputs) if len(calls) < 3 else 1 / 0

    monkeypatch.setattr(SimCLR, "__call__", fails)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    for p, gradient in zip(model.parameters(), before):
        assert_same(p.grad, gradient)


def test_running_statistics_move_once_for_each_chunk_and_not_in_the_first_pass():
    xp = devices.xp()
    model, a, b = model_and_views()
    twin, _, _ = model_and_views()
    loss, _, _ = loss_by_chunks(model, a, b, chunk=3)
    for name, array in statistics(model).items():
        assert_same(array, statistics(twin)[name])
    loss.backward()
    with no_grad():
        for part in even_parts(7, 3):
            twin(xp.concatenate([a[part], b[part]]), train=True)
    for name, array in statistics(model).items():
        assert_same(array, statistics(twin)[name])


def test_the_graph_of_a_chunk_is_gone_before_that_of_the_next():
    """At most one chunk's images are in a graph at a time; the first pass records none."""
    model, a, b = model_and_views()
    recorded: list[bool] = []
    sizes: list[int] = []
    whole = SimCLR.__call__

    class Spy(SimCLR):
        def __call__(self, images: Any, train: bool = False) -> Any:
            h, z = whole(self, images, train)
            recorded.append(z.requires_grad)
            sizes.append(len(images))
            return h, z

    model.__class__ = Spy
    loss_by_chunks(model, a, b, chunk=3)[0].backward()
    assert recorded == [False] * 3 + [True] * 3
    assert sizes == [6, 4, 4] * 2


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (7, 3), (8, 4), (9, 4), (4096, 128), (5, 9), (10, 7)])
def test_parts_cover_the_batch_and_are_of_equal_size_to_within_one(count, chunk):
    parts = even_parts(count, chunk)
    assert np.array_equal(np.concatenate([np.arange(count)[part] for part in parts]), np.arange(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= chunk
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == -(-count // chunk)


def test_a_chunk_of_no_images_is_refused():
    model, a, b = model_and_views()
    with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
        loss_by_chunks(model, a, b, chunk=0)


# ── The views ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["plain", "batched"])
def test_views_made_late_agree_with_those_made_at_once(method):
    settings = (8, 0.5, True, 0.3)
    images = on_device(IMAGES)
    at_once = two_views(images, np.random.default_rng(4), *settings, method=method)
    late = two_views_late(images, np.random.default_rng(4), *settings, method)
    for view, drawn in zip(at_once, late):
        assert len(drawn) == len(view) == 20
        for part in (slice(0, 20), slice(7, 13), slice(19, 20)):
            assert_close(drawn[part], view[part], atol=1e-5)
            first = drawn[part]
            drawn[0:5]
            assert_same(drawn[part], first)  # made once more


def test_views_that_do_not_fit_are_made_chunk_by_chunk_and_the_run_is_the_same(monkeypatch):
    kept = pretrain(CONFIG, IMAGES)
    asked: list[int] = []

    def spy(images: Any, *rest: Any) -> Any:
        asked.append(len(images))
        return two_views(images, *rest)

    monkeypatch.setattr(large_batch, "two_views", spy)
    monkeypatch.setattr(large_batch, "KEPT", large_batch.bytes_of_views(CONFIG) - 1)
    late = pretrain(CONFIG, IMAGES)
    assert asked == [3] * (STEPS * 2 * 3)  # 4 steps, two passes over 3 chunks
    for line, other in zip(late.history, kept.history):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_views_just_fit_and_without_chunks_they_are_always_kept(monkeypatch):
    monkeypatch.setattr(large_batch, "KEPT", 2 * 9 * 8 * 8 * 3 * 4)
    assert not large_batch.made_late(CONFIG)
    monkeypatch.setattr(large_batch, "KEPT", 2 * 9 * 8 * 8 * 3 * 4 - 1)
    assert large_batch.made_late(CONFIG)
    assert not large_batch.made_late(dataclasses.replace(CONFIG, chunk=0))


def test_workers_are_refused_in_one_line_if_the_views_do_not_fit(monkeypatch, tmp_path):
    """Before anything is written: a worker would hold two whole batches."""
    monkeypatch.setattr(large_batch, "KEPT", 0)
    with pytest.raises(ValueError, match=r"^workers must be 0 here: the views of a batch, 0\.0 GiB, .*[^\n]$"):
        pretrain(CONFIG, IMAGES, folder=tmp_path / "run", workers=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.host
def test_ranks_that_share_a_batch_are_refused_in_one_line():
    ranks = SimpleNamespace(size=2, rank=0)
    with pytest.raises(ValueError, match=r"^chunk must be 0 with --distributed: .*[^\n]$"):
        pretrain(CONFIG, IMAGES, ranks=ranks)
    large_batch.require_room(dataclasses.replace(CONFIG, chunk=0), 0, None, ranks)


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_chunk_as_large_as_the_batch_is_the_whole_batch_bit_for_bit():
    whole = pretrain(dataclasses.replace(CONFIG, chunk=0), IMAGES)
    for chunk in (9, 1000):
        same = pretrain(dataclasses.replace(CONFIG, chunk=chunk), IMAGES)
        for name, array in whole.model.state_dict().items():
            assert np.array_equal(array, same.model.state_dict()[name])
    other = pretrain(CONFIG, IMAGES).model.state_dict()
    assert not np.array_equal(other["encoder.conv1.weight"], whole.model.state_dict()["encoder.conv1.weight"])


def test_a_run_in_chunks_is_its_loop_written_out():
    """Views, chunks of three images, one loss, rate and update, by hand; metrics are those of the whole batch."""
    xp, config = devices.xp(), dataclasses.replace(CONFIG, momentum=0.0, weight_decay=0.0, optimizer="sgd")
    run, model = pretrain(config, IMAGES), placed(build_model(config))
    views = batches.step_views(config, IMAGES)
    for step, line in enumerate(run.history):
        a, b = views(step)
        zs = [model(xp.concatenate([a[k : k + 3], b[k : k + 3]]), train=True)[1] for k in (0, 3, 6)]
        za, zb = (ops.concatenate(*(z[half] for z in zs)) for half in (slice(0, 3), slice(3, 6)))
        loss = nt_xent(za, zb, config.temperature)
        loss.backward()
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert line["top1"] == pytest.approx(contrastive_accuracy(za.data, zb.data))
        assert line["gradient"] == pytest.approx(sum(float(abs(p.grad).max()) for p in model.parameters()), rel=1e-2)
        assert line["chance"] == pytest.approx(np.log(17))
        for p in model.parameters():
            p.data = p.data - xp.float32(line["lr"]) * p.grad
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(run.model.state_dict()[name], array, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("late", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_run_in_chunks_resumes_bit_for_bit(tmp_path, monkeypatch, late):
    if late:
        monkeypatch.setattr(large_batch, "KEPT", 0)
    whole = pretrain(CONFIG, IMAGES).model.state_dict()
    stop = lambda line: os.kill(os.getpid(), signal.SIGTERM) if line["step"] == 1 else None  # noqa: E731
    with pytest.raises(Interrupted):
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=stop)
    resumed = pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    for name, array in resumed.model.state_dict().items():
        assert np.array_equal(array, whole[name])
    with pytest.raises(ValueError, match="it was made with another chunk"):
        pretrain(dataclasses.replace(CONFIG, chunk=3), IMAGES, folder=tmp_path, resume=True)


def test_half_precision_in_chunks_halves_the_scale_where_a_gradient_overflows():
    """The first scales overflow: those steps are left out, reported as 0, and nothing is not finite in the weights."""
    config = dataclasses.replace(CONFIG, precision="float16")
    model, optimizer = precision.build(config)
    a, b = batches.step_views(config, IMAGES)(0)
    sizes, scales = [], []
    before = model.state_dict()["encoder.conv1.weight"]
    optimizer.loss_scale.value = np.asarray(2.0**30, np.float32)
    for _ in range(2):
        loss, _, _ = loss_by_chunks(model, a, b, chunk=3)
        with np.errstate(over="ignore", invalid="ignore"):  # as a session does
            sizes.append(float(host(optimizer.backward(loss))))
            optimizer.step(0.1)
        optimizer.zero_grad()
        scales.append(float(host(optimizer.loss_scale.value)))
    assert sizes == [0, 0]
    assert scales == [2.0**29, 2.0**28]
    assert np.array_equal(model.state_dict()["encoder.conv1.weight"], before)
    optimizer.loss_scale.value = np.asarray(2.0**10, np.float32)
    size = float(host(optimizer.backward(loss_by_chunks(model, a, b, chunk=3)[0])))
    single = placed(build_model(CONFIG))
    loss_by_chunks(single, a, b, chunk=3)[0].backward()
    assert size == pytest.approx(sum(float(abs(p.grad).max()) for p in single.parameters()), rel=0.1)


def test_a_loss_that_is_not_finite_ends_a_run_in_chunks_and_the_last_whole_step_is_saved(tmp_path, monkeypatch):
    """The broken step has moved the running statistics already; the checkpoint has those before it."""
    calls: list[int] = []

    def spoilt(za: Tensor, zb: Tensor, temperature: float) -> Tensor:
        calls.append(1)
        return nt_xent(za, zb, temperature) * (1.0 if len(calls) < 3 else np.nan)

    monkeypatch.setattr(objectives, "named", lambda *names, **options: spoilt)
    with pytest.raises(NonFiniteError, match="the loss became nan at step 2; the weights were left as they were"):
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    saved = load_run(tmp_path)
    assert saved.steps == 2
    monkeypatch.undo()
    tiny.__wrapped__(monkeypatch)
    stop = lambda line: os.kill(os.getpid(), signal.SIGTERM) if line["step"] == 1 else None  # noqa: E731
    with pytest.raises(Interrupted):
        pretrain(CONFIG, IMAGES, folder=tmp_path / "other", progress=stop)
    for name, array in load_run(tmp_path / "other").model.state_dict().items():
        assert np.array_equal(array, saved.model.state_dict()[name])


# ── The setting ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
@pytest.mark.parametrize(("chunk", "batch"), [(1, 9), (2, 9), (1, 2)])
def test_a_chunk_of_one_image_makes_no_sense_because_batch_norm_has_nothing_to_average(chunk, batch):
    with pytest.raises(ValueError, match=f"^chunk must be 0, or leave 2 images in each chunk: not {chunk} of {batch}$"):
        Config(chunk=chunk, batch=batch)
    assert Config(chunk=2, batch=8).chunk == 2


@pytest.mark.host
def test_a_configuration_that_was_stored_before_chunks_existed_has_none():
    stored = Config(size=8).as_dict()
    del stored["chunk"]
    assert Config.from_dict(stored) == Config(size=8)
    assert Config().chunk == 0


@pytest.mark.host
def test_the_log_says_that_statistics_are_those_of_a_chunk(tmp_path, capsys):
    assert remarks(Config()) == remarks(Config(batch=64, chunk=64)) == []
    folder = tmp_path / "data"
    folder.mkdir()
    from PIL import Image

    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{k}.png")
    options = ["pretrain", "--data", str(folder), "--out", str(tmp_path / "run"), "--size", "8", "--epochs", "1"]
    assert main([*options, "--batch", "8", "--chunk", "4"]) == 0
    said = capsys.readouterr().err
    assert "note: batch norm takes its statistics from each chunk of 4 images, not from all 8;" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["chunk"] == 4
