"""Training runs: they learn, repeat and resume bit for bit, stop when asked, and never spoil what they have saved."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest

from minisimclr import backend, processor
from minisimclr.data import DataError, Dataset, Reading
from minisimclr.data.doodles import draw_doodles
from minisimclr.engine.autograd import Tensor
from minisimclr.ntxent import nt_xent
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.simclr import SimCLR
from minisimclr.training import batches, checkpoint, precision, record, run, session, train
from minisimclr.training.checkpoint import CheckpointError
from minisimclr.training.config import ORDER, VIEWS, Config, build_model, build_optimizer
from minisimclr.training.optim import SGD
from minisimclr.training.run import Interrupted, Run, environment_changes, fingerprint, load_run
from minisimclr.training.session import READ_EVERY, Session
from minisimclr.training.train import NonFiniteError, pretrain
from minisimclr.views.augment import two_views

CONFIG = Config(size=8, batch=4, epochs=3, head_dim=8, lr=2.0, warmup=0.2, device=devices.DEVICE)  # 3 epochs of 2 steps
STEPS = 6
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 10, 12, 3), np.uint8)  # not square; the last 3 are left over


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32; each step is read, on a GPU too."""
    monkeypatch.setitem(READ_EVERY, "cuda", 1)
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


def kept(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All arrays of the checkpoint as bytes, and the metrics but for the speed."""
    arrays, _ = checkpoint.load(folder / "checkpoint.npz")
    return {name: array.tobytes() for name, array in arrays.items()}, metrics(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def state_of(model: SimCLR) -> dict[str, Any]:
    """The part of a fresh optimizer in a checkpoint."""
    return build_optimizer(CONFIG, model).state_dict()


def stop_at(step: int, signum: int = signal.SIGINT) -> Callable[[run.Metrics], None]:
    """A `progress` that sends this process a signal during that step."""
    return lambda line: os.kill(os.getpid(), signum) if line["step"] == step else None


def interrupted(folder: Path, step: int = 2, signum: int = signal.SIGINT, **options: Any) -> Interrupted:
    """A run that is told to stop during that step."""
    with pytest.raises(Interrupted) as stopped:
        pretrain(CONFIG, IMAGES, folder=folder, progress=stop_at(step, signum), **options)
    return stopped.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        pretrain(CONFIG, IMAGES, folder=folder)
    return folder


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_its_settings_its_metrics_and_a_checkpoint(whole):
    assert sorted(os.listdir(whole)) == ["checkpoint.npz", "config.json", "metrics.jsonl"]
    assert Config.from_dict(json.loads((whole / "config.json").read_text())) == CONFIG
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert {line["steps"] for line in lines} == {STEPS}
    assert {line["chance"] for line in lines} == {math.log(2 * CONFIG.batch - 1)}
    assert all(math.isfinite(line["loss"]) and 0 <= line["top1"] <= 1 for line in lines)


def test_the_rate_warms_up_to_lr_per_256_images_and_comes_down(whole):
    peak = 2.0 * 4 / 256  # W = round(0.2 · 6) = 1 step
    expected = [0.0, *(peak * 0.5 * (1 + math.cos(math.pi * k / 5)) for k in range(5))]
    assert [line["lr"] for line in metrics(whole)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 0), (0.25, 2), (0.4, 2), (0.45, 3)])
def test_the_rate_warms_up_to_its_peak_in_the_nearest_whole_number_of_steps(warmup, steps, monkeypatch):
    """0.3, 1.5, 2.4 and 2.7 of six steps; a half goes to the even number, as Python rounds."""
    asked: list[int] = []
    monkeypatch.setattr(train, "warmup_cosine", lambda step, total, warmup_steps, peak: asked.append(warmup_steps) or 0)
    pretrain(Config(**{**CONFIG.as_dict(), "warmup": warmup, "epochs": 3}), IMAGES)
    assert asked == [steps] * STEPS


def test_a_run_without_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = pretrain(CONFIG, IMAGES)
    assert os.listdir(tmp_path) == []
    assert (result.folder, result.steps, len(result.history)) == (None, STEPS, STEPS)


def test_progress_is_called_with_the_metrics_of_every_step():
    seen: list[run.Metrics] = []
    assert seen == [] != (result := pretrain(CONFIG, IMAGES, progress=seen.append)).history
    assert seen == result.history


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(whole):
    again = pretrain(CONFIG, IMAGES).model.state_dict()
    other = pretrain(Config(**{**CONFIG.as_dict(), "seed": 1}), IMAGES).model.state_dict()
    stored = load_run(whole).model.state_dict()
    assert all(again[name].tobytes() == stored[name].tobytes() for name in stored)
    assert all(not np.array_equal(other[name], stored[name]) for name in stored)


def test_a_run_is_its_loop_written_out():
    """Algorithm 1 once more, in the plainest way: images, views, loss, rate and update."""
    changed = {"temperature": 0.5, "weight_decay": 0.1, "strength": 1.0, "warmup": 0.25}  # 1.5 steps are rounded to 2
    config = Config(**{**CONFIG.as_dict(), **changed})
    model = build_model(config)
    velocity = [np.zeros_like(p.data) for p in model.parameters()]
    for step in range(STEPS):
        shuffled = config.rng(ORDER, step // 2).permutation(11)
        images = IMAGES[shuffled[:4] if step % 2 == 0 else shuffled[4:8]]
        a, b = two_views(images, config.rng(VIEWS, step), 8, strength=1.0)
        _, z = model(np.concatenate([a, b]), train=True)
        nt_xent(z[:4], z[4:], 0.5).backward()
        lr = 2.0 * 4 / 256 * (step / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 4)))
        for p, v in zip(model.parameters(), velocity):
            assert p.grad is not None
            v[...] = 0.9 * v + p.grad + 0.1 * p.data
            p.data = p.data - np.float32(lr) * v  # a new array: it has no gradient yet
    trained, before = pretrain(config, IMAGES).model.state_dict(), build_model(config).state_dict()
    for name, array in model.state_dict().items():  # within a hundredth of what was learnt
        assert np.linalg.norm(trained[name] - array) < 0.01 * np.linalg.norm(array - before[name]), name


def test_no_step_sees_the_views_of_another_and_none_the_same_images_in_a_row(monkeypatch):
    seen: list[tuple[bytes, list[int]]] = []

    def spy(batch: Any, rng: np.random.Generator, *options: Any, **named: Any) -> Any:
        which = [int(np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0]) for image in devices.host(batch)]
        seen.append((repr(rng.bit_generator.state).encode(), which))
        return two_views(batch, rng, *options, **named)

    monkeypatch.setattr(batches, "two_views", spy)
    pretrain(CONFIG, IMAGES)
    states, images = [state for state, _ in seen], [which for _, which in seen]
    assert len(set(states)) == STEPS
    assert all(len({*images[k], *images[k + 1]}) == 8 for k in range(0, STEPS, 2))
    assert len({tuple(which) for which in images}) == STEPS
    assert any(which != sorted(which) for which in images)


def test_training_learns():
    """On doodles the loss begins at chance or above, and falls well below it."""
    images, _, _ = draw_doodles(64, seed=0, size=16)
    config = Config(size=16, batch=32, epochs=15, head_dim=16, lr=2.0, temperature=0.5, strength=0.0)
    losses = [line["loss"] for line in pretrain(config, images).history]
    chance = math.log(63)
    assert losses[0] > 0.95 * chance
    assert np.mean(losses[-6:]) < 0.92 * chance


def test_lars_trains_too():
    result = pretrain(Config(**{**CONFIG.as_dict(), "optimizer": "lars"}), IMAGES)
    assert all(math.isfinite(line["loss"]) for line in result.history)


def test_images_come_from_the_data_set_unless_given(monkeypatch):
    asked = []

    def load(source: str, split: str, size: int, reading: Reading, **how: Any) -> Any:
        asked.append((source, split, size))
        assert reading == Reading()
        return Dataset(IMAGES, np.zeros(len(IMAGES), np.int64), ("all",))

    monkeypatch.setattr(batches, "load_dataset", load)
    assert pretrain(CONFIG).images == fingerprint(IMAGES)
    assert asked == [("doodles", "train", 8)]


def test_fewer_images_than_a_batch_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"3 images are fewer than one batch of 4; use a smaller --batch"):
        pretrain(CONFIG, IMAGES[:3], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[..., 0], IMAGES[..., :1]])
def test_images_that_are_not_uint8_rgb_are_refused(images):
    with pytest.raises((TypeError, ValueError), match=r"uint8|\(N,H,W,3\)"):
        pretrain(CONFIG, images)


# ── Loading ───────────────────────────────────────────────────────────────────────────────────────


def test_a_loaded_run_is_the_one_that_was_saved(whole):
    loaded = load_run(str(whole))
    assert (loaded.config, loaded.steps, loaded.folder) == (CONFIG, STEPS, whole)
    assert [line["step"] for line in loaded.history] == list(range(STEPS))


def test_restoring_puts_back_weights_momentum_and_position(whole):
    arrays, _ = checkpoint.load(whole / "checkpoint.npz")
    restored = Run(CONFIG, build_model(CONFIG), folder=whole, images=fingerprint(IMAGES))
    optimizer = build_optimizer(CONFIG, restored.model)
    run.restore(restored, optimizer.load_state_dict)
    assert (restored.steps, len(restored.history)) == (STEPS, STEPS)
    for name, array in restored.model.state_dict().items():
        assert np.array_equal(array, arrays[f"model/{name}"])
    for k, velocity in enumerate(optimizer.velocity):
        assert np.array_equal(velocity, arrays[f"momentum/{k}"])
        assert velocity.any()


def test_metrics_are_read_up_to_the_step_of_the_checkpoint(tmp_path):
    lines = [json.dumps({"step": step}) for step in (0, 1, 2, 3)]
    (tmp_path / "m").write_text("\n".join(lines))
    assert [line["step"] for line in record.read(tmp_path / "m", 2)] == [0, 1]


def test_a_folder_without_run_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*checkpoint\.npz"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda arrays, meta: arrays.pop("model/head.linear1.weight"), "misses model/head.linear1.weight$"),
        (lambda arrays, meta: meta.pop("steps"), "steps"),
        (lambda arrays, meta: meta.update(steps=None), "steps must be a whole number from 0 to 6$"),
        (lambda arrays, meta: meta.update(config=[]), "config must be a table of settings$"),
        (lambda arrays, meta: meta["config"].update(width=99), "width must be"),
        (lambda arrays, meta: meta["config"].update(tau=1), "unknown setting tau"),
        (lambda arrays, meta: meta["config"].update(width=2), "has shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(whole, tmp_path, spoil, says):
    arrays, meta = checkpoint.load(whole / "checkpoint.npz")
    spoil(arrays, meta)
    checkpoint.save(tmp_path / "checkpoint.npz", arrays, meta)
    with pytest.raises(CheckpointError, match=says) as error:
        load_run(tmp_path)
    assert "\n" not in str(error.value)


# ── Stopping ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_saves_and_is_carried_out(tmp_path, signum):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stopped = interrupted(tmp_path, 2, signum)
    assert stopped.signum == signum
    assert str(stopped) == "stopped after step 3 of 6"
    assert load_run(tmp_path).steps == 3
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_handlers_are_restored_after_a_run_and_after_a_failure(monkeypatch):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    pretrain(CONFIG, IMAGES)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.setattr(batches, "two_views", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pretrain(CONFIG, IMAGES)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_acts_at_once():
    """Whoever presses Ctrl-C twice does not want to wait for the step."""
    seen = []

    def twice(line: run.Metrics) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(line)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, IMAGES, progress=twice)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1


def test_training_works_in_a_thread_where_signals_cannot_be_caught():
    results: list[Run] = []
    thread = threading.Thread(target=lambda: results.append(pretrain(CONFIG, IMAGES)))
    thread.start()
    thread.join()
    assert results[0].steps == STEPS


# ── Resuming ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", [0, 1, 2, 4])  # at the beginning, in the midst and at the end of an epoch
def test_an_interrupted_run_resumes_bit_for_bit(whole, tmp_path, step):
    """Weights, running statistics, momentum and metrics are those of the run that nobody interrupted."""
    interrupted(tmp_path, step, signal.SIGTERM if step % 2 else signal.SIGINT)
    resumed = pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert kept(tmp_path) == kept(whole)
    assert resumed.steps == STEPS == len(resumed.history)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_a_run_interrupted_at_every_step_resumes_bit_for_bit(tmp_path, optimizer):
    config = Config(**{**CONFIG.as_dict(), "optimizer": optimizer})
    for step in range(STEPS):
        with pytest.raises(Interrupted):
            pretrain(config, IMAGES, folder=tmp_path / "bits", resume=step > 0, progress=stop_at(step))
    pretrain(config, IMAGES, folder=tmp_path / "once")
    assert kept(tmp_path / "bits") == kept(tmp_path / "once")


def test_what_a_killed_run_wrote_after_its_checkpoint_is_done_again(whole, tmp_path, monkeypatch):
    """Metrics are written each step, checkpoints now and then: lines beyond the checkpoint are dropped."""
    clock = iter([0.0, 61.0, 61.0, 62.0, 62.5, 63.0])  # one checkpoint, after the first step
    with monkeypatch.context() as patch:
        patch.setattr(session.time, "monotonic", lambda: next(clock))
        patch.setattr(Session, "_rescue", lambda *args: None)  # kill -9 leaves no time for it
        patch.setattr(train, "warmup_cosine", lambda step, *args: WARMUP(step, *args) if step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert load_run(tmp_path).steps == 1
    assert len(metrics(tmp_path)) == 3
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # and torn in the midst of the last
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert kept(tmp_path) == kept(whole)


WARMUP = train.warmup_cosine


def test_a_finished_run_that_is_resumed_stays_as_it_is(whole):
    before = {name: (whole / name).read_bytes() for name in os.listdir(whole)}
    assert pretrain(CONFIG, IMAGES, folder=whole, resume=True).steps == STEPS
    assert {name: (whole / name).read_bytes() for name in os.listdir(whole)} == before


def test_lost_metrics_do_not_keep_a_run_from_going_on(tmp_path, whole):
    interrupted(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert kept(tmp_path)[0] == kept(whole)[0]
    assert [line["step"] for line in metrics(tmp_path)] == [3, 4, 5]


def untouched(folder: Path, error: type[Exception], says: str, *args: Any, **options: Any) -> None:
    """pretrain is refused in one line, and the folder is left as it was."""
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    with pytest.raises(error, match=says) as refusal:
        pretrain(*args, folder=folder, **options)
    assert "\n" not in str(refusal.value)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_a_folder_that_holds_a_run_is_only_touched_to_resume_it(whole):
    untouched(whole, ValueError, "already holds a run; go on with --resume", CONFIG, IMAGES)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.1), ("seed", 1), ("optimizer", "lars")])
def test_a_run_is_not_resumed_with_another_setting(whole, name, value):
    other = Config(**{**CONFIG.as_dict(), name: value})
    untouched(whole, ValueError, f"cannot resume .* made with another {name}$", other, IMAGES, resume=True)


LAST_PIXEL = IMAGES.copy()
LAST_PIXEL[-1, -1, -1, -1] ^= 1


@pytest.mark.parametrize("images", [IMAGES[:-1], IMAGES[::-1], IMAGES ^ np.uint8(1), LAST_PIXEL])
def test_a_run_is_not_resumed_on_other_images(whole, images):
    untouched(whole, ValueError, "images are not those", CONFIG, images, resume=True)


def test_a_run_is_not_resumed_from_a_damaged_checkpoint(tmp_path):
    interrupted(tmp_path)
    (tmp_path / "checkpoint.npz").write_bytes((tmp_path / "checkpoint.npz").read_bytes()[:-100])
    untouched(tmp_path, CheckpointError, "is cut off", CONFIG, IMAGES, resume=True)


def test_resuming_needs_a_folder_and_a_checkpoint_in_it(tmp_path):
    with pytest.raises(ValueError, match="resume needs the folder"):
        pretrain(CONFIG, IMAGES, resume=True)
    untouched(tmp_path, CheckpointError, "there is no checkpoint", CONFIG, IMAGES, resume=True)


def test_what_has_changed_around_a_run_can_be_told(whole, monkeypatch):
    """Elsewhere, resuming is close but not bit for bit: the checkpoint knows where it was written."""
    assert environment_changes(whole, CONFIG) == []
    before = processor.threads()
    monkeypatch.setattr(checkpoint, "threads", lambda: before + 1)
    assert environment_changes(whole, CONFIG) == [f"threads was {before}, is {before + 1}"]


# ── On a device ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def every_fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the steps four at a time, and at the end: after steps 3 and 5."""
    monkeypatch.setitem(READ_EVERY, devices.DEVICE, 4)


def before_each_step(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """Call action(step) when the step's views are to be made."""
    steps = itertools.count()

    def spy(*args: Any, **options: Any) -> Any:
        action(next(steps))
        return two_views(*args, **options)

    monkeypatch.setattr(batches, "two_views", spy)


@pytest.mark.usefixtures("every_fourth")
def test_reading_seldom_changes_when_a_number_is_known_but_not_the_number(whole, tmp_path):
    seen: list[list[int]] = []
    pretrain(CONFIG, IMAGES, folder=tmp_path, progress=lambda line: seen.append([line["step"], len(metrics(tmp_path))]))
    assert kept(tmp_path) == kept(whole)
    assert [step for step, _ in seen] == list(range(STEPS))


@pytest.mark.usefixtures("every_fourth")
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_between_readings_nothing_crosses_to_the_host(monkeypatch, optimizer):
    """A reading is one transfer, however many steps and numbers it fetches."""
    with devices.transfers():
        traffic = devices.xp()._traffic
        before: list[Any] = []
        before_each_step(monkeypatch, lambda step: before.append(traffic.copy()))
        pretrain(Config(**{**CONFIG.as_dict(), "optimizer": optimizer}), IMAGES)
    before.append(traffic.copy())
    crossed = [set((b - a).items()) for a, b in itertools.pairwise(before)]
    to_the_host = [{(what, times) for what, times in items if what != "to the device"} for items in crossed]
    assert to_the_host == [set(), set(), set(), {("get", 1)}, set(), {("get", 1)}]


@pytest.mark.usefixtures("every_fourth")
@pytest.mark.parametrize(("step", "noticed"), [(0, 3), (2, 3), (3, 3), (4, 5), (5, 5)])
def test_what_is_not_finite_between_readings_is_noticed_at_the_next_and_not_saved(tmp_path, monkeypatch, step, noticed):
    steps = itertools.count()

    def loss(model: SimCLR, *args: Any) -> Any:
        value, za, zb = original(model, *args)
        return value * (math.nan if next(steps) == step else 1.0), za, zb

    original = SimCLR.loss
    monkeypatch.setattr(SimCLR, "loss", loss)
    monkeypatch.setattr(session, "SAVE_EVERY", -1.0)
    late = {0: "the weights were left as they were", 1: "noticed 1 step later", 3: "noticed 3 steps later"}
    with pytest.raises(NonFiniteError, match=f"the loss became nan at step {step}; {late[noticed - step]}"):
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    saved = (tmp_path / "checkpoint.npz").exists()
    assert saved == (noticed == 5)
    if saved:
        arrays, meta = checkpoint.load(tmp_path / "checkpoint.npz")
        assert meta["steps"] == 4
        assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.usefixtures("every_fourth")
def test_a_signal_between_readings_ends_the_step_reads_and_saves(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        before_each_step(patch, lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 1 else None)
        with pytest.raises(Interrupted, match="stopped after step 2 of 6"):
            pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert len(metrics(tmp_path)) == 2
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert kept(tmp_path) == kept(whole)


def assert_learnt_the_same(a: SimCLR, b: SimCLR) -> None:
    """Check that two models agree to a twentieth of what was learnt: rounding opens or closes a ReLU now and then."""
    before, one, other = build_model(CONFIG).state_dict(), a.state_dict(), b.state_dict()
    for name in before:
        assert np.linalg.norm(one[name] - other[name]) < 0.05 * np.linalg.norm(one[name] - before[name]), name


def test_a_device_trains_as_a_processor_does(whole):
    """Both runs have the same views and the same first weights; only the rounding differs."""
    here, there = pretrain(dataclasses.replace(CONFIG, device="cpu"), IMAGES), load_run(whole)
    assert_learnt_the_same(here.model, there.model)
    for ours, theirs in zip(here.history[:-1], there.history[:-1]):  # at this rate a difference grows tenfold a step
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-2)
    assert there.history[0]["loss"] == pytest.approx(here.history[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(("first", "then"), [(devices.DEVICE, "cpu"), ("cpu", devices.DEVICE)])
def test_a_run_goes_on_on_another_device(whole, tmp_path, first, then):
    on_first, on_then = (dataclasses.replace(CONFIG, device=device) for device in (first, then))
    with pytest.raises(Interrupted):
        pretrain(on_first, IMAGES, folder=tmp_path, progress=stop_at(2))
    changed = environment_changes(tmp_path, on_then)
    assert [line.partition(" ")[0] for line in changed] == ["device"] * (first != then)
    resumed = pretrain(on_then, IMAGES, folder=tmp_path, resume=True)
    assert resumed.steps == STEPS
    assert_learnt_the_same(load_run(whole).model, resumed.model)


@pytest.mark.parametrize("free", [0, 10**9])
def test_images_that_fit_are_sent_once_and_others_batch_by_batch(whole, tmp_path, monkeypatch, free):
    monkeypatch.setattr(batches, "free_bytes", lambda device: free)
    sent: list[int] = []

    def spy(array: Any, device: str) -> Any:
        sent.append(array.nbytes) if array.dtype == np.uint8 else None
        return backend.to_device(array, device)

    monkeypatch.setattr(batches, "to_device", spy)
    pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert sent == ([IMAGES.nbytes] if free else [IMAGES[:4].nbytes] * STEPS)
    assert kept(tmp_path) == kept(whole)


def test_a_checkpoint_of_before_there_were_devices_was_made_on_a_processor_in_float32(whole, tmp_path):
    arrays, meta = checkpoint.load(whole / "checkpoint.npz")
    for name in ("device", "precision", "numerics"):
        del meta["environment"][name]
    checkpoint.save(tmp_path / "checkpoint.npz", arrays, meta)
    on_a_processor = dataclasses.replace(CONFIG, device="cpu")
    arithmetic = f"numerics was 1, is {checkpoint.NUMERICS}"
    assert environment_changes(tmp_path, on_a_processor) == [arithmetic]
    changed = environment_changes(tmp_path, dataclasses.replace(on_a_processor, precision="float16"))
    assert changed == [arithmetic, "precision was float32, is float16"]


def test_a_checkpoint_of_another_arithmetic_is_resumed_and_the_change_is_told(whole, monkeypatch):
    """`numerics` is raised by each change that alters bits; a checkpoint without it has the first one."""
    now = checkpoint.NUMERICS
    monkeypatch.setattr(checkpoint, "NUMERICS", now + 1)
    assert environment_changes(whole, CONFIG) == [f"numerics was {now}, is {now + 1}"]


def test_a_run_goes_on_with_another_method_and_the_change_is_told(whole, tmp_path):
    interrupted(tmp_path)
    other = dataclasses.replace(CONFIG, method="conv=slabs,ntxent=exact")
    assert environment_changes(tmp_path, other) == ["method was conv=slabs, is conv=slabs,ntxent=exact"]
    same = dataclasses.replace(CONFIG, method="norm=auto")  # the default, spelled otherwise
    assert environment_changes(tmp_path, same) == []
    resumed = pretrain(other, IMAGES, folder=tmp_path, resume=True)
    assert resumed.steps == STEPS
    assert_learnt_the_same(load_run(whole).model, resumed.model)


# The settings of a run as version 0.1 stored them, in config.json and in the checkpoint.
OLD_SETTINGS = {
    "data": "doodles",
    "size": 8,
    "encoder": "small",
    "width": 1,
    "stem": "auto",
    "head_layers": 2,
    "head_dim": 8,
    "batch": 4,
    "epochs": 3,
    "temperature": 0.1,
    "optimizer": "sgd",
    "lr": 2.0,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "warmup": 0.2,
    "conv": "direct",
    "strength": 0.5,
    "min_area": 0.08,
    "blur": False,
    "seed": 0,
    "device": "cpu",
    "precision": "float32",
}


@pytest.mark.parametrize(
    ("conv", "method"), [("direct", "conv=slabs"), ("winograd", "conv=winograd"), ("auto", "conv=auto")]
)
def test_a_checkpoint_of_version_0_1_loads_and_resumes_bit_for_bit(tmp_path, conv, method):
    """Version 0.1 had a setting `conv` in place of `method`, and no `numerics` in its environment.

    (The steps here are made with the arithmetic of today. That it was another one then is told when a run is resumed.)
    """
    config = dataclasses.replace(CONFIG, method=method, cache_side=-2)  # it trained on squares alone
    with pytest.raises(Interrupted):
        pretrain(config, IMAGES, folder=tmp_path / "old", progress=stop_at(2))
    arrays, meta = checkpoint.load(tmp_path / "old" / "checkpoint.npz")
    meta["config"] = OLD_SETTINGS | {"conv": conv, "device": devices.DEVICE}
    del meta["environment"]["numerics"]
    checkpoint.save(tmp_path / "old" / "checkpoint.npz", arrays, meta)
    assert load_run(tmp_path / "old").config == config
    assert environment_changes(tmp_path / "old", config) == [f"numerics was 1, is {checkpoint.NUMERICS}"]
    pretrain(config, IMAGES, folder=tmp_path / "old", resume=True)
    pretrain(config, IMAGES, folder=tmp_path / "new")
    assert kept(tmp_path / "old") == kept(tmp_path / "new")


# ── Not a number ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def saves_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SAVE_EVERY", -1.0)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[SimCLR]:
    """Every model that pretrain builds, so that a failed run's can be looked at."""
    built: list[SimCLR] = []

    def build(config: Config, product_dtype: Any = None, ranks: Any = None) -> SimCLR:
        built.append(build_model(config, product_dtype, ranks))
        return built[-1]

    monkeypatch.setattr(precision, "build_model", build)
    return built


def weights(model: SimCLR) -> list[bytes]:
    return [devices.host(p.data).tobytes() for p in model.parameters()]


@pytest.mark.usefixtures("saves_every_step")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(tmp_path, monkeypatch, models, bad):
    """The weights stay, and so does the checkpoint of the step before, byte for byte."""
    seen: list[tuple[list[bytes], bytes]] = []

    def loss(model: SimCLR, *args: Any) -> Any:
        value, za, zb = original(model, *args)
        if len(metrics(tmp_path)) < 2:
            return value, za, zb
        seen.append((weights(model), (tmp_path / "checkpoint.npz").read_bytes()))
        return value * bad, za, zb

    original = SimCLR.loss
    monkeypatch.setattr(SimCLR, "loss", loss)
    with pytest.raises(NonFiniteError, match=f"the loss became {bad} at step 2; the weights were left") as error:
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert seen == [(weights(models[0]), (tmp_path / "checkpoint.npz").read_bytes())]
    assert load_run(tmp_path).steps == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(tmp_path, monkeypatch, models, bad):
    def backward(tensor: Tensor, grad: Any = None) -> None:
        original(tensor, grad)
        models[0].head.bn2.weight.grad[0] = bad

    original = Tensor.backward
    monkeypatch.setattr(Tensor, "backward", backward)
    with pytest.raises(NonFiniteError, match=r"the gradient became (nan|inf) at step 0"):
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert weights(models[0]) == weights(build_model(CONFIG))
    assert not (tmp_path / "checkpoint.npz").exists()


def test_a_large_gradient_is_no_false_alarm():
    """The square of 1e30 would overflow in float32."""
    p = Tensor(np.ones(3, np.float32), requires_grad=True)
    optimizer = SGD([p], lr=0.1)
    assert math.isfinite(optimizer.backward((p * -1e30).sum()))


@pytest.mark.usefixtures("saves_every_step")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy notices the overflow on its way
def test_a_run_that_diverges_never_leaves_a_checkpoint_that_is_not_finite(tmp_path):
    """Batch norm keeps the loss finite while the weights grow until they overflow."""
    config = Config(**{**CONFIG.as_dict(), "lr": 1e6, "weight_decay": 1e3, "warmup": 0.0, "epochs": 10})
    with pytest.raises(NonFiniteError):
        pretrain(config, IMAGES, folder=tmp_path)
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.npz")
    assert meta["steps"] > 0
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("name", ["running_var", "weight"])
def test_what_is_not_finite_is_not_saved_even_if_the_loss_is(tmp_path, name):
    """After the last step there is no further loss that would show it."""
    model = build_model(CONFIG)
    array = getattr(model.encoder.bn1, name)
    (array.data if isinstance(array, Tensor) else array)[0] = np.inf
    with pytest.raises(NonFiniteError, match=f"model/encoder.bn1.{name} became NaN or infinite .* not saved"):
        run.save(Run(CONFIG, model, folder=tmp_path), state_of(model))
    assert not (tmp_path / "checkpoint.npz").exists()


def test_an_overflow_after_a_save_is_survived_by_the_saved_file(tmp_path):
    model = build_model(CONFIG)
    run.save(Run(CONFIG, model, folder=tmp_path), state_of(model))
    before = (tmp_path / "checkpoint.npz").read_bytes()
    model.encoder.bn1.weight.data[0] = np.nan
    with pytest.raises(NonFiniteError):
        run.save(Run(CONFIG, model, folder=tmp_path), state_of(model))
    assert (tmp_path / "checkpoint.npz").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.npz"]


# ── A session by itself ───────────────────────────────────────────────────────────────────────────


def session_of(folder: Path | None, **options: Any) -> Session:
    """A session of three steps."""
    model = build_model(CONFIG)
    return Session(Run(CONFIG, model, folder=folder), build_optimizer(CONFIG, model), 3, **options)


@pytest.mark.host
def test_an_infinite_loss_in_a_session_leaves_the_last_checkpoint_and_the_metrics_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(READ_EVERY, devices.DEVICE, 1)
    monkeypatch.setattr(session, "SAVE_EVERY", -1.0)
    with session_of(tmp_path) as steps:
        for step in steps:
            loss = np.float32([1.0, math.inf, 1.0][step])
            if step != 1:
                steps.record(loss=loss)
                continue
            with pytest.raises(NonFiniteError, match="the loss became inf at step 1; the weights were left"):
                steps.record(loss=loss)
            break
    assert load_run(tmp_path).steps == 1
    assert [line["step"] for line in metrics(tmp_path)] == [0]


@pytest.mark.host
def test_a_session_that_is_left_early_keeps_what_was_finished(tmp_path):
    def train() -> None:
        with session_of(tmp_path) as steps:
            for step in steps:
                steps.record(loss=np.float32(1 / (1 - step)))

    with pytest.raises(ZeroDivisionError):
        train()
    assert [line["loss"] for line in metrics(tmp_path)] == [1.0]
    assert load_run(tmp_path).steps == 1  # although no checkpoint was due: the run is younger than a minute


@pytest.mark.host
def test_a_session_without_steps_left_yields_none(tmp_path):
    with session_of(tmp_path) as steps:
        steps.steps = range(3, 3)
        assert list(steps) == []
