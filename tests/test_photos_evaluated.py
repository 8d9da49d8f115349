"""Photos are evaluated, drawn and fine-tuned block by block where their squares are no single array."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.data import DataError, decode, files, stream
from minisimclr.evaluation.probe import fit_linear_probe
from minisimclr.protocols import compare as protocol
from minisimclr.protocols.compare import compare
from minisimclr.report.findings import look
from minisimclr.resnet import ENCODERS, resnet_small

pytestmark = pytest.mark.host
SIZE, COUNTS = 8, {"train": 6, "test": 4}  # images of each class


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32, blocks of 5 photos in place of 500, and a probe of few steps."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))
    quick = partial(fit_linear_probe, l2_values=(1e-3,), iterations=10)
    monkeypatch.setitem(protocol.PROBES, "quick", quick)
    monkeypatch.setattr(protocol, "BLOCK", 5)
    monkeypatch.setattr(protocol, "LARGE_BLOCK", 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two sizes and two classes, of which one is red, and a run on them."""
    root, rng = tmp_path_factory.mktemp("evaluated"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name in ("grey", "red"):
            (root / "photos" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 100, (100 + k % 2, 120, 3)).astype(np.uint8)
                pixels[..., 0] += 150 * (name == "red")
                Image.fromarray(pixels).save(root / "photos" / split / name / f"{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        config = ms.Config(data=str(root / "photos"), size=SIZE, batch=4, epochs=1, head_dim=8)
        ms.pretrain(config, folder=root / "run")
    return root


@pytest.fixture
def no_array(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Squares of which no more than seven may be one array; the numbers of those that were made at a time."""
    monkeypatch.setattr(stream, "LARGEST_ARRAY", 7 * SIZE * SIZE * 3)
    asked: list[int] = []
    squares = stream.Photos.squares

    def noted(self: Any, rows: Any) -> Any:
        found = squares(self, rows)
        asked.append(len(found))
        return found

    monkeypatch.setattr(stream.Photos, "squares", noted)
    return asked


def splits(root: Path, report: Any = None) -> tuple[Any, Any]:
    return tuple(ms.load_dataset(root / "photos", name, size=SIZE, report=report) for name in COUNTS)


def break_late(root: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pixels of some files impossible to decode, which the opening pass does not notice."""
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    bad = [(root / "photos" / name).read_bytes() for name in names]
    monkeypatch.setattr(files, "kept", lambda data, height, width, *_, **__: np.zeros((height, width, 3), np.uint8))
    pixels = decode.pixels

    def failing(data: Any, *arguments: Any, **options: Any) -> Any:
        if bytes(data) in bad:
            raise ValueError("damaged")
        return pixels(data, *arguments, **options)

    monkeypatch.setattr(decode, "pixels", failing)


def test_photos_that_are_no_single_array_are_scored_as_the_array_is(made, no_array):
    run = ms.load_run(made / "run")
    train, test = splits(made)
    with pytest.raises(DataError, match="no single array"):
        _ = train.images
    scores = compare(run, train, {"test": test}, k=3)
    assert max(no_array) <= 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LARGEST_ARRAY", 2**30)
        arrays = [ms.Dataset(data.images, data.labels, data.class_names) for data in splits(made)]
    expected = compare(run, arrays[0], {"test": arrays[1]}, k=3)
    assert [score.name for score in scores] == ["raw pixels, 8×8", *(score.name for score in expected[1:])]
    assert [score.as_dict() | {"name": ""} for score in scores] == [s.as_dict() | {"name": ""} for s in expected]
    assert scores[1].knn == {"test": 1.0}


def test_raw_pixels_of_large_squares_are_means_over_cells():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    means = protocol._pixels(images, 4).reshape(2, 4, 4, 3)
    np.testing.assert_allclose(means, images.reshape(2, 4, 3, 4, 3, 3).mean(axis=(2, 4)) / 255, rtol=1e-6)
    uneven = protocol._pixels(images, 5).reshape(2, 5, 5, 3)
    np.testing.assert_allclose(uneven[:, 0, 0], images[:, :2, :2].mean(axis=(1, 2)) / 255, rtol=1e-6)
    np.testing.assert_allclose(uneven[:, 4, 4], images[:, 9:, 9:].mean(axis=(1, 2)) / 255, rtol=1e-6)


@pytest.mark.slow
def test_every_command_takes_photos_that_are_no_single_array(made, no_array, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    assert main(["evaluate", str(run), "--k", "3"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["train_images"], results["test_images"]) == (12, {"test": 8})
    assert results["scores"][0]["name"] == "raw pixels, 8×8"
    assert main(["report", str(run)]) == 0
    assert main(["finetune", str(run), "--labels", "2", "--epochs", "1"]) == 0
    assert main(["embed", str(run), "--to", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz") as stored:
        assert len(stored["h"]) == 20
    assert "single array" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_page_leaves_out_the_photos_that_break_late(made, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    break_late(made, ["train/red/1.png", "test/grey/0.png"], monkeypatch)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().err.count("it is left out") == 2
    findings = look(ms.load_run(run), *splits(made))
    assert (len(findings.train), len(findings.test)) == (11, 7)


def test_pictures_of_photos_are_those_of_their_squares(made, no_array):
    run = ms.load_run(made / "run")
    train, test = splits(made)
    by_blocks = ms.report.drawn(look(run, train, test))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LARGEST_ARRAY", 2**30)
        assert ms.report.drawn(look(run, *splits(made))) == by_blocks


@pytest.mark.parametrize("largest", [2**30, pytest.param(7 * SIZE * SIZE * 3, marks=pytest.mark.slow)])
def test_a_photo_that_breaks_late_is_left_out_of_every_score(made, largest, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    monkeypatch.setattr(stream, "LARGEST_ARRAY", largest)
    monkeypatch.setattr("minisimclr.cli.evaluate.reported", lambda *arguments: {})
    break_late(made, ["train/red/1.png", "test/grey/0.png"], monkeypatch)
    assert main(["evaluate", str(run), "--k", "3"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert (results["train_images"], results["test_images"]) == (11, {"test": 7})
    assert np.array(results["confusion"]["test"]).sum(axis=1).tolist() == [3, 4]
    said = capsys.readouterr().err
    assert said.count("train/red/1.png cannot be decoded (damaged); it is left out") == 1
    assert "takes its place" not in said
    assert main(["finetune", str(run), "--labels", "100", "--epochs", "1"]) == 0
    (point,) = json.loads((run / "finetune.json").read_text())["points"]
    assert (point["count"], point["scores"]["test"]["images"]) == (11, 7)


def test_scores_beside_a_broken_photo_agree_with_those_of_a_set_without_it(made, monkeypatch):
    """Scored as the black square that stands in its place, a red test image would be a grey one."""
    run = ms.load_run(made / "run")
    train, whole = splits(made)
    without = whole.only(np.delete(np.arange(len(whole)), whole.files.index("test/red/1.png")))
    expected = [score.as_dict() for score in compare(run, train, {"test": without}, k=3)]
    break_late(made, ["test/red/1.png"], monkeypatch)
    train, test = splits(made, report=lambda line: None)
    for score, other in zip(compare(run, train, {"test": test}, k=3), expected, strict=True):
        assert score.as_dict() | {"name": ""} == other | {"name": ""}


def test_where_too_many_photos_break_nothing_is_scored(made, monkeypatch, capsys):
    monkeypatch.setattr(stream, "TOLERATED", 1)
    break_late(made, ["train/red/1.png", "train/grey/0.png"], monkeypatch)
    assert main(["evaluate", str(made / "run"), "--k", "3"]) == 2
    assert "2 of 12 images cannot be decoded any more" in capsys.readouterr().err
    assert not (made / "run" / "results.json").exists()


def test_fine_tuning_crops_photos_from_their_own_pixels(made):
    """Squares of 8×8 have 8 rows to crop from; photos kept at four times that have 32."""
    run = ms.load_run(made / "run")
    train, _ = splits(made)
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        read_all = stream.Photos.read_all
        patch.setattr(stream.Photos, "read_all", lambda self, *a: seen.extend(got := read_all(self, *a)) or got)
        ms.finetune(run, train, labels=3, epochs=1)
    assert len(seen) == 6
    assert all(min(pixels.shape[:2]) == 4 * SIZE for pixels in seen)


def test_one_photo_is_picked_as_one_row_of_an_array_is(made):
    train, _ = splits(made)
    assert train[3].shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(train[np.int64(3)], train.images[3])
    some = train.only(np.array([5, 2]))
    assert some.files == (train.files[5], train.files[2])
    np.testing.assert_array_equal(some.images, train.images[[5, 2]])
    np.testing.assert_array_equal(some.read(1), train.read(2))


def test_a_notebook_shows_some_of_the_photos_and_decodes_no_others(made, no_array, monkeypatch):
    monkeypatch.setattr("minisimclr.display.IMAGES", 3)
    shown = splits(made)[0]._repr_html_()
    assert "data:image/png" in shown
    assert "12 images" in shown
    assert no_array == [3]
