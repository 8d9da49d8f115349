"""The monitor of training: what it measures, when, what it advises, and that it alters no bit of the run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.cli.console import training
from minisimclr.evaluation import measures
from minisimclr.protocols import monitor
from minisimclr.protocols.monitor import Monitor, advice
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training.config import build_model
from minisimclr.views import two_views

pytestmark = pytest.mark.host

CONFIG = ms.Config(size=8, batch=4, epochs=4, head_dim=8)  # 4 epochs of 5 steps
LABELS = np.arange(20) % 2
IMAGES = np.random.default_rng(0).integers(0, 100, (20, 8, 8, 3)).astype(np.uint8)
IMAGES[LABELS == 1, :, :, 0] += 150  # one class is red


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


def bits(run: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in run.model.state_dict().items()}


def lines(*losses: float, first: int = 0, steps: int = 20) -> list[dict[str, Any]]:
    return [{"step": first + k, "steps": steps, "loss": loss, "chance": 2.0} for k, loss in enumerate(losses)]


def test_a_run_with_a_monitor_has_the_same_bits_as_one_without():
    plain = ms.pretrain(CONFIG, IMAGES)
    seen = ms.pretrain(CONFIG, IMAGES, monitor=Monitor(CONFIG, IMAGES, LABELS, every=1))
    assert bits(seen) == bits(plain)
    assert [line["loss"] for line in seen.history] == [line["loss"] for line in plain.history]


def test_it_compares_views_that_are_made_by_the_runs_own_changes():
    config = dataclasses.replace(CONFIG, views="whole")  # two views that are equal, then
    model = build_model(config)
    assert Monitor(config, IMAGES).measured(model)["alignment"] < 1e-6
    assert Monitor(CONFIG, IMAGES).measured(model)["alignment"] > 1e-3


def test_it_measures_at_the_end_of_every_so_many_epochs_and_at_the_end_of_the_run():
    run = ms.pretrain(CONFIG, IMAGES, monitor=Monitor(CONFIG, IMAGES, LABELS, every=3))
    measured = [line["step"] for line in run.history if "rank" in line]
    assert measured == [14, 19]
    assert {"knn", "alignment", "uniformity", "rank", "spread"} <= run.history[14].keys()
    assert Monitor(ms.Config(epochs=200), IMAGES).every == 20
    assert Monitor(CONFIG, IMAGES).every == 1


def test_steps_that_are_read_together_are_measured_once_at_the_last():
    """A GPU reads ten steps at a time: the end of an epoch among them is not overlooked."""
    watch, model = Monitor(CONFIG, IMAGES, every=2), build_model(CONFIG)
    assert watch(model, lines(*[1.0] * 8)) == {}
    assert "rank" in watch(model, lines(*[1.0] * 4, first=8))  # step 9 ends an epoch
    assert watch(model, lines(*[1.0] * 6, first=12)) == {}
    assert "rank" in watch(model, lines(1.0, 1.0, first=18))


def test_the_measures_are_those_of_two_views_of_the_images_by_the_formula():
    watch, model = Monitor(CONFIG, IMAGES), build_model(CONFIG)
    found = watch.measured(model)
    a, b = two_views(watch.pairs, np.random.default_rng(CONFIG.seed), 8, CONFIG.strength, False, CONFIG.min_area)
    with ms.no_grad():
        za, zb = (model(view, train=False)[1].data for view in (a, b))
    assert found["alignment"] == pytest.approx(measures.alignment(za, zb))
    assert found["uniformity"] == pytest.approx(measures.uniformity(za))
    assert found["rank"] == pytest.approx(measures.effective_rank(za))
    assert "knn" not in found  # there are no labels
    assert watch.measured(model) == found


def test_a_tenth_of_the_images_asks_and_none_of_them_answers():
    watch = Monitor(CONFIG, IMAGES, LABELS)
    assert watch.knn is not None
    bank, bank_y, asking, asking_y = watch.knn
    assert (len(bank), len(asking), len(bank_y), len(asking_y)) == (18, 2, 18, 2)
    assert not {image.tobytes() for image in bank} & {image.tobytes() for image in asking}
    assert watch.measured(build_model(CONFIG))["knn"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize("labels", [None, np.zeros(20, int), np.full(20, -1), LABELS[:5]])
def test_labels_that_tell_nothing_are_not_asked(labels):
    assert Monitor(CONFIG, IMAGES, labels).knn is None


def test_collapse_and_a_loss_above_chance_are_told_with_what_to_try():
    healthy = {"rank": 20.0, "spread": 0.9}
    assert advice(healthy, 1.9, 2.0) == ""
    assert "collapsed" in advice({"rank": 1.2, "spread": 0.9}, 1.9, 2.0)
    assert "collapsed" in advice({"rank": 20.0, "spread": 0.05}, 1.9, 2.0)
    assert re.search("loss, 2.10, is still above chance, 2.00: try a lower lr", advice(healthy, 2.1, 2.0))


def test_the_loss_counts_after_the_warm_up_alone_and_as_the_mean_since_the_last_measurement():
    model = build_model(CONFIG)
    watch = Monitor(CONFIG, IMAGES, every=1)
    assert "above chance" not in watch(model, lines(*[9.0] * 5)).get("advice", "")  # the first epoch
    assert "above chance" not in watch(model, lines(3, 1, 1, 1, 1, first=5)).get("advice", "")
    assert "1.40" not in watch(model, lines(*[1.0] * 5, first=10)).get("advice", "")
    assert "the loss, 2.50, is still above chance" in watch(model, lines(1, 3, 3, 3, 2.5, first=15))["advice"]


def test_embeddings_that_are_all_equal_are_found_by_the_monitor():
    model = build_model(CONFIG)
    for _, parameter in model.head.named_parameters():
        parameter.data = 0 * parameter.data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "MOST_PAIRS", 8)
        found = Monitor(CONFIG, IMAGES, every=1)(model, lines(*[1.0] * 5))
    assert found["advice"].startswith("the embeddings have collapsed")


@pytest.mark.slow
def test_the_command_measures_shows_and_records_and_none_is_asked_for_with_0(tmp_path: Path, capsys):
    for k, image in enumerate(IMAGES):
        (tmp_path / "photos" / f"{LABELS[k]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / f"{LABELS[k]}" / f"{k}.png")
    common = ["pretrain", "--data", str(tmp_path / "photos"), "--size", "8", "--batch", "4", "--epochs", "2"]
    assert main([*common, "--out", str(tmp_path / "run")]) == 0
    assert re.search(r"top-1 \d+ %, kNN \d+ %, rank \d+, ", capsys.readouterr().err)
    assert main([*common, "--out", str(tmp_path / "other"), "--monitor", "0"]) == 0
    assert "rank" not in capsys.readouterr().err
    assert main([*common, "--out", str(tmp_path / "third"), "--monitor", "-1"]) == 2
    seen, unseen = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "other"))
    assert [json.loads(line)["loss"] for line in seen.splitlines()] == [
        json.loads(line)["loss"] for line in unseen.splitlines()
    ]
    assert ("knn" in seen, "knn" in unseen) == (True, False)


def test_advice_is_printed_on_a_line_of_its_own(capsys):
    metrics = {"step": 3, "steps": 9, "loss": 1.0, "chance": 2.0, "top1": 0.5, "images_per_second": 1.0}
    with training(CONFIG, 0) as progress:
        progress(metrics | {"advice": "try something"})
    assert capsys.readouterr().err.splitlines()[0] == "minisimclr: note: step 4: try something"
