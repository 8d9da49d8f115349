"""The paper lab: its experiments fit the package, its rivals learn, and a run that is stored is not run again."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms
from minisimclr.data import Dataset

pytestmark = pytest.mark.host  # the lab trains on the host

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RIVALS = ("supervised", "rotation", "instance", "masked")


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("paper")
    for name in ("paper", "rivals"):
        sys.modules.pop(name, None)


def small(count: int = 16, size: int = 16, classes: int = 2, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 64, (count, size, size, 3)) + 190 * labels[:, None, None, None]  # dark and bright
    return Dataset(images.astype(np.uint8), labels, ("dark", "bright"))


def done_once(experiment: Any) -> list[dict[str, Any]]:
    """Results of seed 0, as if every setting had been tried; the last one of each label is the best."""
    return [
        {"label": label, "settings": tried, "seed": 0, "h linear": 50.0, "validation": 10.0 * k}
        for label in experiment.settings
        for k, tried in enumerate(experiment.tried(label))
    ]


CONFIG = ms.Config(batch=8, epochs=1, size=16, warmup=0.0)


def test_every_run_of_every_experiment_is_a_valid_configuration(lab: Any) -> None:
    labels = 0
    for name, experiment in lab.EXPERIMENTS.items():
        runs = list(experiment.runs(done_once(experiment)))
        names = {(run.label, str(run.settings), run.seed) for run in runs}
        assert len(names) == len(runs), f"{name}: two runs of one name"
        for run in runs:
            settings = {key: value for key, value in run.settings.items() if key != "task"}
            ms.Config(**lab.BASE | settings, seed=run.seed)
        assert experiment.paper.keys() <= experiment.settings.keys(), f"{name}: the paper's rows are among ours"
        labels += len(experiment.settings)
    assert labels > 50
    assert len(lab.EXPERIMENTS["pairs"].settings) == 28  # unordered pairs of seven changes, and each alone


@pytest.mark.parametrize("name", RIVALS)
def test_each_rival_has_a_gradient_for_all_its_weights_and_moves_them(lab: Any, name: str) -> None:
    data, losses = small(), []
    rival = lab.train(name, CONFIG, data.images, data.labels, lambda step, loss: losses.append(loss))
    fresh = lab.RIVALS[name](CONFIG, data.images, data.labels)
    assert len(losses) == 2
    for (place, now), before in zip(rival.named_parameters(), fresh.parameters()):
        assert (now.data != before.data).any(), f"{place} has not moved"


def test_an_untrained_rotation_classifier_is_near_chance(lab: Any) -> None:
    data = small()
    rival = lab.RIVALS["rotation"](CONFIG, data.images, data.labels)
    loss = rival.loss(data.images.astype(np.float32) / 255, np.arange(16), np.random.default_rng(0)).item()
    assert abs(loss - np.log(4)) < 0.5


def test_only_hidden_patches_count_in_masked_modelling(lab: Any) -> None:
    """A decoder that paints black errs by the mean square of the hidden pixels: 1 on white images, 0 on black ones."""
    data = small()
    rival = lab.RIVALS["masked"](CONFIG, data.images, data.labels)
    x = data.images.astype(np.float32) / 255
    for parameter in rival.decoder.parameters():
        parameter.data = np.zeros_like(parameter.data)
    white = np.ones_like(x)
    assert rival.loss(white, np.arange(16), np.random.default_rng(0)).item() == pytest.approx(1, rel=1e-6)
    assert rival.loss(np.zeros_like(x), np.arange(16), np.random.default_rng(0)).item() == 0


def test_the_memory_bank_keeps_unit_vectors_and_moves_only_those_that_were_seen(lab: Any) -> None:
    data = small()
    rival = lab.RIVALS["instance"](CONFIG, data.images, data.labels)
    before = rival.bank.copy()
    rival.loss(data.images[:4].astype(np.float32) / 255, np.arange(4), np.random.default_rng(0))
    rival.after_step()
    np.testing.assert_allclose(np.linalg.norm(rival.bank, axis=1), 1, rtol=1e-6)
    assert (rival.bank[:4] != before[:4]).any(axis=1).all()
    np.testing.assert_array_equal(rival.bank[4:], before[4:])


def test_the_memory_bank_moves_to_both_views_of_an_image(lab: Any) -> None:
    """Which view comes first must not matter, and the row moves halfway to their mean direction."""
    data, banks = small(), []
    views = data.images[:4].astype(np.float32) / 255  # images 3 and 5, seen twice
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        rival = lab.RIVALS["instance"](CONFIG, data.images, data.labels)
        rival.loss(views[order], np.array([3, 5, 3, 5]), np.random.default_rng(0))
        rival.after_step()
        banks.append(rival.bank)
    np.testing.assert_allclose(banks[0], banks[1], atol=1e-5)
    axes = np.eye(4, CONFIG.head_dim, dtype=np.float32)
    rival.bank[3] = axes[0]
    rival._seen = (np.array([3, 3]), axes[1:3])
    rival.after_step()
    np.testing.assert_allclose(rival.bank[3, :3], [2**-0.5, 0.5, 0.5], rtol=1e-6)


def test_a_rival_refuses_fewer_images_than_a_batch(lab: Any) -> None:
    data = small(4)
    with pytest.raises(ValueError, match="4 images do not fill a batch of 8"):
        lab.train("rotation", CONFIG, data.images, data.labels)


def test_the_example_of_the_rivals_is_true(lab: Any) -> None:
    text = sys.modules["rivals"].__doc__ or ""
    example = text[text.index("    from rivals") :].partition("\n\n")[0]
    data = small()
    names: dict[str, Any] = {"config": CONFIG, "images": data.images, "labels": data.labels}
    exec(textwrap.dedent(example), names)
    assert isinstance(names["rival"].encoder, type(lab.RIVALS["rotation"](CONFIG, data.images, data.labels).encoder))
    assert "upper bound" not in text  # the labels that train it choose its rate, too


def test_the_loss_without_lengths_is_nt_xent_where_all_lengths_are_1(lab: Any) -> None:
    za, zb = np.random.default_rng(0).standard_normal((2, 6, 4))
    za, zb = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (za, zb))
    expected = ms.nt_xent(za, zb, 0.5).item()
    assert lab.dot_products(ms.Tensor(za), ms.Tensor(zb), 0.5).item() == pytest.approx(expected, rel=1e-6)
    assert lab.dot_products(ms.Tensor(3 * za), ms.Tensor(zb), 0.5).item() != pytest.approx(expected, rel=1e-2)


def test_what_was_done_to_an_image_is_labelled_as_it_was_done(lab: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    turned, turns = lab.CHANGES["rotation"](images, np.random.default_rng(0))
    for image, result, k in zip(images, turned, turns):
        np.testing.assert_array_equal(result, np.rot90(image, k))
    assert set(turns) == {0, 1, 2, 3}
    for name in ("colour", "noise", "Sobel"):
        changed, yes = lab.CHANGES[name](images, np.random.default_rng(0))
        np.testing.assert_array_equal((changed != images).any(axis=(1, 2, 3)), yes == 1)
        assert changed.dtype == np.uint8


def test_the_first_images_have_every_class_alike(lab: Any) -> None:
    data = lab.first(small(count=40, classes=2), 10)
    assert np.bincount(data.labels).tolist() == [5, 5]
    assert len(lab.first(small(count=40), 100).images) == 40  # no more than there are


@pytest.fixture
def performed(lab: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The runs that were asked for: none is made, and each has a score that follows from its settings and seed."""
    made: list[Any] = []

    def instead(run: Any, base: Any, sets: Any) -> dict[str, Any]:
        made.append(run)
        score = 50.0 + run.seed
        return {
            **run._asdict(),
            "h kNN": score,
            "h linear": score,
            "validation": run.settings.get("lr", 0.0),
            "seconds": 0.0,
        }

    monkeypatch.setattr(lab, "performed", instead)
    monkeypatch.setattr(ms, "load_dataset", lambda *_, **__: small(64))  # to draw all doodles takes seconds
    return made


