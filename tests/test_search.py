"""The promises of search: neighbours and duplicates, in Python and as commands, and what a notebook shows."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.data import DataError
from minisimclr.evaluation import duplicates as room
from minisimclr.protocols.embeddings import read_embeddings
from minisimclr.training.config import build_model

THERE = ["--device", devices.DEVICE]


def pairs_by_loops(h: Any, above: float) -> dict[tuple[int, int], float]:
    """Every pair with its cosine, one after the other, in float64."""
    found = {}
    for i in range(len(h)):
        for j in range(i + 1, len(h)):
            lengths = np.linalg.norm(h[i]) * np.linalg.norm(h[j])
            cosine = float(h[i] @ h[j] / lengths) if lengths else 0.0
            if cosine >= above:
                found[i, j] = cosine
    return found


# ── Duplicates ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", [4, 7, 512])
def test_duplicates_are_those_found_by_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCK", block)
    h = np.random.default_rng(0).standard_normal((40, 3))
    h[33] = 0.0  # a row of zeros is like nothing
    expected = pairs_by_loops(h, 0.7)
    found = ms.duplicates(devices.on_device(h), above=0.7)
    assert {tuple(map(int, pair)) for pair in found.pairs} == expected.keys()
    assert found.found == len(expected) > 20
    np.testing.assert_allclose(found.similarities, [expected[int(i), int(j)] for i, j in found.pairs], atol=1e-6)
    assert (np.diff(found.similarities) <= 0).all()


@pytest.mark.host
def test_of_too_many_pairs_the_most_similar_are_kept_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    h = np.random.default_rng(1).standard_normal((60, 4))
    every = ms.duplicates(h, above=-1)
    assert every.found == len(every.pairs) == 60 * 59 // 2
    assert (np.diff(every.similarities) <= 0).all()
    monkeypatch.setattr(room, "BLOCK", 8)
    few = ms.duplicates(h, above=-1, most=10)
    assert few.found == every.found
    np.testing.assert_array_equal(few.pairs, every.pairs[:10])


def test_equal_rows_are_found_also_where_their_cosine_must_be_1() -> None:
    h = np.random.default_rng(2).standard_normal((300, 128)).astype(np.float32)
    h[17], h[200] = 3 * h[5], h[250]
    found = ms.duplicates(devices.on_device(h), above=1)
    assert sorted(map(tuple, found.pairs.tolist())) == [(5, 17), (200, 250)]
    assert found.similarities.max() <= 1


@pytest.mark.parametrize(
    ("h", "settings"),
    [
        (np.ones((3, 2)), {"above": 1.5}),
        (np.ones((3, 2)), {"above": float("nan")}),
        (np.ones((3, 2)), {"most": 0}),
        (np.ones(3), {}),
        (np.array([[np.nan, 1.0]]), {}),
    ],
)
def test_duplicates_refuse_what_makes_no_sense(h: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"above|most|matrix"):
        ms.duplicates(devices.on_device(h), **settings)


# ── A run and images ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, 24 photos, and what `embed` writes of them; two of the photos are the same."""
    folder = tmp_path_factory.mktemp("search")
    data = ms.load_dataset("doodles", "test", size=16, limit=24)
    for k, (image, label) in enumerate(zip(data.images, data.labels)):
        place = folder / "photos" / "test" / data.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k:02}.png")
    (folder / "photos" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(data.images[0]).save(folder / "photos" / "train" / "cat" / "0.png")
    Image.fromarray(data.images[3]).save(folder / "photos" / "test" / data.class_names[3] / "copy.png")
    ms.pretrain(ms.Config(data=str(folder / "photos"), size=16, batch=8, epochs=1), data.images, folder=folder / "run")
    embed = ["embed", str(folder / "run"), "--split", "test", "--to", str(folder / "photos.npz"), *THERE]
    assert main(embed) == 0
    Image.fromarray(data.images[3]).save(folder / "query.png")
    return folder


def listed(text: str) -> list[list[str]]:
    """The words of each line that begins with a similarity."""
    return [line.split() for line in text.splitlines() if re.match(r" *-?[01]\.\d{4} ", line)]


def test_nearest_images_of_an_image_are_itself_and_then_others(folder: Path) -> None:
    run = ms.load_run(folder / "run", devices.DEVICE)
    images = ms.load_dataset(folder / "photos", "test", size=16).images
    h, z = run.embed(images)
    np.testing.assert_array_equal(h, ms.embed(run.model, images)[0])
    assert z.shape == (25, run.config.head_dim)
    indices, _ = run.nearest(images, among=images, k=3)
    for k, row in enumerate(indices):
        np.testing.assert_array_equal(images[row[0]], images[k])


def test_nearest_among_images_and_among_their_h_agree(folder: Path) -> None:
    run = ms.load_run(folder / "run", devices.DEVICE)
    images = ms.load_dataset(folder / "photos", "test", size=16).images
    indices, similarities = run.nearest(images[:5], among=images, k=3)
    again = run.nearest(images[:5], among=run.embed(images)[0], k=3)
    np.testing.assert_array_equal(indices, again[0])
    np.testing.assert_allclose(similarities, again[1], atol=1e-6)


@pytest.mark.parametrize(
    ("among", "k", "error", "words"),
    [
        (np.ones((5, 3)), 2, ValueError, "128 numbers"),
        (np.ones((5, 128)), 6, ValueError, "1…5"),
        (np.ones((5, 128)), 0, ValueError, "k must be"),
        ([1, 2], 1, TypeError, "among must be images"),
        (np.ones(128), 1, TypeError, "among must be images"),
    ],
)
def test_nearest_refuses_what_does_not_fit(among: Any, k: int, error: type, words: str) -> None:
    run = ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
    with pytest.raises(error, match=words):
        run.nearest(np.zeros((1, 16, 16, 3), np.uint8), among, k)


# ── The commands ──────────────────────────────────────────────────────────────────────────────────


def test_neighbours_prints_the_nearest_first_and_draws_a_sheet(folder: Path, capsys: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["neighbours", folder / "run", folder / "query.png", "--in", folder / "photos.npz", "--k", "4"]
    assert main([*map(str, words), "--sheet", str(sheet), *THERE]) == 0
    lines = listed(capsys.readouterr().out)
    assert len(lines) == 4
    assert [line[0] for line in lines[:2]] == ["1.0000", "1.0000"]  # the image and its copy
    assert float(lines[2][0]) >= float(lines[3][0])
    with Image.open(sheet) as picture:
        assert picture.size == (6 + 18 + 5 * 70, 6 + 86)
        pixels = np.asarray(picture.convert("RGB"))
    cell = np.asarray(Image.open(folder / "query.png").resize((64, 64), Image.Resampling.NEAREST))
    for x in (6, 6 + 18 + 70):  # the picture, and its nearest neighbour
        np.testing.assert_array_equal(pixels[6:70, x : x + 64], cell)


def test_duplicates_names_the_copy_and_counts_what_it_leaves_out(folder: Path, capsys: Any) -> None:
    assert main(["duplicates", str(folder / "photos.npz"), "--above", "1"]) == 0
    out = capsys.readouterr().out
    assert len(listed(out)) == 1
    assert main(["duplicates", str(folder / "photos.npz"), "--above", "-1", "--most", "5", "--of", "z"]) == 0
    shown = capsys.readouterr()
    assert len(listed(shown.out)) == 5
    assert f"{25 * 24 // 2 - 5} more pairs" in shown.err
    noise = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    np.savez(folder / "noise.npz", h=noise)
    assert main(["duplicates", str(folder / "noise.npz")]) == 0
    shown = capsys.readouterr()
    assert (shown.out, "none of the 9 images" in shown.err) == ("", True)


def test_files_and_classes_are_named_if_the_file_tells_them(tmp_path: Path, capsys: Any) -> None:
    h = np.array([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0]], np.float32)
    names = np.array(["a/1.jpg", "b/\x1b[2J.jpg", "c.jpg"])
    np.savez(tmp_path / "x.npz", h=h, files=names, labels=np.array([0, 1, -1]), class_names=np.array(["cat", "dog"]))
    assert read_embeddings(tmp_path / "x.npz").classes == ("cat", "dog", "?")
    assert main(["duplicates", str(tmp_path / "x.npz")]) == 0
    assert capsys.readouterr().out == "1.0000  a/1.jpg  cat  |  b/�[2J.jpg  dog\n"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"z": np.ones((3, 2))}, "it has no h"),
        ({"h": np.ones(3)}, "h is no matrix"),
        ({"h": np.ones((3, 0))}, "h is no matrix"),
        ({"h": np.ones((3, 2), np.int64)}, "h is no matrix"),
        ({"h": np.full((3, 2), np.nan)}, "NaN or infinity"),
        ({"h": np.ones((3, 2)), "files": np.array(["a"])}, "files has not one entry"),
        ({"h": np.ones((3, 2)), "files": np.arange(3)}, "files has not one entry"),
        ({"h": np.ones((3, 2)), "labels": np.array([0, 1, 7]), "class_names": np.array(["a", "b"])}, "no indices"),
        ({"h": np.ones((3, 2)), "files": np.array([None, 1, 2], object)}, "expected numbers or text"),
    ],
)
def test_a_file_that_embed_did_not_write_is_refused(arrays: Any, words: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match=words):
        read_embeddings(path)
    assert main(["duplicates", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "wrong.npz is not what `minisimclr embed` writes" in line


def test_a_damaged_a_missing_and_a_packed_file_are_refused(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, h=np.ones((3, 2)))
    assert main(["duplicates", str(path)]) == 2
    np.savez(path, h=np.ones((300, 20)))
    path.write_bytes(path.read_bytes()[:5000])
    assert main(["duplicates", str(path)]) == 2
    assert main(["duplicates", str(tmp_path / "no.npz")]) == 4
    assert main(["duplicates", str(tmp_path)]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize(
    ("query", "options", "code", "words"),
    [
        ("no.png", [], 4, "no.png: No such file"),
        ("photos", [], 4, "it is a folder"),
        ("run/config.json", [], 2, "config.json: not a PNG"),
        ("query.png", ["--k", "26"], 2, "k must lie in 1…25"),
        ("query.png", ["--sheet", "S", "--split", "train"], 2, "are not those of"),
        ("query.png", ["--in", "noise.npz"], 2, "128 numbers"),
    ],
)
def test_neighbours_says_in_a_line_what_it_cannot_use(
    query: str, options: list[str], code: int, words: str, folder: Path, capsys: Any, tmp_path: Path
) -> None:
    if not (folder / "noise.npz").exists():
        np.savez(folder / "noise.npz", h=np.ones((3, 64), np.float32))
    options = [str(folder / o) if o.endswith(".npz") else str(tmp_path / "s.png") if o == "S" else o for o in options]
    among = ["--in", str(folder / "photos.npz")]
    assert main(["neighbours", str(folder / "run"), str(folder / query), *among, *options, *THERE]) == code
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert words in line
    assert not (tmp_path / "s.png").exists()


def test_a_sheet_of_other_images_with_as_many_is_refused(folder: Path, capsys: Any, tmp_path: Path) -> None:
    data = ms.load_dataset("doodles", "unseen", size=16, limit=25)
    for k, image in enumerate(data.images):
        (tmp_path / "test" / "x").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "test" / "x" / f"{k}.png")
    among = ["--in", str(folder / "photos.npz"), "--sheet", str(tmp_path / "s.png"), "--data", str(tmp_path)]
    (tmp_path / "train" / "x").mkdir(parents=True)
    Image.fromarray(data.images[0]).save(tmp_path / "train" / "x" / "0.png")
    assert main(["neighbours", str(folder / "run"), str(folder / "query.png"), *among, *THERE]) == 2
    assert "another run embedded them" in capsys.readouterr().err


# ── What Python prints, and a notebook shows ──────────────────────────────────────────────────────


@pytest.mark.host
def test_a_data_set_shows_its_images_and_no_markup_of_its_names() -> None:
    data = ms.load_dataset("doodles", "test", limit=40)
    named = ms.Dataset(data.images, data.labels % 2, ("<script>alert(1)</script>", "b & c"))
    shown = named._repr_html_()  # type: ignore[attr-defined]
    assert "<script" not in shown
    assert "b &amp; c" in shown
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (6 + 8 * 70, 6 + 4 * 70)
    ET.fromstring(shown.replace("<img", "<img /><img").split("<img />")[0] + "</div>")
    assert repr(ms.Dataset(data.images[:1], np.zeros(1, int), ("cat",))) == ("Dataset(1 images of 32×32, 1 class: cat)")
    empty = ms.Dataset(np.empty((0, 8, 8, 3), np.uint8), np.empty(0, np.int64), ())
    assert "<img" not in empty._repr_html_()  # type: ignore[attr-defined]


@pytest.mark.host
def test_a_run_shows_its_loss_and_its_chance_level_and_ignores_lines_that_are_no_numbers() -> None:
    config = ms.Config(size=16, data="<b>")
    history = [{"step": k, "loss": 4.0 - k / 500, "chance": 3.0} for k in range(1000)]
    run = ms.Run(config, build_model(config), 1000, [*history, {"step": "x", "loss": None}, {"loss": float("nan")}])
    shown = run._repr_html_()  # type: ignore[attr-defined]
    assert "&lt;b&gt;" in shown
    assert "1,000 steps done" in repr(run)
    figure = ET.fromstring(shown[shown.index("<svg") : shown.index("</svg>") + 6])
    line, dashed = figure.find("polyline"), figure.find("line")
    assert line is not None
    assert dashed is not None
    y = [float(place.split(",")[1]) for place in line.attrib["points"].split()]
    assert len(y) == 400
    assert y == sorted(y)  # the loss falls, and y points down
    chance = float(dashed.attrib["y1"])
    assert y[0] < chance < y[-1]
    assert "<svg" not in ms.Run(config, build_model(config))._repr_html_()  # type: ignore[attr-defined]


@pytest.mark.host
def test_a_model_shows_its_tree_when_it_is_opened() -> None:
    model = build_model(ms.Config(size=16))
    shown = model._repr_html_()  # type: ignore[attr-defined]
    tree = ET.fromstring(shown)
    assert (tree[0].text or "").startswith("SimCLR 340,512 parameters")
    assert (tree[1].text or "") == repr(model)
