"""Fine-tuning: which labels are taken, that it trains, and that what was made is kept and not made again."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
from devices import host
from PIL import Image

import minisimclr as ms
from minisimclr import storage
from minisimclr.cli import finetune as command
from minisimclr.cli import main
from minisimclr.protocols import finetune as protocol
from minisimclr.protocols.finetune import labels_of_each, total_steps
from minisimclr.report.label_curve import label_curve
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

Array = np.ndarray


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


def dataset(n: int, seed: int = 0) -> ms.Dataset:
    """Images of two classes; one is red."""
    labels = np.arange(n) % 2
    images = np.random.default_rng(seed).integers(0, 100, (n, 8, 8, 3)).astype(np.uint8)
    images[labels == 1, :, :, 0] += 150
    return ms.Dataset(images, labels, ("grey", "red"))


def untrained() -> Run:
    config = ms.Config(size=8, head_dim=8, device=devices.DEVICE)
    return Run(config, build_model(config).to(devices.DEVICE), steps=7)


def state(module: Any) -> dict[str, Array]:
    return {name: host(array).copy() for name, array in module.state_dict().items()}


# ── Which labels ──────────────────────────────────────────────────────────────────────────────────


def test_a_share_is_balanced_over_the_classes_and_a_number_is_of_each():
    y = np.repeat([0, 1, 2], [600, 300, 100])
    assert np.bincount(y[labels_of_each(y, "3%")]).tolist() == [10, 10, 10]
    assert np.bincount(y[labels_of_each(y, 25)]).tolist() == [25, 25, 25]
    assert np.bincount(y[labels_of_each(y, "60%")]).tolist() == [200, 200, 100]  # a small class gives all
    assert len(labels_of_each(y, "100%")) == 1000
    assert np.bincount(y[labels_of_each(y, "0.01%")]).tolist() == [1, 1, 1]


def test_the_same_seed_takes_the_same_labels_and_more_labels_include_the_fewer():
    y = np.random.default_rng(0).integers(0, 4, 200)
    few, more = labels_of_each(y, 5), labels_of_each(y, 20)
    assert np.array_equal(few, labels_of_each(y, "5"))
    assert set(few) < set(more)
    assert set(few) != set(labels_of_each(y, 5, seed=1))
    assert len(set(few)) == 20


@pytest.mark.parametrize("bad", ["0%", "101%", "", "ten", "-3", "0", 0, -1, "1 percent", "1%%", 2.5, None])
def test_an_amount_that_is_neither_a_share_nor_a_number_is_refused(bad):
    with pytest.raises(ValueError, match="labels must be a share"):
        labels_of_each(np.arange(10) % 2, bad)


def test_the_number_of_steps_is_the_papers_but_never_a_handful():
    assert total_steps(13_000, 1_300_000, 4096, None) == 200  # 60 epochs are 180
    assert total_steps(130_000, 1_300_000, 4096, None) == 30 * 31
    assert total_steps(12_800, 1_300_000, 128, None) == 60 * 100
    assert total_steps(40, 1000, 10, 3) == 12


def test_the_share_that_is_asked_for_decides_the_epochs_and_not_the_rounded_count():
    assert total_steps(496, 5000, 16, None) == 60 * 31
    assert total_steps(496, 5000, 16, None, 0.1) == 30 * 31  # 10 % of 5,000 doodles in 16 classes
    assert total_steps(512, 5000, 16, None, 0.0999) == 60 * 32
    run, train, seen = untrained(), dataset(86), []  # 10 % are 4 labels of each of two classes, and 8 < 8.6

    def stop(step: int, steps: int, loss: float) -> None:
        seen.append(steps)
        raise InterruptedError

    for labels in ("10%", 4):
        with pytest.raises(InterruptedError):
            ms.finetune(run, train, labels=labels, batch=2, progress=stop)
    assert seen == [200, 60 * 4]  # 30 epochs are 120 steps


def test_a_point_that_was_made_when_the_count_decided_the_epochs_is_another():
    known = [protocol.identity(untrained(), dataset(86), labels, "simclr", epochs=epochs)
             for labels, epochs in (("10%", None), ("10%", 3), ("25%", None), ("4", None))]  # fmt: skip
    assert ["epochs_by" in point for point in known] == [True, False, False, False]


# ── Training ──────────────────────────────────────────────────────────────────────────────────────


def test_a_few_labels_are_learned_and_the_runs_own_model_stays_as_it_was():
    run, train, test = untrained(), dataset(60), dataset(40, seed=1)
    before = state(run.model)
    losses: list[float] = []
    model = ms.finetune(run, train, labels=8, epochs=30, lr=4.0, progress=lambda step, steps, loss: losses.append(loss))
    assert (model.predict(test.images) == test.labels).mean() > 0.9
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)  # the first answer: both classes alike
    assert losses[-1] < 0.3
    after = state(run.model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert not np.array_equal(state(model.encoder)["conv1.weight"], state(run.model.encoder)["conv1.weight"])


def test_it_starts_at_the_runs_encoder_or_at_the_first_weights_of_its_network():
    run = untrained()
    run.model.load_state_dict({name: array + 0.1 for name, array in run.model.state_dict().items()})
    for start, expected in (("simclr", run.model), ("scratch", build_model(run.config))):
        model = protocol.classifier(run, 2, start, devices.DEVICE, 0)
        theirs = state(expected.encoder)
        assert all(np.array_equal(array, theirs[name]) for name, array in state(model.encoder).items())


@pytest.mark.parametrize("start", ["simclr", "scratch"])
def test_with_a_rate_of_zero_the_encoder_stays_as_it_was(start):
    run = untrained()
    first = state(run.model.encoder)["conv1.weight"]
    run.model.load_state_dict({name: array + 0.1 for name, array in run.model.state_dict().items()})
    tuned = state(ms.finetune(run, dataset(8), labels=2, epochs=2, lr=0.0, start=start).encoder)["conv1.weight"]
    np.testing.assert_array_equal(tuned, first + np.float32(0.1) if start == "simclr" else first)


@pytest.mark.parametrize(("start", "rate", "warm"), [("simclr", 0.05, 0), ("scratch", 0.1, 2)])
def test_the_rate_of_each_step_is_the_papers_formula_and_from_scratch_it_is_larger_and_warms_up(
    start, rate, warm, monkeypatch
):
    seen: list[float] = []
    monkeypatch.setattr(protocol.SGD, "step", lambda self, lr: seen.append(lr))
    ms.finetune(untrained(), dataset(8), labels=2, epochs=40, batch=4, start=start)
    peak, fall = rate * 4 / 256, np.pi / (40 - warm)
    expected = [peak * k / warm if k < warm else peak / 2 * (1 + np.cos(fall * (k - warm))) for k in range(40)]
    np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("start", "rate"), [("simclr", 0.05), ("scratch", 0.1)])
def test_one_step_of_the_linear_layer_is_the_closed_form_of_its_zero_weights(start, rate):
    """All logits are 0 at first, so p = 1/2; Nesterov's first step is 1 + 0.9 times the rate times the gradient."""
    run, train = untrained(), dataset(8)
    chosen = labels_of_each(train.labels, 2)
    rows = chosen[np.random.default_rng([0, 1, 0]).permutation(4)]
    x, _ = protocol.two_views(train.images[rows], np.random.default_rng([0, 2, 0]), 8, 0.0, False, run.config.min_area)
    h = host(build_model(run.config).to(devices.DEVICE).encoder(devices.on_device(x), train=True).data)  # (4,D)
    gradient = (0.5 - np.eye(2)[train.labels[rows]]).T @ h / 4  # (2,D)
    found = state(ms.finetune(run, train, labels=2, epochs=1, batch=4, start=start))["fc.weight"]
    np.testing.assert_allclose(found, -1.9 * rate * 4 / 256 * gradient, rtol=1e-4, atol=1e-8)


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another():
    run, train = untrained(), dataset(20)
    first, again, other = (
        state(ms.finetune(run, train, labels=4, epochs=2, seed=seed))["fc.weight"] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_crops_and_flips_are_drawn_and_colours_stay(monkeypatch):
    seen: list[Array] = []
    views = protocol.two_views

    def spy(*args: Any) -> Any:
        found = views(*args)
        seen.append(host(found[0]))
        return found

    monkeypatch.setattr(protocol, "two_views", spy)
    colours = np.array([[10, 200, 90], [250, 3, 120]], np.uint8)
    images = np.broadcast_to(colours[:, None, None, :], (2, 8, 8, 3)).copy()
    ms.finetune(untrained(), ms.Dataset(images, np.array([0, 1]), ("a", "b")), labels=1, epochs=5)
    for batch in seen:
        for image in batch:
            assert min(abs(image - colour / np.float32(255)).max() for colour in colours) < 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [({"start": "there"}, "start must be"), ({"epochs": 0}, "epochs"), ({"batch": 0}, "batch"), ({"lr": -1}, "lr")],
)
def test_settings_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        ms.finetune(untrained(), dataset(8), labels=2, **options)


