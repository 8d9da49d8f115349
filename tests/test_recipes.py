"""The recipes run as they stand, in few steps; the notebook is that of its script."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "examples" / "recipes"
sys.path.insert(0, str(ROOT / "examples"))
import build_notebook  # noqa: E402, from examples/build_notebook.py


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the recipes read: photos, a query, a run, and small files of CIFAR-10 and MedMNIST."""
    place = tmp_path_factory.mktemp("recipes")
    for split, count in (("train", 48), ("test", 16)):
        data = ms.load_dataset("doodles", split, limit=count)
        for k, (image, label) in enumerate(zip(data.images, data.labels % 3)):
            folder = place / "photos" / split / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{k:02}.png")
    Image.fromarray(data.images[0]).resize((50, 40)).save(place / "query.png")
    Image.fromarray(data.images[0]).save(place / "photos" / "train" / "a" / "copy.png")
    Image.fromarray(data.images[0]).save(place / "photos" / "train" / "b" / "copy.png")
    records = np.random.default_rng(0).integers(0, 256, (60, 3073), np.uint8)
    records[:, 0] = np.arange(60) % 10
    (place / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        records.tofile(place / "cifar-10-batches-bin" / f"{name}.bin")
    grey, labels = records[:, 1:785].reshape(-1, 28, 28), np.arange(60)[:, None] % 2
    np.savez(place / "pathmnist.npz", train_images=grey, train_labels=labels, test_images=grey, test_labels=labels)
    ms.pretrain(
        ms.Config(data=str(place / "photos"), batch=16, epochs=1, head_dim=8),
        ms.load_dataset(place / "photos").images,
        folder=place / "runs" / "photos",
    )
    return place


def run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> dict[str, Any]:
    """Run a recipe in the folder, with a few words changed so that it is fast, and return its names."""
    source = (RECIPES / f"{name}.py").read_text()
    for old, new in changes:
        assert source.count(old) == 1
        source = source.replace(old, new)
    script = place / f"{name}_here.py"
    script.write_text(source)
    monkeypatch.chdir(place)
    return runpy.run_path(str(script), run_name="__main__")


def size(path: Path) -> tuple[int, int]:
    """The width and height of a picture."""
    with Image.open(path) as picture:
        return picture.size


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"the recipe was NOT run: pip install {package}")


def test_every_recipe_has_at_most_thirty_lines_and_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for path in RECIPES.glob("*.py"):
        code = path.read_text()
        told = ast.parse(code).body[0].end_lineno
        assert told is not None
        assert sum(bool(line.strip()) for line in code.splitlines()[told:]) <= 30, path.name
        assert f"# examples/recipes/{path.name}\n" in page
        assert sum(f'"{path.stem}"' in line for line in Path(__file__).read_text().splitlines()) >= 1, "it is run below"


def test_my_photos(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    there = ("runs/photos", "runs/mine")
    run("my_photos", place, monkeypatch, ("epochs=100", "epochs=1"), ("batch=64", "batch=16"), there)
    assert ms.load_run(place / "runs" / "mine").steps == 3
    assert "3 steps done" in capsys.readouterr().out


def test_search_finds_the_photo(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run("search", place, monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert size(place / "found.png") == (160, 32)


def test_duplicates_finds_the_copy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("duplicates", place, monkeypatch, ("above=0.999", "above=1"))
    (pair,) = names["found"].pairs
    images = names["photos"].images
    np.testing.assert_array_equal(images[pair[0]], images[pair[1]])


@pytest.mark.slow
def test_one_per_cent_takes_two_of_each_class(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("one_per_cent", place, monkeypatch)
    assert np.bincount(names["train"].labels[names["labelled"]]).tolist() == [2, 2, 2]
    assert 0 <= names["few"] <= 1


@pytest.mark.slow
def test_cifar10_reads_planes_of_colour(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("cifar10", place, monkeypatch, ("epochs=30", "epochs=1"), ("batch=256", "batch=60"), ("k=200", "k=9"))
    record = np.fromfile(place / "cifar-10-batches-bin" / "test_batch.bin", np.uint8)[:3073]
    assert names["test_labels"][0] == record[0]
    assert names["test_images"][0, 2, 5].tolist() == record[1:].reshape(3, 32, 32)[:, 2, 5].tolist()
    assert len(names["images"]) == 300


@pytest.mark.slow
def test_medmnist_makes_grey_images_colour(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run("medmnist", place, monkeypatch, ("epochs=20", "epochs=1"), ("batch=256", "batch=30"))
    assert names["images"].shape == (60, 28, 28, 3)
    assert names["test_h"].shape[0] == 60


@pytest.mark.slow
def test_tsne_draws_a_map(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("sklearn")
    run("tsne", place, monkeypatch, ("SIDE = 1200", "SIDE = 200"), ("random_state=0", "random_state=0, max_iter=250"))
    assert size(place / "map.png") == (200, 200)


@pytest.mark.slow
def test_scikit_learn_classifies(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    needs("sklearn")
    run("scikit_learn", place, monkeypatch)
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.peers
def test_pytorch_gives_the_same_h(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torchvision")
    names = run("pytorch", place, monkeypatch)
    np.testing.assert_allclose(names["there"], names["here"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_cells_of_the_recipe_for_notebooks_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(
        "notebook", place, monkeypatch, ("limit=512", "limit=64"), ("epochs=5", "epochs=1"), ("batch=64", "batch=32")
    )
    assert len(names["losses"]) == 2


# ── The notebook ──────────────────────────────────────────────────────────────────────────────────


def test_the_notebook_has_the_cells_of_its_script() -> None:
    assert build_notebook.main(["--check"]) == 0


def test_cells_their_outputs_and_what_is_stored(tmp_path: Path) -> None:
    script = "# header\n# %% [markdown]\n# # Title\n#\n# text\n# %% code\nx = 20\nprint('said')\nx + 1\n\n# %%\ny = x\n"
    found = build_notebook.cells(script)
    assert found == [("markdown", "# Title\n\ntext"), ("code", "x = 20\nprint('said')\nx + 1"), ("code", "y = x")]
    outputs = build_notebook.run(found)
    assert outputs[0] == outputs[2] == []
    assert [o.get("text") or o["data"]["text/plain"] for o in outputs[1]] == [["said\n"], ["21"]]
    (tmp_path / "n.ipynb").write_text(build_notebook.notebook(found, outputs))
    assert build_notebook.stored(tmp_path / "n.ipynb") == found


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_learns(capsys: Any) -> None:
    found = build_notebook.cells(build_notebook.SCRIPT.read_text())
    outputs = build_notebook.run(found)
    said = "".join("".join(o.get("text", [])) for output in outputs for o in output)
    assert "by hand    0.2395\nms.nt_xent 0.2395" in said
    assert "right: True\nwrong: input 0" in said
    accuracy = {
        line.split()[0]: float(line.split()[-1].rstrip("%")) for line in said.splitlines() if line.endswith("%")
    }
    assert accuracy["SimCLR"] > accuracy["untrained"]