def test_a_stored_run_is_not_run_again_and_other_settings_are_refused(
    lab: Any, tmp_path: Path, performed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    instead, path = lab.performed, tmp_path / "head-doodles.json"

    def three(*arguments: Any) -> dict[str, Any]:
        if len(performed) == 3:
            raise KeyboardInterrupt
        return dict(instead(*arguments))

    monkeypatch.setattr(lab, "performed", three)
    with pytest.raises(KeyboardInterrupt):
        lab.conduct("head", "doodles", 2, path, images=32)
    assert len(json.loads(path.read_text())["runs"]) == 3  # what was done before the interrupt is kept
    monkeypatch.setattr(lab, "performed", instead)
    runs = lab.conduct("head", "doodles", 2, path, images=32)
    assert len(runs) == len(performed) == 8
    assert "| none | 50.5 ± 0.7 | 50.5 ± 0.7 | 2 |" in lab.table(lab.EXPERIMENTS["head"], runs)
    with pytest.raises(ValueError, match="other settings"):
        lab.conduct("head", "doodles", 2, path, images=48)


def test_a_record_of_other_images_is_refused_and_an_older_one_is_believed(
    lab: Any, tmp_path: Path, performed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head-photos.json"
    lab.conduct("head", "a/photos.zip", 1, path, images=32)
    record = json.loads(path.read_text())
    assert record["fingerprints"].keys() == {"training", "test"}
    monkeypatch.setattr(ms, "load_dataset", lambda *_, **__: small(64, seed=1))
    with pytest.raises(ValueError, match=r"head-photos\.json: its runs saw other images"):
        lab.conduct("head", "b/photos.zip", 1, path, images=32)
    lab.conduct("temperature", "b/photos.zip", 1, tmp_path / "temperature-photos.json", images=32)
    shared = json.loads((tmp_path / "temperature-photos.json").read_text())["runs"]
    assert not [run for run in shared if "from" in run]  # τ = 0.1 of the other images is another run
    older = {key: record[key] for key in ("experiment", "data", "images", "base", "runs")}
    path.write_text(json.dumps(older))
    made = len(performed)
    assert lab.conduct("head", "b/photos.zip", 1, path, images=32) == older["runs"]
    assert len(performed) == made


def test_fewer_images_than_asked_for_are_said_and_counted(
    lab: Any, tmp_path: Path, performed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "head-doodles.json"
    lab.conduct("head", "doodles", 1, path, images=100)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if "asked" in line] == ["doodles, train: 100 images were asked for, and there are 64"]
    record = json.loads(path.read_text())
    assert (record["images"], record["training images"], record["test images"]) == (100, 64, 50)
    lab.conduct("head", "doodles", 1, path, images=100)  # what is compared is what was asked for


def test_the_records_in_the_repository_are_readable(lab: Any) -> None:
    seen = lab.seen_by(small(64), small(32))
    for path in lab.RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        base = lab.BASE | (lab.DOODLES if record["data"] == "doodles" else {})
        head = {"experiment": record["experiment"], "data": record["data"], "images": record["images"], "base": base}
        if "fingerprints" not in record:
            assert lab.stored(path, head, seen) == record
        assert lab.table(lab.EXPERIMENTS[record["experiment"]], record["runs"])


def test_the_setting_that_is_best_on_held_out_training_images_gets_the_other_seeds(
    lab: Any, tmp_path: Path, performed: list[Any]
) -> None:
    runs = lab.conduct("loss", "doodles", 2, tmp_path / "loss-doodles.json", images=32)
    triplet = [(run.settings["lr"], run.seed) for run in performed if run.label == "triplet"]
    low, high = (tried["lr"] for tried in lab.TRIPLET)
    assert triplet == [(low, 0), (high, 0), (high, 1)]  # here the validation score is the rate
    (row,) = [line for line in lab.table(lab.EXPERIMENTS["loss"], runs).splitlines() if line.startswith("| triplet |")]
    assert row == f"| triplet | 50.5 ± 0.7 | 50.5 ± 0.7 | lr {high:g} | 2 | 50.9 |"  # the other rate is not averaged in


def test_a_setting_is_not_called_chosen_before_all_were_tried(lab: Any) -> None:
    loss = lab.EXPERIMENTS["loss"]
    runs = [run for run in done_once(loss) if run["label"] == "nt_logistic"]
    assert [run["settings"]["lr"] for run in runs] == [0.4, 2.0]
    assert "| temperature 0.1, lr 0.4 (1 of 2 tried) |" in lab.table(loss, runs[:1])
    assert "| temperature 0.5, lr 2 |" in lab.table(loss, runs)


def test_z_is_neither_measured_nor_shown_where_no_head_was_trained(lab: Any) -> None:
    families = lab.EXPERIMENTS["families"]
    base = {"batch": 8, "epochs": 1, "size": 16}
    for task in ("rotation", "untrained"):
        found = lab.performed(lab.Run(task, {"task": task}, 0), base, (small(), small(8)))
        assert {"h kNN", "h linear", "validation"} <= found.keys()
        assert not [key for key in found if key.startswith("z ")], task
    scores = {"h kNN": 20.0, "h linear": 30.0, "z kNN": 40.0, "z linear": 50.0, "validation": 0.0}
    older = [
        {"label": label, "settings": families.tried(label)[-1], "seed": 0, **scores}
        for label in ("SimCLR", "masked", "untrained")
    ]
    lines = lab.table(families, older).splitlines()
    assert lines[2].startswith("| SimCLR | 20.0 | 30.0 | 40.0 | 50.0 |")
    assert lines[3].startswith("| masked | 20.0 | 30.0 | – | – |")
    assert lines[4].startswith("| untrained | 20.0 | 30.0 | – | – |")


def test_what_differs_from_the_paper_is_said(lab: Any) -> None:
    pairs, loss, families = (lab.EXPERIMENTS[name].source for name in ("pairs", "loss", "families"))
    assert "first cropped at random; here, the other view is the whole image" in pairs
    assert "tuned beforehand, on more settings (docs/results/temperature, scored on test images)" in loss
    assert "a probe on images whose labels it was trained with" in families


@pytest.mark.parametrize(
    ("arguments", "line"),
    [([], "name an experiment, or give --list or --lengths"), (["head", "--seeds", "0"], "--seeds must be at least 1")],
)
def test_a_command_without_sense_is_refused(
    lab: Any, performed: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        lab.main([*arguments, "--out", str(tmp_path)])
    assert refused.value.code == 2
    assert line in capsys.readouterr().err
    assert not performed


def test_a_record_that_is_missing_or_another_is_refused_in_one_line(
    lab: Any, performed: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "head-doodles.json"
    assert lab.main(["head", "--show", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"there is no record {path}\n"
    lab.conduct("head", "doodles", 1, path, images=32)
    assert lab.main(["head", "--images", "48", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: its runs were made with other settings")


def test_the_lengths_are_those_of_training_images(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def asked_for(source: str, split: str, **_: Any) -> Dataset:
        asked.append(split)
        raise InterruptedError

    monkeypatch.setattr(ms, "load_dataset", asked_for)
    with pytest.raises(InterruptedError):
        lab.lengths()
    assert asked == ["train"]


def test_the_run_that_many_experiments_share_is_made_once(lab: Any, tmp_path: Path, performed: list[Any]) -> None:
    for name in ("temperature", "head", "keeps"):
        lab.conduct(name, "doodles", 1, tmp_path / f"{name}-doodles.json", images=32)
    base = [run.label for run in performed if not run.settings]
    assert base == ["τ = 0.1"]
    head = json.loads((tmp_path / "head-doodles.json").read_text())["runs"]
    assert [run["label"] for run in head if run.get("from") == "temperature"] == ["mlp2"]
    assert "keeps colour" in [run.settings.get("task") for run in performed]  # it is asked another question


def test_the_rate_follows_the_temperature(lab: Any) -> None:
    """SGD's step carries 1/τ: with one rate for all, a table of temperatures would be a table of rates."""
    for experiment, label in (("temperature", "τ = 0.05"), ("temperature", "τ = 1")):
        settings = lab.BASE | lab.EXPERIMENTS[experiment].settings[label]
        assert settings["lr"] / settings["temperature"] == pytest.approx(lab.RATE)


@pytest.mark.slow
def test_the_first_gradient_of_nt_xent_is_about_ten_times_as_long_at_a_tenth_of_the_temperature(lab: Any) -> None:
    found = lab.lengths(16)
    assert 5 < found["nt_xent, τ = 0.1"] / found["nt_xent, τ = 1"] < 20
    assert found["masked"] < 0.1 * found["rotation"]  # a mean over pixels: its rate must be larger
    assert len(found) == 2 + 5 + len(RIVALS)


def test_one_branch_is_changed_and_the_other_is_the_image(lab: Any) -> None:
    images = small().images
    config = ms.Config(size=16, views="whole,sobel:1")
    changed, same = lab.one_branch(config)(images, np.random.default_rng(0))
    np.testing.assert_array_equal(same, images.astype(np.float32) / np.float32(255))
    assert (changed != same).any(axis=(1, 2, 3)).all()


def test_the_best_the_worst_and_crop_with_colour_are_repeated_with_other_seeds(lab: Any) -> None:
    pairs, done = lab.EXPERIMENTS["pairs"], []
    for run in pairs.runs(done):
        score = {"crop": 90.0, "noise": 10.0}.get(run.label, 50.0)
        on_test = {"blur": 95.0, "rotate": 5.0}.get(run.label, 50.0)  # must not choose
        done.append({"label": run.label, "seed": run.seed, "validation": score, "h linear": on_test})
    assert len(done) == 28 + 6
    again = {(run["label"], run["seed"]) for run in done[28:]}
    assert again == {(label, seed) for label in ("crop + colour", "crop", "noise") for seed in (1, 2)}
    done[28:] = [{**run, "validation": 99.0 if run["label"] == "noise" else 0.0} for run in done[28:]]
    resumed = [(run.label, run.seed) for run in pairs.runs(done)][28:]
    assert set(resumed) == again  # an interruption, and what the repeated runs scored, choose no others
    assert pairs.settings["sobel"]["views"] == "whole,sobel"
    assert pairs.settings["crop + noise"]["views"] == "crop,flip,noise"


@pytest.mark.slow
@pytest.mark.parametrize("label", ["SimCLR", *RIVALS, "untrained"])
def test_a_run_is_judged_on_h_and_z_if_it_has_a_head(lab: Any, label: str) -> None:
    experiment = lab.EXPERIMENTS["families"]
    run = lab.Run(label, experiment.tried(label)[0], 0)
    found = lab.performed(run, {"batch": 8, "epochs": 2, "size": 16}, (small(64), small(32)))
    assert {"h kNN", "h linear"} <= found.keys()
    assert ({"z kNN", "z linear"} <= found.keys()) == (label == "SimCLR")
    assert all(0 <= found[key] <= 100 for key in ("h kNN", "h linear"))
    assert found["h linear"] > 90  # dark and bright are told apart by any of them


@pytest.mark.slow
@pytest.mark.parametrize("question", ["colour", "rotation", "noise", "Sobel"])
def test_what_h_keeps_is_asked_of_h_and_z(lab: Any, question: str) -> None:
    run = lab.Run(question, lab.EXPERIMENTS["keeps"].settings[question], 0)
    found = lab.performed(run, {"batch": 8, "epochs": 1, "size": 16}, (small(64), small(32)))
    assert {"h linear", "z linear"} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("label", ["τ = 10, not normalized", "τ = 0.05"])
def test_a_run_without_normalization_trains(lab: Any, label: str) -> None:
    run = lab.Run(label, lab.EXPERIMENTS["temperature"].settings[label], 0)
    found = lab.performed(run, {"batch": 16, "epochs": 8, "size": 16}, (small(64), small(32)))
    assert found["last loss"] < found["first loss"]
    assert 0 <= found["contrastive"] <= 100
