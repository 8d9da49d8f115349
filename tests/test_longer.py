"""Runs that go on: made longer, on images that were moved, looked at early, and interrupted in a notebook."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training import checkpoint, stored
from minisimclr.training.checkpoint import CheckpointError

pytestmark = pytest.mark.host

SETTINGS = {"size": 8, "batch": 4, "head_dim": 8, "warmup": 0.0}
SHORT, LONG = ms.Config(epochs=2, **SETTINGS), ms.Config(epochs=4, **SETTINGS)  # of 3 steps an epoch
IMAGES = np.random.default_rng(0).integers(0, 256, (13, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


def stop_at(step: int, signum: int = signal.SIGINT) -> Callable[[Any], None]:
    """A `progress` that sends this process a signal during that step."""
    return lambda line: os.kill(os.getpid(), signum) if line["step"] == step else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run, which no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        ms.pretrain(SHORT, IMAGES, folder=folder)
    return folder


# ── Longer ────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_run_goes_on_by_the_schedule_of_the_longer_run(tmp_path):
    ms.pretrain(SHORT, IMAGES, folder=tmp_path)
    run = ms.pretrain(LONG, IMAGES, folder=tmp_path, resume=True)
    assert (run.steps, run.extended) == (12, [(6, 2)])
    rates = [line["lr"] for line in run.history]
    peak = LONG.lr * LONG.batch / 256
    assert rates[:6] == [ms.warmup_cosine(step, 6, 0, peak) for step in range(6)]
    assert rates[6:] == [ms.warmup_cosine(step, 12, 0, peak) for step in range(6, 12)]
    assert [line["steps"] for line in run.history] == [6] * 6 + [12] * 6
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 4


def test_a_run_remembers_where_it_was_made_longer_also_after_another_resume(tmp_path):
    ms.pretrain(SHORT, IMAGES, folder=tmp_path)
    with pytest.raises(ms.Interrupted):
        ms.pretrain(LONG, IMAGES, folder=tmp_path, resume=True, progress=stop_at(8))
    assert ms.load_run(tmp_path).extended == [(6, 2)]
    ms.pretrain(LONG, IMAGES, folder=tmp_path, resume=True)
    ms.pretrain(ms.Config(epochs=5, **SETTINGS), IMAGES, folder=tmp_path, resume=True)
    assert ms.load_run(tmp_path).extended == [(6, 2), (12, 4)]
    assert ms.pretrain(SHORT, IMAGES).extended == []


def test_the_views_and_the_order_of_the_steps_to_come_are_those_of_the_longer_run(tmp_path):
    """A run that was stopped at once and made longer is the longer run, bit for bit, but for the rate of one step."""
    flat = {"lr": 1e-12}  # with next to no rate, both have the same losses exactly if they see the same views
    config = [ms.Config(**{**SETTINGS, **flat, "epochs": epochs}) for epochs in (2, 4)]
    with pytest.raises(ms.Interrupted):
        ms.pretrain(config[0], IMAGES, folder=tmp_path, progress=stop_at(0))
    resumed = ms.pretrain(config[1], IMAGES, folder=tmp_path, resume=True)
    whole = ms.pretrain(config[1], IMAGES)
    np.testing.assert_allclose([line["loss"] for line in resumed.history], [line["loss"] for line in whole.history],
                               rtol=1e-5)  # fmt: skip


def test_a_run_is_never_made_shorter(tmp_path):
    ms.pretrain(LONG, IMAGES, folder=tmp_path)
    with pytest.raises(ValueError, match="its 4 epochs can only become more"):
        ms.pretrain(SHORT, IMAGES, folder=tmp_path, resume=True)


@pytest.mark.parametrize("bad", [5, [3], [[1, 2, 3]], [[-1, 2]], [["1", 2]], [[1.5, 2]], [[True, 2]], [[0, 1]] * 1001])
def test_what_a_checkpoint_says_of_its_extensions_is_looked_at(made, tmp_path, bad):
    arrays, meta = checkpoint.load(made / "checkpoint.npz")
    checkpoint.save(tmp_path / "checkpoint.npz", arrays, meta | {"extended": bad})
    with pytest.raises(CheckpointError, match="extended must be a list of pairs"):
        stored.read(tmp_path / "checkpoint.npz")


# ── Elsewhere ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "photos" / f"{k}.png")
    return tmp_path / "photos"


def test_a_run_is_tied_to_its_images_and_not_to_their_path(photos, tmp_path, capsys):
    run, small = str(tmp_path / "run"), ["--size", "8", "--batch", "4", "--head-dim", "8"]
    assert main(["pretrain", "--data", str(photos), "--epochs", "1", "--out", run, *small]) == 0
    other = photos.rename(tmp_path / "elsewhere")
    again = ["pretrain", "--resume", "--out", run, "--data", str(other), "--epochs", "2"]
    assert main(again) == 0
    assert "the run of 1 epochs becomes one of 2: from step 3 on, the learning rate" in capsys.readouterr().err
    assert main(again) == 0
    assert "the run had all its steps already; --resume with more --epochs makes it longer" in capsys.readouterr().err
    found = ms.load_run(run)
    assert (found.config.data, found.steps) == (str(other), 6)
    shutil.copy(other / "1.png", other / "0.png")
    assert main(again) == 2
    assert "the training images are not those it began with" in capsys.readouterr().err


# ── Early, and stopped ────────────────────────────────────────────────────────────────────────────


def test_the_first_checkpoint_is_written_after_the_first_epoch(tmp_path):
    seen: list[tuple[int, bool]] = []

    def look(line: Any) -> None:
        seen.append((line["step"], (tmp_path / "checkpoint.npz").exists()))

    ms.pretrain(LONG, IMAGES, folder=tmp_path, progress=look)
    assert [there for _, there in seen] == [False] * 3 + [True] * 9


def test_the_first_checkpoint_is_written_once_and_not_at_every_step(tmp_path, monkeypatch):
    saved: list[int] = []
    monkeypatch.setattr("minisimclr.training.session.save", lambda run, state: saved.append(run.steps))
    ms.pretrain(LONG, IMAGES, folder=tmp_path)
    assert saved == [3, 12]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object()))


@pytest.mark.usefixtures("notebook")
@pytest.mark.parametrize("step", [4, 11])
def test_in_a_notebook_an_interrupt_returns_the_run_so_far(capsys, step, tmp_path):
    run = ms.pretrain(LONG, IMAGES, folder=tmp_path, progress=stop_at(step))
    assert run.steps == step + 1
    assert f"stopped after step {step + 1} of 12; this is the run so far" in capsys.readouterr().err
    assert ms.load_run(tmp_path).steps == step + 1
    assert ms.pretrain(LONG, IMAGES, progress=stop_at(4)).steps == 5  # without a folder, too


@pytest.mark.usefixtures("notebook")
def test_in_a_notebook_other_signals_and_errors_are_raised_as_elsewhere():
    with pytest.raises(ms.Interrupted):
        ms.pretrain(LONG, IMAGES, progress=stop_at(4, signal.SIGTERM))
    with pytest.raises(ZeroDivisionError):
        ms.pretrain(LONG, IMAGES, progress=lambda line: 1 / 0)


def test_outside_a_notebook_an_interrupt_is_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    with pytest.raises(ms.Interrupted):
        ms.pretrain(LONG, IMAGES, progress=stop_at(4))
