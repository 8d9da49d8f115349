"""`minisimclr embed`: a row for every image, with its file, class and split, and no row that moves."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.data import files
from minisimclr.protocols.table import Rows

pytestmark = pytest.mark.host

NAMES = [f"{split}/{kind}/{k}.png" for split in ("test", "train") for kind in ("cat", "dog") for k in range(3)]


def picture(name: str, width: int = 130) -> Image.Image:
    rng = np.random.default_rng(NAMES.index(name))
    return Image.fromarray(rng.integers(0, 256, (10, 13, 3), np.uint8)).resize((width, 100))


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any) -> Path:
    """A folder of photos in two splits, one more without labels, and a run on it."""
    root = tmp_path_factory.mktemp("embed")
    for name in NAMES:
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(name).save(root / "photos" / name)
    (root / "photos" / "unlabeled").mkdir()
    picture(NAMES[0]).save(root / "photos" / "unlabeled" / "x,y.png")
    config = ms.Config(data=str(root / "photos"), size=16, batch=3, epochs=1, head_dim=8)
    ms.pretrain(config, folder=root / "run")
    return root


@pytest.fixture
def embed(place: Path, tmp_path: Path) -> Any:
    def run(name: str, *options: str) -> Path:
        assert main(["embed", str(place / "run"), "--to", str(tmp_path / name), *options]) == 0
        return tmp_path / name

    return run


@pytest.mark.slow
def test_a_run_on_photos_is_evaluated_on_its_own_images(place, capsys):
    assert main(["evaluate", str(place / "run"), "--k", "2"]) == 0
    assert "not the run's images" not in capsys.readouterr().out


def test_every_image_of_every_split_has_a_row_with_its_file(place, embed):
    with np.load(embed("e.npz"), allow_pickle=False) as found:
        assert found["files"].tolist() == [*NAMES, "unlabeled/x,y.png"]
        assert found["split"].tolist() == ["test"] * 6 + ["train"] * 6 + ["unlabeled"]
        assert found["labels"].tolist() == [0, 0, 0, 1, 1, 1] * 2 + [-1]
        assert found["class_names"].tolist() == ["cat", "dog"]
        run = ms.load_run(place / "run")
        for k, name in enumerate(found["files"]):
            with Image.open(place / "photos" / name) as image:
                kept = image.resize((83, 64), Image.Resampling.BILINEAR)
                square = kept.resize((16, 16), Image.Resampling.BILINEAR, box=(9.5, 0, 73.5, 64))
            h, _ = run.embed(np.asarray(square)[None])
            np.testing.assert_allclose(found["h"][k], h[0], rtol=1e-3, atol=1e-5)


def test_one_split_can_be_asked_for(embed):
    with np.load(embed("e.npz", "--split", "test"), allow_pickle=False) as found:
        assert found["files"].tolist() == NAMES[:6]
        assert found["split"].tolist() == "test"


def test_a_csv_holds_the_same_numbers_to_the_last_bit(embed):
    with embed("e.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with np.load(embed("e.npz")) as found:
        assert [row["file"] for row in rows] == found["files"].tolist()
        assert [row["class"] for row in rows] == [("cat", "dog", "")[label] for label in found["labels"]]
        assert [row["split"] for row in rows] == found["split"].tolist()
        for which in "hz":
            columns = [name for name in rows[0] if name[0] == which and name[1:].isdecimal()]
            numbers = np.array([[row[name] for name in columns] for row in rows]).astype(np.float32)
            np.testing.assert_array_equal(numbers, found[which])


@pytest.mark.slow
def test_a_parquet_file_holds_the_same_numbers(embed):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = parquet.read_table(embed("e.parquet")).to_pydict()
    with np.load(embed("e.npz")) as found:
        assert table["file"] == found["files"].tolist()
        assert table["class"][::6] == ["cat", "cat", ""]
        for which in "hz":
            np.testing.assert_array_equal(np.array(table[which], np.float32), found[which])


def test_without_pyarrow_a_parquet_file_is_refused_in_one_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert main(["embed", str(place / "run"), "--to", str(tmp_path / "e.parquet")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install pyarrow" in line


def test_another_ending_is_refused_before_anything_is_read(tmp_path, capsys):
    assert main(["embed", str(tmp_path / "no-run"), "--to", str(tmp_path / "e.xlsx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "e.xlsx: the ending must be one of .npz, .csv, .parquet" in line


def test_a_folder_that_cannot_be_written_to_is_noticed_before_the_first_image_is_embedded(place, tmp_path, monkeypatch):
    monkeypatch.setattr("minisimclr.training.run.Run.embed", lambda *args: pytest.fail("it computed first"))
    assert main(["embed", str(place / "run"), "--to", str(tmp_path / "no" / "e.npz")]) == 4


def test_a_file_that_breaks_later_moves_no_row(place, tmp_path, embed, monkeypatch, capsys):
    """Its header is right, so it is listed; it is left out with its name, and every other row keeps its own."""
    copy = tmp_path / "photos"
    shutil.copytree(place / "photos", copy)
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    with np.load(embed("whole.npz", "--data", str(copy))) as found:
        whole = dict(found)
    read = ms.load_dataset

    def broken_after(*args: Any, **options: Any) -> Any:
        data = read(*args, **options)
        for name in set(data.files) & {NAMES[1], NAMES[7]}:
            (copy / name).write_bytes(b"gone bad")
        return data

    monkeypatch.setattr("minisimclr.cli.sources.load_dataset", broken_after)
    capsys.readouterr()
    with np.load(embed("e.npz", "--data", str(copy))) as found:
        there = [name in found["files"] for name in whole["files"]]
        assert np.flatnonzero(np.logical_not(there)).tolist() == [1, 7]
        for name in ("h", "z", "labels", "split"):
            np.testing.assert_array_equal(found[name], whole[name][there])
    said = [line for line in capsys.readouterr().err.splitlines() if "it is left out" in line]
    assert [NAMES[1] in said[0], NAMES[7] in said[1]] == [True, True]


@pytest.mark.skipif(os.name != "posix", reason="names of bytes are POSIX's")
def test_names_that_are_no_text_are_written_as_they_are(place, tmp_path, embed):
    copy = tmp_path / "photos"
    shutil.copytree(place / "photos", copy)
    cats = copy / "test" / "cat"
    (cats / "0.png").rename(cats / os.fsdecode(b"\xff.png"))
    assert b"test/cat/\xff.png" in embed("e.csv", "--data", str(copy)).read_bytes()
    embed("e.npz", "--data", str(copy))


def test_the_rows_that_are_left_agree_with_their_images_whichever_are_unreadable() -> None:
    for bad in ([], [0], [2, 3], [5], [0, 1, 2, 3, 4]):
        number = np.arange(6)
        data = ms.Dataset(np.zeros((6, 8, 8, 3), np.uint8), number, tuple("abcdef"), tuple(f"{k}.png" for k in number))
        object.__setattr__(data, "unreadable", dict.fromkeys(bad, "gone bad"))
        rows = Rows("photos")
        rows.add("train", data, number[:, None] + 0.5, number[:, None] + 0.25)  # h and z of image k: k + ½, k + ¼
        found = rows.arrays()
        good = [k for k in range(6) if k not in bad]
        assert found["files"].tolist() == [f"{k}.png" for k in good]
        np.testing.assert_array_equal(found["h"][:, 0], np.add(good, 0.5))
        np.testing.assert_array_equal(found["z"][:, 0], np.add(good, 0.25))
        np.testing.assert_array_equal(found["labels"], good)
