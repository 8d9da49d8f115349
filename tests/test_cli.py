"""What the commands promise: what they write and print, their exit codes, and one clear line for every error."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from minisimclr import cli, data
from minisimclr.cli import main

SMALL = ["--size", "16", "--batch", "4", "--epochs", "2", "--head-dim", "8"]


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
    assert main(["pretrain", "--data", str(photos), "--out", str(run), *SMALL]) == 0
    return run


def error_line(capsys):
    """The one line that a refused command prints."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("minisimclr: error: ")]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    return errors[0]


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────

def test_pretrain_keeps_the_configuration_the_metrics_and_a_checkpoint(trained):
    assert {"config.json", "metrics.jsonl", "checkpoint.npz"} == {path.name for path in trained.iterdir()}
    config = json.loads((trained / "config.json").read_text())
    assert (config["batch"], config["size"], config["temperature"]) == (4, 16, 0.1)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8))
    assert lines[0]["chance"] == pytest.approx(np.log(7))
    assert all(0 <= line["top1"] <= 1 for line in lines)


def test_evaluate_prints_and_keeps_the_table_and_draws_the_pictures(trained, capsys):
    assert main(["evaluate", str(trained), "--k", "3"]) == 0
    printed = capsys.readouterr().out
    for row in ("raw pixels", "colour statistics", "untrained encoder, h", "SimCLR, h", "SimCLR, z"):
        assert row in printed
    assert (trained / "table.txt").read_text().strip() in printed
    scores = json.loads((trained / "results.json").read_text())["scores"]
    raw = next(score for score in scores if score["name"] == "raw pixels")
    assert raw["knn"]["test"] == 1.0  # red against blue is easy
    for name in ("loss", "views", "neighbours", "similarity"):
        with Image.open(trained / f"{name}.png") as picture:
            assert picture.size > (100, 100)


def test_report_draws_the_pictures_again(trained, capsys):
    (trained / "views.png").unlink(missing_ok=True)
    assert main(["report", str(trained)]) == 0
    assert (trained / "views.png").exists()
    assert "views.png" in capsys.readouterr().out


def test_embed_writes_h_z_and_labels_without_pickle(trained, tmp_path):
    assert main(["embed", str(trained), "--to", str(tmp_path / "e.npz")]) == 0
    with np.load(tmp_path / "e.npz", allow_pickle=False) as archive:
        assert archive["h"].shape == (8, 128)
        assert archive["z"].shape == (8, 8)
        assert sorted(archive["labels"]) == [0] * 4 + [1] * 4
        assert list(archive["class_names"]) == ["blue", "red"]


def test_gradcheck_prints_every_operation_and_fails_if_one_does(capsys, monkeypatch):
    from minisimclr import gradchecks

    rows = [gradchecks.Row("exp", 1, 0, 0, 0, 0, 1e-12, True, True)]
    monkeypatch.setattr(gradchecks, "run", lambda: iter(rows))
    assert main(["gradcheck"]) == 0
    assert "exp" in capsys.readouterr().out
    rows.append(gradchecks.Row("log", 1, 0, 1, 0, 0, 1e-12, False, True))
    assert main(["gradcheck"]) == 1
    assert "failed: log" in capsys.readouterr().out


def test_demo_runs_from_drawing_to_pictures(monkeypatch, tmp_path, capsys):
    small = {"train": (96, 0, ("filled",)), "test": (32, 1, ("filled",)), "unseen": (32, 2, ("hatched",))}
    monkeypatch.setattr(data, "DOODLES", small)
    monkeypatch.setattr(cli, "DEMO", dataclasses.replace(cli.DEMO, batch=32, epochs=1))
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert "unseen style" in captured.out
    assert "chance 4.14" in captured.err  # log(63): the progress line shows the chance level beside the loss
    assert {path.name for path in (tmp_path / "runs/demo").iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoint.npz", "results.json", "table.txt",
        "loss.png", "views.png", "neighbours.png", "similarity.png"}


def test_a_second_run_never_overwrites_the_first(tmp_path):
    assert cli._free_folder(tmp_path / "demo") == tmp_path / "demo"
    for name in ("demo", "demo-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint.npz").touch()
    assert cli._free_folder(tmp_path / "demo") == tmp_path / "demo-3"


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
    for item in dataclasses.fields(cli.Config):
        assert f"--{item.name.replace('_', '-')}" in text
        if not isinstance(item.default, bool):
            assert f"(default: {item.default})" in text


# ── Refusals: one line, and a code that says of what kind ─────────────────────────────────────────

@pytest.mark.parametrize(("arguments", "says"), [
    (["pretrain", "--batch", "1"], "batch must be"),
    (["pretrain", "--batch", "many"], "--batch"),
    (["pretrain", "--temperature", "0"], "temperature must be"),
    (["pretrain", "--temperature", "nan"], "temperature must be"),
    (["pretrain", "--encoder", "vgg"], "--encoder"),
    (["pretrain", "--colour", "red"], "--colour"),
    (["pretrain", "--data", "no/such/folder"], "no/such/folder"),
    (["pretrain", "--resume"], "--out"),
    (["pretrain", "--threads", "0"], "threads"),
    (["dance"], "dance"),
    ([], "COMMAND"),
])
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
    monkeypatch.setattr("minisimclr.train.LossScale.unscale", lambda scale: np.array(np.nan))
    assert main(["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), *SMALL]) == 3
    assert "step 0" in error_line(capsys)
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 but no archive", os.urandom(1000)])
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
    monkeypatch.setattr(cli, "compare", lambda *a, **k: {}["surprise"])
    assert main(["evaluate", str(trained)]) == 1
    assert "--debug" in error_line(capsys)


# ── In a process of its own ───────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_prints_one_line(photos, tmp_path, signum, code):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "minisimclr", "pretrain", "--data", str(photos), "--out", str(run), *SMALL,
               "--epochs", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert process.poll() is None
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors.splitlines()[-1].startswith("minisimclr: stopped after step ")
    assert "Traceback" not in errors
    assert (run / "checkpoint.npz").exists()
    assert main(["evaluate", str(run), "--k", "3"]) == 0