def test_labels_of_one_class_are_refused():
    images = dataset(6).images
    with pytest.raises(ms.DataError, match="two classes"):
        ms.finetune(untrained(), ms.Dataset(images, np.zeros(6, int), ("a", "b")), labels=2)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run; its images lie beside it."""
    for split, n in (("train", 24), ("test", 8)):
        data = dataset(n, seed=len(split))
        for k, image in enumerate(data.images):
            place = tmp_path / "photos" / split / data.class_names[data.labels[k]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{k:02}.png")
    config = ms.Config(data=str(tmp_path / "photos"), size=8, batch=4, epochs=1, head_dim=8)
    ms.pretrain(config, folder=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.host
def test_the_curve_is_made_of_points_that_are_kept_and_not_made_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "CURVE", (2, 4, 500))
    made: list[tuple[str, str]] = []
    point = command.point

    def broken(run: Run, train: Any, tests: Any, labels: str, start: str, **options: Any) -> Any:
        if (labels, start) == ("4", "scratch") and not made[3:]:
            made.append((labels, "broken off"))
            raise KeyboardInterrupt
        made.append((labels, start))
        return point(run, train, tests, labels, start, **options)

    monkeypatch.setattr(command, "point", broken)
    curve = ["finetune", str(folder), "--curve", "--epochs", "1"]
    assert main(curve) == 130
    assert len(json.loads((folder / "finetune.json").read_text())["points"]) == 3
    assert main(curve) == 0
    printed = capsys.readouterr()
    assert made == [("2", "simclr"), ("2", "scratch"), ("4", "simclr"), ("4", "broken off"), ("4", "scratch")]
    assert "no class has more than 12 labelled images: the curve ends at 4" in printed.err
    with Image.open(folder / "finetune.png") as picture:
        assert picture.size > (300, 200)
    points = json.loads((folder / "finetune.json").read_text())["points"]
    assert {(p["labels"], p["start"], p["count"]) for p in points} == {
        (str(n), start, 2 * n) for n in (2, 4) for start in ("simclr", "scratch")
    }
    assert all(0 <= p["scores"]["test"]["accuracy"] <= 1 and p["data"].endswith("photos") for p in points)
    assert main([*curve, "--seed", "1", "--curve"]) == 0  # another seed is another point
    assert len(made) == 9


@pytest.mark.host
def test_one_point_prints_a_line_with_its_uncertainty(folder, capsys):
    assert main(["finetune", str(folder), "--labels", "25%", "--from", "scratch", "--epochs", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("scratch")
    assert "25% (6 images)" in line
    assert "±" in line


SCORE = {"accuracy": 0.5, "per_class": 0.5, "images": 4}
POINT: dict[str, Any] = {"labels": "1", "start": "simclr", "count": 2, "scores": {"test": SCORE}}
WRONG_POINTS = [
    json.dumps({"points": [point]})
    for point in (
        *(POINT | wrong for wrong in ({"labels": 1}, {"start": "\x1b[2J"}, {"start": []}, {"count": "2"})),
        *(POINT | {"scores": {"test": SCORE | wrong}} for wrong in (
            {"images": 0}, {"images": 1e400}, {"accuracy": 10**400}, {"accuracy": float("nan")}, {"per_class": -1},
        )),
    )
]  # fmt: skip


@pytest.mark.host
def test_a_file_that_is_not_ours_is_refused_and_left(folder, capsys):
    for content in ("[]", "{}", '{"points": [{"scores": {"test": {"accuracy": "x"}}}]}', "no json", *WRONG_POINTS):
        (folder / "finetune.json").write_text(content)
        assert main(["finetune", str(folder), "--labels", "1"]) == 2
        assert "finetune.json holds no points" in capsys.readouterr().err
        assert (folder / "finetune.json").read_text() == content
    if os.name == "posix":
        (folder / "finetune.json").unlink()
        os.mkfifo(folder / "finetune.json")
        assert main(["finetune", str(folder), "--labels", "1"]) == 4
        assert "finetune.json: it is a pipe, not a file" in capsys.readouterr().err


@pytest.mark.host
def test_points_of_other_splits_or_settings_are_kept_apart():
    tests = {"test": dataset(4)}
    points = [{"lr": lr, "scores": {split: {"images": n}}} for lr in (1, 2) for split, n in (("test", 4), ("test", 5))]
    assert protocol.found_among(points, {"lr": 2}, tests) is points[2]
    assert protocol.found_among(points, {"lr": 3}, tests) is None
    assert protocol.found_among(points, {"lr": 2}, {"unseen": dataset(4)}) is None
    assert protocol.found_among(points, {"lr": 2}, tests | {"unseen": dataset(4)}) is None


@pytest.mark.host
def test_a_point_that_was_scored_on_another_split_is_made_again(folder, capsys):
    """Its accuracy would be shown as that of the split that is asked for now."""
    call = ["finetune", str(folder), "--labels", "25%", "--from", "scratch", "--epochs", "1"]
    assert main(call) == 0
    kept = json.loads((folder / "finetune.json").read_text())
    kept["points"][0]["scores"] = {"unseen": kept["points"][0]["scores"]["test"] | {"accuracy": 0.125}}
    (folder / "finetune.json").write_text(json.dumps(kept))
    assert main(call) == 0
    assert "12.5" not in capsys.readouterr().out
    assert [[*point["scores"]] for point in json.loads((folder / "finetune.json").read_text())["points"]] == [
        ["unseen"],
        ["test"],
    ]


@pytest.mark.host
def test_a_point_that_was_scored_on_other_images_of_the_same_number_is_made_again(folder, capsys, monkeypatch):
    made: list[str] = []
    point = command.point
    monkeypatch.setattr(command, "point", lambda *args, **options: made.append("") or point(*args, **options))
    call = ["finetune", str(folder), "--labels", "25%", "--from", "scratch", "--epochs", "1"]
    assert main(call) == main(call) == 0
    assert len(made) == 1
    photo = next((folder.parent / "photos" / "test").rglob("*.png"))
    Image.fromarray(np.full((8, 8, 3), 77, np.uint8)).save(photo)
    assert main(call) == main(call) == 0
    assert len(made) == 2
    kept = json.loads((folder / "finetune.json").read_text())
    assert len({p["scores"]["test"]["fingerprint"] for p in kept["points"]}) == len(kept["points"]) == 2
    del kept["points"][1]
    del kept["points"][0]["scores"]["test"]["fingerprint"]  # a point of an earlier version
    (folder / "finetune.json").write_text(json.dumps(kept))
    assert main(call) == 0
    assert len(made) == 2


@pytest.mark.host
def test_a_fingerprint_counts_the_images_that_could_not_be_decoded_too():
    data = dataset(4)
    score = {"images": 3, "fingerprint": protocol._known(data)}
    points = [{"scores": {"test": score | {"fingerprint": "another"}}}, {"scores": {"test": score}}]
    assert protocol.found_among(points, {}, {"test": data}) is points[1]


@pytest.mark.host
def test_the_test_images_and_all_labels_of_a_point_matter():
    train, test = dataset(8), dataset(4, seed=1)
    wanted = protocol.identity(untrained(), train, 1, "scratch")
    made = {**wanted, "scores": {"test": {"images": 4, "fingerprint": protocol._known(test)}}}
    turned = ms.Dataset(test.images, 1 - test.labels, test.class_names)
    assert protocol.found_among([made], wanted, {"test": test}) is made
    for other in (dataset(4, seed=2), turned):
        assert protocol.found_among([made], wanted, {"test": other}) is None
    relabelled = ms.Dataset(train.images, 1 - train.labels, train.class_names)
    now = protocol.identity(untrained(), relabelled, 1, "scratch")
    assert protocol.found_among([made], now, {"test": test}) is None
    older = {name: value for name, value in made.items() if name != "labelled"}
    assert protocol.found_among([older], now, {"test": test}) is older  # an earlier version stored none


@pytest.mark.host
def test_no_accuracy_is_of_the_images_that_were_trained_on(folder, capsys):
    assert main(["finetune", str(folder), "--labels", "1", "--epochs", "1", "--test-split", "train"]) == 2
    assert "train has the very images of the training split" in capsys.readouterr().err
    assert not (folder / "finetune.json").exists()


# ── Two commands at a time ────────────────────────────────────────────────────────────────────────


def stored(folder: Path) -> list[str]:
    return [p["labels"] for p in json.loads((folder / "finetune.json").read_text())["points"]]


@pytest.mark.host
def test_what_another_command_stored_meanwhile_stays(folder, monkeypatch):
    point = command.point

    def meanwhile(*args: Any, **options: Any) -> Any:
        found = point(*args, **options)
        for other in (POINT | {"labels": "7"}, found | {"data": "there", "seconds": 1e3}):
            command.keep(folder, [other], {})
        return found

    monkeypatch.setattr(command, "point", meanwhile)
    assert main(["finetune", str(folder), "--labels", "2", "--epochs", "1"]) == 0
    assert stored(folder) == ["7", "2"]  # the same point of both is one


@pytest.mark.host
def test_many_that_write_at_once_lose_no_point(tmp_path):
    def write(first: int) -> None:
        for k in range(first, 40, 8):
            command.keep(tmp_path, [POINT | {"labels": str(k + 1)}], {})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert sorted(stored(tmp_path), key=int) == [str(k + 1) for k in range(40)]
    assert [path.name for path in tmp_path.iterdir()] == ["finetune.json"]


@pytest.mark.host
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such lock")
def test_a_command_that_finds_the_lock_says_so_in_a_line_and_one_that_was_left_is_taken(folder, capsys, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.1)
    beside = folder / ".finetune.json.lock"
    beside.touch()
    held = storage.Lock(beside)
    call = ["finetune", str(folder), "--labels", "1", "--epochs", "1"]
    assert main(call) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1
    assert "finetune.json is in use: another process writes it" in said[0]
    assert not (folder / "finetune.json").exists()
    held.release()  # as if it had been killed: the file is left
    assert main(call) == 0
    assert stored(folder) == ["1"]
    assert not beside.exists()
    os.mkfifo(beside)
    assert main([*call, "--seed", "1"]) == 4
    assert "is a pipe" in capsys.readouterr().err


@pytest.mark.host
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such lock")
def test_a_lock_of_a_file_that_was_removed_and_made_again_is_not_of_that_name(tmp_path):
    path = tmp_path / "file"
    path.touch()
    lock = storage.Lock(path)
    assert lock.is_of(path)
    path.rename(tmp_path / "other")
    assert not lock.is_of(path)
    path.touch()
    assert not lock.is_of(path)
    lock.release()


# ── Options ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--labels", "1%"], "leave out --labels"),
        (["--from", "simclr"], "leave out --from"),
        (["--from", "scratch", "--labels", "9"], "leave out --labels and --from"),
    ],
)
def test_the_curve_takes_neither_labels_nor_a_start(folder, capsys, monkeypatch, extra, named):
    monkeypatch.setattr(command, "point", lambda *args, **options: 1 / 0)
    assert main(["finetune", str(folder), "--curve", *extra]) == 2
    assert capsys.readouterr().err.rstrip().endswith(named)


@pytest.mark.host
def test_without_options_one_percent_of_the_labels_are_taken_from_the_runs_encoder(folder):
    assert main(["finetune", str(folder), "--epochs", "1"]) == 0
    assert [(p["labels"], p["start"]) for p in json.loads((folder / "finetune.json").read_text())["points"]] == [
        ("1%", "simclr")
    ]
    assert main(["finetune", str(folder), "--labels", ""]) == 2  # and not the default


@pytest.mark.host
def test_wrong_labels_are_refused_before_anything_is_trained(folder, capsys, monkeypatch):
    monkeypatch.setattr(command, "point", lambda *args, **options: 1 / 0)
    assert main(["finetune", str(folder), "--labels", "many"]) == 2
    assert "labels must be a share" in capsys.readouterr().err


@pytest.mark.host
def test_the_curve_can_be_drawn_of_a_single_point():
    point = {"labels": "10", "start": "simclr", "scores": {"test": {"accuracy": 1.0, "images": 4}}}
    assert label_curve([point], "test", "title").startswith(b"\x89PNG")
