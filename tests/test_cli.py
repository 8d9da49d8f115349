"""The promises of the commands: what they write and print, their exit codes, and one clear line for every error."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import devices
import numpy as np
import pytest
from PIL import Image

from minisimclr import cli, report
from minisimclr.cli import common, demo, evaluate, main
from minisimclr.data import DataError, Reading
from minisimclr.engine.autograd import Tensor
from minisimclr.training import checkpoint
from minisimclr.training.checkpoint import CheckpointError
from minisimclr.training.config import Config
from minisimclr.training.folders import PICTURES
from minisimclr.training.optim import Optimizer
from minisimclr.training.run import Interrupted, NonFiniteError

SMALL = ["--size", "16", "--batch", "4", "--epochs", "2", "--head-dim", "8"]
THERE = ["--device", devices.DEVICE]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 images of two classes, split into train and test."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for name, channel in (("blue", 2), ("red", 0)):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 100, (16, 16, 3)).astype(np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / split / name / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", "--data", str(photos), "--out", str(run), *SMALL, *THERE]) == 0
    # Looked at here, where no other test has evaluated the run yet, whatever the order of the tests.
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", "checkpoint.npz"}
    return run


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    """Pictures are packed in a hurry here: that they become small is a promise of the report's own tests."""
    original = Image.Image.save

    def save(image, file, format=None, **options):
        hurry = {"optimize": False, "compress_level": 1} if options.get("optimize") else {}
        original(image, file, format, **options | hurry)

    monkeypatch.setattr(Image.Image, "save", save)


