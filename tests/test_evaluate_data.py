"""Evaluations that would mean nothing are refused, and results of different images are kept apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.data import DataError, Dataset
from minisimclr.protocols.compare import check_data
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training.config import build_model
from minisimclr.training.run import Run, fingerprint

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no pictures: where numbers are looked at, they would take most of the time."""
    monkeypatch.setattr("minisimclr.cli.evaluate.reported", lambda *args, **options: {})


def photos(folder: Path, seed: int = 0) -> Path:
    """12 images for training and 4 for testing, of two classes of which one is twice as large."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 4), ("test", 2)):
        for name, times in (("blue", 1), ("red", 2)):
            (folder / split / name).mkdir(parents=True)
            for k in range(count * times):
                pixels = rng.integers(0, 100, (8, 8, 3)).astype(np.uint8)
                pixels[..., 0 if name == "red" else 2] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on such images, which lie beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        data = photos(folder / "photos")
        config = ms.Config(data=str(data), size=8, batch=4, epochs=1, head_dim=8)
        ms.pretrain(config, folder=folder / "run")
    return folder


@pytest.fixture
def there(trained: Path, tmp_path: Path) -> Path:
    """A copy of run and images at the place that the run names."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def dataset(n: int, classes: int = 2) -> Dataset:
    images = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return Dataset(images, np.arange(n) % classes, ("cat", "dog"))


def run_on(images: np.ndarray) -> Run:
    config = ms.Config(size=8, head_dim=8)
    return Run(config, build_model(config), images=fingerprint(images))


def test_one_class_no_images_and_other_images_are_refused():
    train, test = dataset(8), {"test": dataset(4)}
    run = run_on(train.images)
    assert check_data(run, train, test, "photos", other=False) == []
    with pytest.raises(DataError, match="photos: all 8 training images are of one class, cat"):
        check_data(run, dataset(8, classes=1), test, "photos", other=True)
    with pytest.raises(DataError, match="photos: there are no test images"):
        check_data(run, train, {"test": dataset(0)}, "photos", other=True)
    with pytest.raises(DataError, match=r"not the 8 images that the run was trained on; .* with --data"):
        check_data(run, dataset(9), test, "photos", other=False)
    assert check_data(run, dataset(9), test, "photos", other=True) == []


def test_a_class_without_training_images_is_said():
    train = Dataset(dataset(6).images, np.arange(6) % 2, ("cat", "dog", "eel"))
    test = Dataset(dataset(4).images, np.array([0, 1, 2, 2]), train.class_names)
    said = check_data(run_on(train.images), train, {"test": test}, "photos", other=False)
    assert said == ["test: 1 of its classes have no training image, and are always missed"]


def test_a_run_made_of_an_array_is_not_scored_on_the_images_that_its_settings_name(there, capsys):
    config = ms.Config(data=str(there / "photos"), size=8, batch=4, epochs=1, head_dim=8)
    ms.pretrain(config, dataset(8).images, folder=there / "array")
    assert main(["evaluate", str(there / "array")]) == 2
    assert "these are not the 8 images that the run was trained on" in capsys.readouterr().err
    assert not (there / "array" / "results.json").exists()
    assert main(["finetune", str(there / "array"), "--labels", "1"]) == 2
    assert "trained on; name the data" in capsys.readouterr().err
    assert main(["report", str(there / "array")]) == 0
    assert "trained on; the page shows these" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_k_is_lowered_to_the_number_of_training_images_and_that_is_said(there, capsys):
    assert main(["evaluate", str(there / "run"), "--data", str(there / "photos")]) == 0
    printed = capsys.readouterr()
    assert "k = 20 neighbours are more than the 12 training images; k is now 12" in printed.err
    assert json.loads((there / "run" / "results.json").read_text())["k"] == 12
    assert main(["evaluate", str(there / "run"), "--k", "0"]) == 2


@pytest.mark.usefixtures("no_pictures")
def test_results_say_how_sure_they_are_and_what_guessing_gives(there, capsys):
    assert main(["evaluate", str(there / "run"), "--data", str(there / "photos"), "--k", "3"]) == 0
    printed = capsys.readouterr().out
    assert "100.0 ±" in printed
    assert "photos: accuracy in percent" in printed
    assert "largest class 66.7" in printed
    results = json.loads((there / "run" / "results.json").read_text())
    assert results["majority"]["test"] == pytest.approx(4 / 6)
    assert np.array(results["confusion"]["test"]).sum(axis=1).tolist() == [2, 4]
    assert {"knn_per_class", "probe_per_class"} <= results["scores"][0].keys()
    assert "blue" in (there / "run" / "confusion.txt").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_results_on_other_images_stand_beside_those_of_the_run_and_name_them(there, tmp_path, capsys):
    run, other = there / "run", photos(tmp_path / "other photos", seed=1)
    assert main(["evaluate", str(run), "--data", str(there / "photos"), "--k", "3"]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["evaluate", str(run), "--data", str(other), "--k", "3", "--probe", "transfer"]) == 0
    assert "These are not the run's images" in capsys.readouterr().out
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    new = sorted(after.keys() - before.keys())
    assert [name.rpartition("-")[0] for name in new] == [f"{kind}-other-photos" for kind in
                                                         ("confusion", "results", "table")]  # fmt: skip
    assert {name: after[name] for name in before} == before
    results = json.loads(after[new[1]])
    assert (results["data"], results["probe"]) == (str(other), "transfer")


@pytest.mark.slow
def test_a_run_and_its_images_can_be_moved_and_nothing_but_the_checkpoint_be_left(there, tmp_path, capsys):
    moved = tmp_path / "moved"
    (there / "run").rename(moved)
    for name in ("config.json", "metrics.jsonl"):
        (moved / name).unlink()
    images = there / "photos"
    images.rename(tmp_path / "images")
    shutil.rmtree(there)
    for command in (["evaluate", "--k", "3"], ["report"], ["embed", "--to", str(tmp_path / "e.npz")]):
        assert main([*command, str(moved), "--data", str(tmp_path / "images")]) == 0
    assert (moved / "results.json").exists()  # the same images: these are the run's own results
    with np.load(tmp_path / "e.npz") as stored:
        assert len(stored["h"]) >= 6


def test_where_the_images_are_gone_the_error_names_the_place(there, capsys, monkeypatch):
    run = ms.load_run(there / "run")
    shutil.rmtree(run.config.data)
    assert main(["evaluate", str(there / "run")]) == 2
    told = capsys.readouterr().err
    assert run.config.data in told
    assert "--data says where" in told
    photos(Path(run.config.data))  # for the other tests


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("split", ["train", "training"])
def test_a_test_split_of_the_training_images_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    assert main(["evaluate", str(trained / "run"), "--k", "3", "--test-split", split]) == 2
    said = capsys.readouterr().err
    assert f"{split} has the very images of the training split; --test-split chooses others" in said


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("temperature", ["0", "-0.1", "nan", "inf"])
def test_a_temperature_of_votes_that_means_nothing_is_refused(
    trained: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    command = ["evaluate", str(trained / "run"), "--k", "3", "--knn-temperature", temperature]
    assert main(command) == 2
    assert "--knn-temperature must be above 0 and finite, not" in capsys.readouterr().err
