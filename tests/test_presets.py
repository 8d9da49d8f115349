"""Presets: the paper's settings as the table of hyper-parameters has them, and few images that train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.cli import main
from minisimclr.training.config import Config
from minisimclr.training.presets import PRESETS, fitted, for_few, preset

pytestmark = pytest.mark.host

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "hyperparameters.md").read_text()


def column(title: str, heading: str) -> dict[str, str]:
    """A column of a table of the page, by the first cell of each row: the table whose heading has this text."""
    lines = PAGE.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("|") and heading in line)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]
             if line.startswith("|")]  # fmt: skip
    place = cells[0].index(title)
    found: dict[str, str] = {}
    for row in cells[2:]:
        if len(row) != len(cells[0]):
            break  # the next table
        found.setdefault(row[0], row[place])
    return found


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?", text)]


# ── The paper's settings ──────────────────────────────────────────────────────────────────────────


def test_the_imagenet_preset_is_the_papers_column_of_the_table() -> None:
    paper, config = column("paper, ImageNet", "v1 code"), Config(**preset("paper-imagenet"))
    assert paper["encoder"] == "ResNet-50"
    assert config.encoder == "resnet50"
    for row, value in (("image side, pixels", config.size), ("temperature τ", config.temperature),
                       ("batch N", config.batch), ("weight decay", config.weight_decay),
                       ("colour strength", config.strength)):  # fmt: skip
        assert numbers(paper[row]) == [value], row
    assert paper["optimizer"].lower() == config.optimizer
    assert numbers(paper["peak learning rate"]) == [config.lr, 256]
    assert numbers(paper["epochs"])[-1] == config.epochs
    assert numbers(paper["warm-up"]) == [config.warmup * config.epochs]
    assert numbers(paper["head: layers"]) == [2]
    assert config.head == "mlp2"
    assert paper["blur"].startswith("half")
    assert config.blur


def test_the_cifar10_preset_is_appendix_b9_of_the_table() -> None:
    paper, config = column("paper, Appendix B.9", "paper, Appendix B.9"), Config(**preset("paper-cifar10"))
    assert paper["encoder"].startswith("ResNet-50, first convolution 3×3")
    assert (config.encoder, config.stem, config.size) == ("resnet50", "cifar", 32)
    assert numbers(paper["colour strength"]) == [config.strength]
    assert paper["blur"] == "no"
    assert not config.blur
    assert numbers(paper["batch, epochs"])[:2] == [config.batch, config.epochs]
    assert config.lr in numbers(paper["learning rate"])
    assert config.temperature in numbers(paper["temperature"])


def test_the_small_preset_is_that_of_the_run_which_was_kept() -> None:
    import json

    kept = json.loads((Path(__file__).resolve().parents[1] / "docs/results/cifar10-jpeg-small/config.json").read_text())
    config = Config(**preset("small-cpu")).as_dict()
    assert {name: config[name] for name in PRESETS["small-cpu"]} == {name: kept[name] for name in PRESETS["small-cpu"]}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration_and_its_head_is_that_of_the_default_weights(name: str) -> None:
    config = Config(**preset(name))
    assert config.data == "doodles"
    preset(name)["batch"] = 7  # a copy: nobody changes a preset for the next one
    assert "batch" not in PRESETS[name] or PRESETS[name]["batch"] != 7


def test_a_preset_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="preset must be one of paper-imagenet, paper-cifar10, small-cpu, few-images"):
        preset("best")


# ── Few images ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [2, 3, 5, 9, 16, 100, 300, 500, 999, 5000])
def test_few_images_get_a_thousand_steps_of_batches_of_which_an_epoch_has_two(count: int) -> None:
    chosen = for_few(count)
    config = Config(**chosen)
    per_epoch = count // config.batch
    assert per_epoch >= 1
    assert per_epoch >= 2 or config.batch <= 4
    assert per_epoch < 4 or config.batch in (4, 256)
    assert 1000 <= config.epochs * per_epoch < 1000 + per_epoch
    assert config.lr * config.batch / 256 <= 0.2
    assert round(config.warmup * config.epochs * per_epoch) >= 50


def test_what_the_user_chose_stays() -> None:
    config = Config(batch=32, epochs=7)
    assert fitted(config, 300, given={"batch", "epochs"}) == (config, "")
    same, said = fitted(Config(batch=32), 300, given={"batch"}, name="few-images")
    chose = "few-images chose --epochs 112 --lr 0.2 --warmup 0.05 --temperature 0.2: 1,008 steps in place of 180"
    assert (same.batch, said) == (32, chose)
    chosen, said = fitted(Config(), 300)
    assert (chosen.batch, chosen.epochs) == (128, 500)
    assert said.startswith(
        "300 images are few, and 20 steps too short a run; chosen: --batch 128 --epochs 500 --lr 0.2"
    )


@pytest.mark.parametrize("count", [2560, 5000, 50_000])
def test_on_many_images_the_defaults_are_as_they_were(count: int) -> None:
    assert fitted(Config(), count) == (Config(), "")


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def test_pretrain_says_what_it_chose_for_few_photos_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minisimclr.cli import pretrain

    asked = []
    monkeypatch.setattr(pretrain, "pretrain", lambda config, *_, **__: asked.append(config) or ms.Run(config, None))  # type: ignore[arg-type]
    command = [
        "pretrain",
        "--data",
        str(photos(tmp_path / "photos", 12)),
        "--size",
        "8",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(command) == 0
    assert "12 images are few" in capsys.readouterr().err
    assert {name: getattr(asked[0], name) for name in for_few(12)} == for_few(12)
    assert main([*command, "--batch", "6", "--epochs", "1"]) == 0
    assert (asked[1].batch, asked[1].epochs, asked[1].lr) == (6, 1, 0.3)
    assert "images are few" not in capsys.readouterr().err
    assert main([*command, "--preset", "few-images", "--lr", "0.7"]) == 0
    assert (asked[2].batch, asked[2].lr) == (4, 0.7)
    assert main([*command, "--preset", "paper-cifar10", "--batch", "4"]) == 0
    assert (asked[3].optimizer, asked[3].batch, asked[3].epochs, asked[3].temperature) == ("lars", 4, 1000, 0.5)
    assert main([*command, "--resume", "--preset", "small-cpu"]) == 2
    assert "leave out --preset" in capsys.readouterr().err


@pytest.mark.slow
def test_three_hundred_drawings_are_below_chance_within_the_first_epochs() -> None:
    """With the default settings they end above it: 20 steps, of which none is below."""
    images = ms.load_dataset("doodles", "train", limit=300).images

    class Enough(Exception):
        pass

    losses = []

    def watch(metrics: dict[str, float]) -> None:
        losses.append(metrics["loss"] / metrics["chance"])
        if len(losses) == 20:  # ten epochs
            raise Enough

    config, _ = fitted(Config(), len(images))
    with pytest.raises(Enough):
        ms.pretrain(config, images, progress=watch)  # type: ignore[arg-type]
    assert np.mean(losses[-8:]) < 1


def test_a_run_that_few_images_makes_shorter_is_not_called_too_short() -> None:
    _, said = fitted(Config(), 50_000, name="few-images")
    assert "few-images chose --batch 256" in said
    assert "steps in place of 3,900" in said


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--head", "mlp2", "--head-layers", "3"], "--head-layers is for --head auto, not for mlp2"),
        (["--head", "none", "--head-dim", "64"], "--head-dim has no meaning with --head none"),
    ],
)
def test_a_setting_that_a_head_by_name_would_ignore_is_refused(given: list[str], says: str, capsys: Any) -> None:
    assert main(["pretrain", "--data", "doodles", *given]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("data", [".", "..", "photos/.."])
def test_a_folder_by_dots_gives_its_name_to_the_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """`runs/..` would be the current folder."""
    (tmp_path / "mine" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    asked: list[Path] = []
    monkeypatch.setattr("minisimclr.cli.pretrain.free_folder", lambda wanted: asked.append(wanted) or wanted)
    assert main(["pretrain", "--data", data]) == 2  # there are no images
    assert asked == [Path("runs") / (tmp_path.name if data == ".." else "mine")]