def error_line(capsys):
    """The one line that a refused command prints."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("minisimclr: error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    return errors[0]


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────


def test_pretrain_keeps_the_configuration_the_metrics_and_a_checkpoint(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["batch"], config["size"], config["temperature"]) == (4, 16, 0.1)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    assert lines[0]["chance"] == pytest.approx(np.log(7))
    assert all(0 <= line["top1"] <= 1 for line in lines)


def test_evaluate_prints_and_keeps_the_table_and_draws_the_pictures(trained, capsys):
    assert main(["evaluate", str(trained), "--k", "3", *THERE]) == 0
    printed = capsys.readouterr().out
    for row in ("raw pixels", "colour statistics", "untrained encoder, h", "SimCLR, h", "SimCLR, z"):
        assert row in printed
    assert (trained / "table.txt").read_text().strip() in printed
    scores = json.loads((trained / "results.json").read_text())["scores"]
    raw = next(score for score in scores if score["name"] == "raw pixels")
    assert raw["knn"]["test"] == 1.0  # red against blue is easy
    assert "SimCLR, z" in (trained / "report.html").read_text()
    for name in ("views", "neighbours", "similarity"):
        with Image.open(trained / f"{name}.png") as picture:
            assert picture.size > (100, 100)


def test_the_page_votes_as_the_table_beside_it_did(trained, monkeypatch):
    seen, look = [], report.look
    monkeypatch.setattr(report, "look", lambda *given: seen.append(given[-1]) or look(*given))
    assert main(["evaluate", str(trained), "--k", "3", "--knn-temperature", "0.5", *THERE]) == 0
    assert "kNN on h, k = 3;" in (trained / "report.html").read_text()
    (trained / "report.html").unlink()
    assert main(["report", str(trained), *THERE]) == 0
    assert "kNN on h, k = 3;" in (trained / "report.html").read_text()
    assert seen == [report.Vote(3, 0.5)] * 2


def test_report_makes_the_page_and_the_pictures_again(trained, capsys):
    for name in PICTURES:
        (trained / name).unlink(missing_ok=True)
    assert main(["report", str(trained), *THERE]) == 0
    printed = capsys.readouterr().out
    for name in PICTURES:
        assert (trained / name).exists()
        assert name in printed


def test_report_works_without_classes_and_evaluate_says_why_it_does_not(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for k in range(9):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "photos" / f"{k}.png")
    run = ["--out", str(tmp_path / "run"), "--size", "16", "--batch", "4", "--epochs", "1", "--head-dim", "8"]
    assert main(["pretrain", "--data", str(tmp_path / "photos"), *run, *THERE]) == 0
    assert main(["report", str(tmp_path / "run"), *THERE]) == 0
    assert "9 training images" in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), *THERE]) == 2
    assert "labelled images" in error_line(capsys)


def test_embed_writes_h_z_and_labels_without_pickle(trained, tmp_path):
    assert main(["embed", str(trained), "--split", "test", "--to", str(tmp_path / "e.npz"), *THERE]) == 0
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        assert archive["h"].shape == (8, 128)
        assert archive["z"].shape == (8, 8)
        assert sorted(archive["labels"]) == [0] * 4 + [1] * 4
        assert list(archive["class_names"]) == ["blue", "red"]


def test_gradcheck_prints_every_operation_and_fails_if_one_does(capsys, monkeypatch):
    from minisimclr.checks import report as gradchecks

    rows = [gradchecks.Row("exp", 1, 0, 0, 0, 0, 1e-12, True, True)]
    monkeypatch.setattr(gradchecks, "run", lambda: iter(rows))
    assert main(["gradcheck"]) == 0
    assert "exp" in capsys.readouterr().out
    rows.append(gradchecks.Row("log", 1, 0, 1, 0, 0, 1e-12, False, True))
    assert main(["gradcheck"]) == 1
    assert "failed: log" in capsys.readouterr().out


def test_demo_runs_from_drawing_to_pictures(monkeypatch, tmp_path, capsys):
    small = {"train": (64, 0, ("filled",)), "test": (32, 1, ("filled",)), "unseen": (32, 2, ("hatched",))}
    monkeypatch.setattr("minisimclr.data.doodles.SPLITS", small)
    monkeypatch.setattr(demo, "DEMO", dataclasses.replace(demo.DEMO, size=16, batch=32, epochs=1))
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--method", "ntxent=exact", *THERE]) == 0
    captured = capsys.readouterr()
    assert "unseen style" in captured.out
    assert "chance 4.14" in captured.err  # log(63): the progress line shows the chance level beside the loss
    assert "Effective rank" in (tmp_path / "runs/demo/report.html").read_text(encoding="utf-8")  # the monitor's curve
    assert {path.name for path in (tmp_path / "runs/demo").iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.npz",
        "results.json",
        "confusion.txt",
        "table.txt",
        "report.html",
        "views.png",
        "neighbours.png",
        "similarity.png",
    }


def test_a_second_run_never_overwrites_the_first(tmp_path):
    assert common.free_folder(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.npz").touch()
    assert common.free_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_resume_takes_the_configuration_of_the_run(trained, photos, capsys):
    assert main(["pretrain", "--resume", "--out", str(trained)]) == 0
    assert "trained 8 steps" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "pretrain", "evaluate", "report", "embed", "gradcheck"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "default" in capsys.readouterr().out


def test_every_setting_is_an_option_with_its_default_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for item in (*dataclasses.fields(Config), *dataclasses.fields(Reading)):
        if item.name == "reading":  # is made of the options of Reading
            continue
        assert f"--{item.name.replace('_', '-')}" in text
        if item.default and not isinstance(item.default, bool):
            assert f"(default: {item.default})" in text


@pytest.mark.parametrize(
    ("options", "method", "notes"),
    [
        ([], "conv=slabs", 0),
        (["--method", "ntxent=exact"], "ntxent=exact", 0),
        (["--conv", "direct"], "conv=slabs", 1),
        (["--conv", "auto"], "conv=auto", 1),
    ],
)
def test_a_method_is_chosen_and_its_old_spelling_still_read_with_a_note(
    photos, tmp_path, capsys, options, method, notes
):
    arguments = ["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *SMALL, *THERE, *options]
    assert main([*arguments, "--epochs", "1"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == method
    said = [line for line in capsys.readouterr().err.splitlines() if "deprecated" in line]
    assert (
        said == [f"minisimclr: note: --conv is deprecated and ends with version 0.4; write --method {method}"] * notes
    )


def test_a_run_of_another_arithmetic_says_so_in_one_line_before_it_goes_on(trained, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    now = checkpoint.NUMERICS
    monkeypatch.setattr(checkpoint, "NUMERICS", now + 1)
    assert main(["pretrain", "--resume", "--out", str(run), *THERE]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "not bit for bit" in line]
    assert said == [f"minisimclr: note: numerics was {now}, is {now + 1}; the run goes on, but not bit for bit"]


def test_a_run_that_is_resumed_with_another_method_says_so_in_one_line(trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["pretrain", "--resume", "--out", str(run), "--method", "conv=auto", *THERE]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "not bit for bit" in line]
    assert said == ["minisimclr: note: method was conv=slabs, is conv=auto; the run goes on, but not bit for bit"]


# ── Refusals: one line, and a code that says of what kind ─────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "--batch", "1"], "batch must be"),
        (["pretrain", "--batch", "many"], "--batch"),
        (["pretrain", "--temperature", "0"], "temperature must be"),
        (["pretrain", "--temperature", "nan"], "temperature must be"),
        (["pretrain", "--encoder", "vgg"], "--encoder"),
        (["pretrain", "--colour", "red"], "--colour"),
        (["pretrain", "--data", "no/such/folder"], "no/such/folder"),
        (["pretrain", "--resume"], "--out"),
        (["pretrain", "--threads", "0"], "threads"),
        (["pretrain", "--method", "conv=fast"], "plain, slabs, padded, winograd, auto for conv; not 'fast'"),
        (["pretrain", "--method", "rooms"], "conv, norm, pool, ntxent, views"),
        (["demo", "--method", "loss=plain"], "conv, norm, pool, ntxent, views"),
        (["pretrain", "--method", "plain", "--conv", "direct"], "give --method alone"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_option_or_missing_data_is_refused_with_code_2(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert says in error_line(capsys)


def test_an_empty_folder_is_refused_with_code_2(tmp_path, capsys):
    assert main(["pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert str(tmp_path) in error_line(capsys)


def test_fewer_images_than_a_batch_are_refused_with_code_2(photos, tmp_path, capsys):
    assert main(["pretrain", "--data", str(photos), "--batch", "64", "--out", str(tmp_path / "run")]) == 2
    assert "16 images" in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_refused_with_code_2(trained, photos, capsys):
    before = (trained / "checkpoint.npz").read_bytes()
    assert main(["pretrain", "--data", str(photos), "--out", str(trained), *SMALL]) == 2
    assert "--resume" in error_line(capsys)
    assert (trained / "checkpoint.npz").read_bytes() == before


def test_resuming_with_another_setting_is_refused_with_code_2(trained, capsys):
    assert main(["pretrain", "--resume", "--out", str(trained), "--temperature", "0.5"]) == 2
    assert "temperature" in error_line(capsys)


def test_a_loss_that_is_not_finite_ends_with_code_3_and_keeps_no_bad_checkpoint(photos, tmp_path, capsys, monkeypatch):
    def backward(optimizer: Optimizer, loss: Tensor, add_up: Any) -> Any:
        return loss.data * np.nan

    monkeypatch.setattr(Optimizer, "backward", backward)
    assert main(["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *SMALL]) == 3
    assert "step 0" in error_line(capsys)
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Interrupted("stopped", signal.SIGINT), 130),
        (Interrupted("stopped", signal.SIGTERM), 143),
        (Interrupted("stopped", signal.SIGHUP), 129),
        (NonFiniteError("loss"), 3),
        (CheckpointError("cut off"), 4),
        (PermissionError(13, "denied"), 4),
        (OSError(28, "disk full"), 4),
        (ValueError("batch"), 2),
        (DataError("no images"), 2),
        (RuntimeError("no GPU"), 2),
        (MemoryError(), 2),
        (KeyError("surprise"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_each_error_has_its_exit_code_and_one_line(error, code, capsys, monkeypatch):
    def fail(threads: int | None) -> None:
        raise error

    monkeypatch.setattr(cli, "set_threads", fail)
    assert main(["gradcheck"]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no archive", np.random.default_rng(0).bytes(1000)])
def test_a_missing_or_unreadable_checkpoint_ends_with_code_4(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "checkpoint.npz").write_bytes(content)
    assert main(["evaluate", str(tmp_path)]) == 4
    assert "checkpoint.npz" in error_line(capsys)


def test_unlabelled_images_cannot_be_evaluated_and_the_error_says_so(trained, tmp_path, capsys):
    for k in range(6):
        Image.new("RGB", (16, 16), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
    assert main(["evaluate", str(trained), "--data", str(tmp_path)]) == 2
    assert "class" in error_line(capsys)


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(OSError, match=r"checkpoint\.npz"):
        main(["evaluate", str(tmp_path), "--debug"])


def test_an_unexpected_error_is_one_line_too(monkeypatch, trained, capsys):
    monkeypatch.setattr(evaluate, "compare", lambda *a, **k: {}["surprise"])
    assert main(["evaluate", str(trained)]) == 1
    assert "--debug" in error_line(capsys)


@pytest.mark.parametrize(
    "lost", ["missing", "bytes", *(pytest.param(x, marks=pytest.mark.slow) for x in ("empty", "folder"))]
)
def test_evaluate_and_report_work_without_a_record_and_say_so(trained, tmp_path, capsys, lost):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    {"missing": lambda path: None, "empty": lambda path: path.touch(), "folder": lambda path: path.mkdir(),
     "bytes": lambda path: path.write_bytes(bytes(range(256)))}[lost](run / "metrics.jsonl")  # fmt: skip
    for command in (["report", str(run)], ["evaluate", str(run), "--k", "3"])[: 2 if lost == "missing" else 1]:
        assert main([*command, *THERE]) == 0
        notes = capsys.readouterr().err.splitlines()
        assert len(notes) == 2
        assert notes[0].startswith("minisimclr: note: ")
        assert "metrics.jsonl" in notes[0]
        assert notes[1] == "minisimclr: note: report.html has no curves: metrics.jsonl holds nothing to draw"
    assert "metrics.jsonl holds nothing to draw" in (run / "report.html").read_text()
    assert (run / "similarity.png").exists()


def test_numbers_of_a_record_that_are_none_are_not_drawn(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        for loss in ("NaN", "Infinity", '"x"', "1e300", "null", "[]"):
            file.write(f'{{"step": 0, "loss": {loss}, "top1": 0, "chance": 1}}\n')
    assert main(["report", str(run), *THERE]) == 0


OLD = b"an older file"


@pytest.mark.parametrize("command", ["evaluate", "report", "embed"])
def test_a_command_that_fails_leaves_what_was_there(trained, tmp_path, monkeypatch, capsys, command):
    """The disk is full when the last file is written."""
    run = shutil.copytree(trained, tmp_path / "run")
    for name in ("table.txt", "confusion.txt", "results.json", *PICTURES):
        (run / name).write_bytes(OLD)
    (tmp_path / "e.npz").write_bytes(OLD)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    syncs = iter(
        [*([None] * {"evaluate": 6, "report": 3, "embed": 0}[command]), OSError(28, "No space left on device")]
    )

    def fsync(descriptor: int) -> None:
        if error := next(syncs):
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    arguments = {"embed": ["--to", str(tmp_path / "e.npz")], "evaluate": ["--k", "3"], "report": []}[command]
    assert main([command, str(run), *arguments, *THERE]) == 4
    last = {"evaluate": run / PICTURES[-1], "report": run / PICTURES[-1], "embed": tmp_path / "e.npz"}[command]
    assert error_line(capsys) == f"minisimclr: error: {last}: No space left on device"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.name != "posix", reason="links and devices are POSIX's")
@pytest.mark.parametrize("target", ["/dev/null", "elsewhere"])
def test_embed_writes_through_no_link_and_says_so_before_it_begins(trained, tmp_path, monkeypatch, capsys, target):
    (tmp_path / "elsewhere").write_bytes(OLD)
    (tmp_path / "e.npz").symlink_to(target)
    monkeypatch.setattr("minisimclr.cli.embed.load_run", lambda *args: 1 / 0)
    assert main(["embed", str(trained), "--to", str(tmp_path / "e.npz")]) == 4
    assert "e.npz is a link, and is not replaced" in error_line(capsys)
    assert (tmp_path / "elsewhere").read_bytes() == OLD


# ── Devices ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_on_a_device_says_where_it_computes_and_how_the_images_get_there(photos, tmp_path, capsys, monkeypatch):
    """The command prints one line about the device, and none on a processor."""
    train_there = ["pretrain", "--data", str(photos), *SMALL, *THERE, "--out"]
    assert main([*train_there, str(tmp_path / "fits")]) == 0
    monkeypatch.setattr("minisimclr.training.batches.free_bytes", lambda device: 0 if device == "cuda" else math.inf)
    assert main([*train_there, str(tmp_path / "does-not")]) == 0
    every_run = ("images of the split", "first step after", "above chance")  # notes that no device changes
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    notes = [line for line in notes if not any(words in line for words in every_run)]
    if devices.DEVICE == "cpu":
        assert notes == []
    else:
        assert [note.endswith("once, before the first step") for note in notes] == [True, False]
        assert all("CuPy" in note and "MiB of images are sent there" in note for note in notes)


def test_workers_that_a_device_does_not_need_are_not_started_which_is_said(photos, tmp_path, capsys):
    if devices.DEVICE == "cpu":
        pytest.skip("a processor starts them: --device stand-in")
    command = ["pretrain", "--data", str(photos), *SMALL, *THERE, "--workers", "2", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert "no worker is started" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", devices.DEVICE])
def test_resuming_elsewhere_is_said_in_one_line_and_works(trained, tmp_path, device, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["pretrain", "--resume", "--out", str(run), "--device", device]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "not bit for bit" in line]
    assert len(said) == (device != devices.DEVICE)
    assert all(line.startswith("minisimclr: note: device was ") for line in said)


def test_evaluation_of_a_run_does_not_need_the_device_that_trained_it(trained, tmp_path):
    results = []
    for device in ("cpu", devices.DEVICE):
        assert main(["embed", str(trained), "--to", str(tmp_path / "e.npz"), "--device", device]) == 0
        with np.load(tmp_path / "e.npz") as archive:
            results.append(archive["h"])
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-4)


def no_driver() -> ModuleType:
    """CuPy as it is where there is no GPU: the import succeeds."""
    cupy = ModuleType("cupy")
    cupy.ndarray, cupy.cuda = type("ndarray", (), {}), SimpleNamespace(is_available=lambda: False)
    return cupy


@pytest.mark.parametrize(
    ("cupy", "says"),
    [(None, r'pip install "cupy-cuda12x\[ctk\]"'), (no_driver(), 'no usable GPU or driver; use device "cpu"')],
)
@pytest.mark.parametrize("command", ["demo", "pretrain", "evaluate", "report", "embed"])
def test_without_cupy_or_a_gpu_there_is_one_line_that_says_what_to_do(
    command, cupy, says, trained, photos, tmp_path, capsys, monkeypatch
):
    arguments = {
        "demo": ["--out", str(tmp_path / "new")],
        "evaluate": [str(trained)],
        "report": [str(trained)],
        "pretrain": ["--data", str(photos), "--out", str(tmp_path / "new"), *SMALL],
        "embed": [str(trained), "--to", str(tmp_path / "new")],
    }[command]
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert main([command, *arguments, "--device", "cuda"]) == 2
    assert re.search(says, error_line(capsys))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
def test_a_precision_that_the_device_does_not_have_is_refused_with_code_2(photos, tmp_path, capsys, kind):
    arguments = ["pretrain", "--data", str(photos), *SMALL, "--device", "cpu", "--precision", kind]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert f'precision "{kind}" needs device "cuda"' in error_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("module", "says"), [("cupy.cuda.memory", "memory on the GPU; use"), ("numpy", "memory; use")])
def test_too_little_memory_is_one_line_that_says_where_and_what_to_change(
    module, says, photos, tmp_path, capsys, monkeypatch
):
    full = type("OutOfMemoryError", (MemoryError,), {"__module__": module})

    def fails(*args, **options):
        raise full("Out of memory allocating 8,589,934,592 bytes (allocated so far: 0 bytes).")

    monkeypatch.setattr("minisimclr.training.batches.two_views", fails)
    assert main(["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *SMALL, *THERE]) == 2
    line = error_line(capsys)
    assert says in line
    assert "--batch" in line


# ── In a process of its own ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("signum", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*two, marks=pytest.mark.slow) for two in [(signal.SIGINT, 130), (signal.SIGHUP, 129)]),
    ],
)
def test_a_signal_finishes_the_step_saves_and_prints_one_line(photos, tmp_path, signum, code):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "minisimclr",
        "pretrain",
        "--data",
        str(photos),
        "--out",
        str(run),
        *SMALL,
        "--epochs",
        "100000",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.splitlines()[-1].startswith("minisimclr: stopped after step ")
    assert "Traceback" not in errors
    assert (run / "checkpoint.npz").exists()
    assert main(["evaluate", str(run), "--k", "3"]) == 0
