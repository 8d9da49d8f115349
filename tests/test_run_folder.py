"""The folder of a run: only the run's own files are touched, one process trains in it, and its record survives."""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from minisimclr import storage
from minisimclr.cli import main
from minisimclr.data import DataError, load_dataset
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training import archive, checkpoint, folders, record, session
from minisimclr.training.checkpoint import CheckpointError
from minisimclr.training.config import Config
from minisimclr.training.run import Interrupted, Run, load_run
from minisimclr.training.train import pretrain

pytestmark = pytest.mark.host

CONFIG = Config(size=8, batch=4, epochs=3, head_dim=8)  # 3 epochs of 2 steps
STEPS = 6
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
POSIX = pytest.mark.skipif(os.name != "posix", reason="links, pipes and locks are POSIX's")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder of 4 channels in place of 32."""
    monkeypatch.setitem(ENCODERS, "small", lambda **options: resnet_small(**{"base": 4, **options}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        pretrain(CONFIG, IMAGES, folder=folder)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, stopped after its third step."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        tiny.__wrapped__(patch)
        with pytest.raises(Interrupted):
            pretrain(CONFIG, IMAGES, folder=folder, progress=at(2, lambda: os.kill(os.getpid(), signal.SIGINT)))
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "copy")


def at(step: int, action: Callable[[], object]) -> Callable[[record.Metrics], object]:
    """A `progress` that does something when that step is told."""
    return lambda line: action() if line["step"] == step else None


def arrays(folder: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in checkpoint.load(folder / "checkpoint.npz")[0].items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ── Only the run's own files ──────────────────────────────────────────────────────────────────────


@POSIX
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoint.npz", "table.txt"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_link_is_neither_followed_nor_replaced(copy, tmp_path, name, resume):
    """Through a link, a run would write to a file elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    if (copy / name).exists():
        (copy / name).rename(elsewhere)
    elsewhere.touch()
    (copy / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises((OSError, ValueError), match=r"is a link, and is not replaced|already holds a run"):
        pretrain(CONFIG, IMAGES, folder=copy, resume=resume)
    assert (copy / name).is_symlink()
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", folders.NAMES)
@pytest.mark.parametrize("content", [b"mine", b"", b"{}", b'{"run": "mine"}', json.dumps(CONFIG.as_dict()).encode()])
def test_a_file_of_somebody_else_is_not_replaced(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"that is not a run's; choose another|already holds a run"):
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert contents(tmp_path) == {name: content}


@pytest.mark.parametrize("command", ["pretrain --batch 4 --data IMAGES --out FOLDER", "demo --out FOLDER"])
def test_the_command_refuses_a_folder_with_a_file_of_somebody_else_in_it(tmp_path, command, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.txt").write_text("mine")
    np.save(tmp_path / "images.npy", IMAGES)
    command = command.replace("FOLDER", str(tmp_path / "mine")).replace("IMAGES", str(tmp_path / "images.npy"))
    assert main(command.split()) == 2
    assert "table.txt" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == {"table.txt": b"mine"}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_in_its_folder(copy, whole):
    """The folder is ours by its config.json; other files in it are no harm."""
    (copy / "checkpoint.npz").unlink()
    (copy / "notes.txt").write_text("mine")
    pretrain(CONFIG, IMAGES, folder=copy)
    assert arrays(copy) == arrays(whole)
    assert len(record.read(copy / "metrics.jsonl", STEPS)) == STEPS
    assert (copy / "notes.txt").read_text() == "mine"


def test_a_run_of_an_older_version_has_no_id_and_goes_on(copy, whole):
    (copy / "config.json").write_text(json.dumps(CONFIG.as_dict()))
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert contents(copy).keys() == contents(whole).keys()
    assert arrays(copy) == arrays(whole)
    assert folders.is_ours(copy)


def test_a_run_whose_config_json_is_lost_goes_on_and_one_with_another_file_of_that_name_does_not(copy, whole):
    (copy / "config.json").write_text('{"name": "my package"}')
    with pytest.raises(ValueError, match="is not that of a run; move it away"):
        pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert (copy / "config.json").read_text() == '{"name": "my package"}'
    (copy / "config.json").unlink()
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert contents(copy)["config.json"] == contents(whole)["config.json"]


@pytest.mark.parametrize("option", [["pretrain", "--out"], ["demo", "--out"], ["evaluate"], ["report"], ["embed"],
                                    ["evaluate", "x", "--data"], ["embed", "x", "--to"]])  # fmt: skip
def test_an_empty_name_is_refused(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*option, "", *(["--to", "x"] if option == ["embed"] else [])])
    assert stop.value.code == 2
    assert "must not be empty" in capsys.readouterr().err


def test_an_empty_folder_name_is_refused_in_python_too():
    with pytest.raises(ValueError, match="empty name"):
        pretrain(CONFIG, IMAGES, folder="")


@POSIX
def test_what_a_killed_process_left_is_removed_and_nothing_else_is(copy):
    left, others = copy / ".checkpoint.npz.a1b2c3d4.part", ["x.part", ".checkpoint.npz.part", ".notes.a1b2c3d4.part"]
    left.touch()
    for name in others:
        (copy / name).touch()
    (copy / ".config.json.aaaaaaaa.part").mkdir()
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert not left.exists()
    assert all((copy / name).exists() for name in [*others, ".config.json.aaaaaaaa.part"])


# ── Writing whole or not at all ───────────────────────────────────────────────────────────────────


def test_several_files_are_replaced_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(ZeroDivisionError):
        storage.write_all({tmp_path / "a": "new", tmp_path / "b": lambda file: 1 / 0})
    assert contents(tmp_path) == {"a": b"old"}
    storage.write_all({tmp_path / "a": "new", tmp_path / "b": b"bytes"})
    assert contents(tmp_path) == {"a": b"new", "b": b"bytes"}


@POSIX
@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null"), lambda path: path.symlink_to(path)],
    ids=["folder", "pipe", "link", "loop"],
)
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    make(tmp_path / "e.npz")
    before = os.lstat(tmp_path / "e.npz")
    for action in (lambda path: storage.write(path, "x"), storage.open_to_append):
        with pytest.raises(OSError, match=r"is a (folder|pipe|link), and is not replaced"):
            action(tmp_path / "e.npz")
    assert os.lstat(tmp_path / "e.npz").st_ino == before.st_ino
    assert len(os.listdir(tmp_path)) == 1


# ── One run, one process ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "command",
    [
        "embed RUN --to RUN/checkpoint.npz",
        "embed RUN --data PHOTOS --to PHOTOS/labels.csv",
        "export RUN RUN/config.json",
        "export RUN PHOTOS/a/0.png",
        "neighbours RUN PHOTOS/a/0.png --in e.npz --sheet PHOTOS/a/0.png",
        "neighbours RUN PHOTOS/a/0.png --in e.npz --sheet e.npz",
        "neighbours RUN PHOTOS/a/0.png --in e.npz --sheet RUN/config.json",
        "data PHOTOS --sheet PHOTOS/a/0.png",
        "data PHOTOS --sheet RUN/metrics.jsonl",
    ],
)
def test_no_output_replaces_a_file_of_a_run_or_what_is_read(copy, tmp_path, monkeypatch, capsys, command):
    """Neither a checkpoint nor a photo could be had again."""
    photos = tmp_path / "photos"
    for name in "ab":
        (photos / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(IMAGES[k]).save(photos / name / f"{k}.png")
    (photos / "labels.csv").write_text("file_name,label\na/0.png,a\n")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(copy), "--data", str(photos), "--to", "e.npz"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    words = command.replace("RUN", str(copy)).replace("PHOTOS", str(photos)).split()
    assert main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minisimclr: error: ")]
    assert "choose another name" in line or "the ending must be" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_a_command_wrote_before_may_be_replaced(copy, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for name in "ab":
        (photos / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(photos / name / "0.png")
    monkeypatch.chdir(photos)
    for _ in range(2):
        assert main(["data", "."]) == 0
        assert main(["embed", str(copy), "--data", ".", "--to", "e.npz"]) == 0
        assert main(["export", str(copy), "e.safetensors"]) == 0


@pytest.mark.parametrize("command", ["embed RUN --to nowhere/e.npz", "export RUN nowhere/e.safetensors"])
def test_a_folder_that_does_not_exist_is_told_by_the_name_that_was_given(copy, tmp_path, monkeypatch, capsys, command):
    """And not by that of a temporary file, which nobody knows."""
    few = {"train": (11, 0, ("filled",)), "test": (4, 1, ("filled",)), "unseen": (4, 2, ("hatched",))}
    monkeypatch.setattr("minisimclr.data.doodles.SPLITS", few)  # drawing all of them takes nine seconds
    monkeypatch.chdir(tmp_path)
    assert main(command.replace("RUN", str(copy)).split()) == 4
    assert f"minisimclr: error: {command.split()[-1]}: No such file or directory" in capsys.readouterr().err


@POSIX
def test_a_second_process_is_refused_in_one_line_and_a_crash_releases_the_folder(tmp_path, whole):
    import fcntl

    script = "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(d, fcntl.LOCK_EX)"
    script += "; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        for resume in (False, True):
            with pytest.raises(ValueError, match="is in use: another process trains there"):
                pretrain(CONFIG, IMAGES, folder=tmp_path, resume=resume)
        assert os.listdir(tmp_path) == []
        other.kill()
    pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert arrays(tmp_path) == arrays(whole)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back at the end
    os.close(descriptor)


@POSIX
def test_the_folder_is_locked_while_it_is_trained_in_and_free_after_a_failure(tmp_path):
    def second() -> None:
        with pytest.raises(ValueError, match="is in use"):
            pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=at(1, second))
    with pytest.raises(ValueError, match="images are not those"):
        pretrain(CONFIG, IMAGES[:-1], folder=tmp_path, resume=True)
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)  # after a refusal, too


# ── The record ────────────────────────────────────────────────────────────────────────────────────


def lines(folder: Path) -> list[bytes]:
    return (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_byte_in_the_record_neither_blocks_nor_is_erased(copy, whole, place):
    damaged = lines(copy)
    damaged[place] = damaged[place].replace(b"loss", b"lo\xffs")
    (copy / "metrics.jsonl").write_bytes(b"".join(damaged))
    assert record.remarks(copy / "metrics.jsonl", 3) == ["metrics.jsonl: 1 line is damaged"]
    assert len(load_run(copy).history) == 2
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert lines(copy)[:3] == damaged
    assert arrays(copy) == arrays(whole)
    assert len(lines(copy)) == STEPS


def test_random_bytes_in_the_record_are_kept_beside_the_lines_that_come(copy):
    noise = [b"\xff\x00{[\n", b'{"step": 1, "loss"\n', b"null\n"]
    before = lines(copy)
    (copy / "metrics.jsonl").write_bytes(b"".join([noise[0], before[0], *noise[1:], *before[1:]]))
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    now = lines(copy)
    assert [line for line in now if line in noise] == noise
    assert [json.loads(line)["step"] for line in now if line not in noise] == list(range(STEPS))


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([0, 1, 2], []),
        ([0, 2], ["metrics.jsonl: 1 line is lost"]),
        ([], ["metrics.jsonl: 3 lines are lost"]),
        ([0, 1, 1, 2], ["metrics.jsonl: 1 line is doubled"]),
        ([1, 0, 2], ["metrics.jsonl: 1 line is out of order"]),
        ([0, 0, 0], ["metrics.jsonl: 2 lines are lost, 2 lines are doubled"]),
        ([0, 1, 2, 3, 4], []),
    ],
)
def test_lines_that_are_lost_doubled_or_out_of_order_are_told(tmp_path, steps, says):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    assert record.remarks(tmp_path / "metrics.jsonl", 3) == says


@pytest.mark.parametrize("line", [b"[]", b"{}", b'{"step": true}', b'{"step": "1"}', b"[" * 5000, b"\x00", b'{"step":'])
def test_a_line_that_is_not_ours_is_told_and_kept(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n{"step": 2}\n')
    assert record.remarks(path, 2) == ["metrics.jsonl: 1 line is damaged"]
    assert record.read(path, 2) == [{"step": 0}, {"step": 1}]
    record.cut(path, 2)
    assert path.read_bytes() == b'{"step": 0}\n' + line + b'\n{"step": 1}\n'


def test_a_line_without_end_costs_little_memory(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 5_000_000 + b'\n{"step": 0, "y": 1}')
    tracemalloc.start()
    record.remarks(path, 1)
    record.cut(path, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert path.read_bytes() == b"x" * 5_000_000 + b'\n{"step": 0, "y": 1}\n'


def test_without_a_folder_the_last_ten_thousand_steps_are_remembered():
    run = Run(CONFIG, None, history=({"step": k} for k in range(20_000)))
    assert [len(run.history), run.history[0]["step"]] == [10_000, 10_000]


def test_with_a_folder_the_history_is_not_kept_in_memory(whole):
    run = load_run(whole)
    assert len(run.recent) == 0
    assert [line["step"] for line in run.history] == list(range(STEPS))
    run.steps = 2
    assert [line["step"] for line in run.history] == [0, 1]


# ── Whatever ends the loop ────────────────────────────────────────────────────────────────────────


class Gone(Exception):
    pass


def fail(error: type[BaseException] = Gone) -> None:
    raise error


@pytest.mark.parametrize("error", [Gone, BrokenPipeError, KeyboardInterrupt, MemoryError, SystemExit])
def test_a_finished_step_is_saved_although_whoever_was_told_of_it_failed(tmp_path, whole, error):
    with pytest.raises(error):
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=at(2, lambda: fail(error)))
    assert load_run(tmp_path).steps == 3
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert arrays(tmp_path) == arrays(whole)
    assert record.remarks(tmp_path / "metrics.jsonl", STEPS) == []


@pytest.mark.parametrize("place", ["views", "loss", "backward"])
def test_a_step_that_is_broken_off_leaves_the_one_before_it(tmp_path, whole, monkeypatch, place):
    """The forward pass has moved the running statistics by then: they are put back."""
    from minisimclr.simclr import SimCLR
    from minisimclr.training import batches
    from minisimclr.training.optim import Optimizer

    owner, name = {"views": (batches, "two_views"), "loss": (SimCLR, "loss"), "backward": (Optimizer, "backward")}[
        place
    ]
    original, calls = getattr(owner, name), []

    def broken(*args: Any, **options: Any) -> Any:
        calls.append(1)
        result = original(*args, **options)
        return result if len(calls) < 4 else fail(KeyboardInterrupt)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert load_run(tmp_path).steps == 3
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert arrays(tmp_path) == arrays(whole)


def test_weights_that_were_being_written_are_not_saved(tmp_path, whole, monkeypatch):
    from minisimclr.training.optim import SGD

    original, calls = SGD.step, []

    def broken(optimizer: SGD, lr: float | None = None) -> None:
        calls.append(1)
        if len(calls) == 4:  # after the first epoch, step 2, there was a checkpoint; after step 3 none
            optimizer.params[0].data[...] = 0
            fail()
        original(optimizer, lr)

    with monkeypatch.context() as patch:
        patch.setattr(SGD, "step", broken)
        with pytest.raises(Gone):
            pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert load_run(tmp_path).steps == 2
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert arrays(tmp_path) == arrays(whole)


def test_a_step_that_is_broken_off_and_a_stop_before_it_leave_the_same_bits(tmp_path, stopped, monkeypatch):
    from minisimclr.training.optim import Optimizer

    original, calls = Optimizer.backward, []

    def broken(*args: Any) -> Any:
        calls.append(1)
        return original(*args) if len(calls) < 4 else fail(MemoryError)

    monkeypatch.setattr(Optimizer, "backward", broken)
    with pytest.raises(MemoryError):
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert arrays(tmp_path) == arrays(stopped)


def test_a_run_broken_off_while_its_weights_were_written_ends_with_the_same_bits(tmp_path, whole, monkeypatch):
    """The weights are a step further then than the number of steps says."""
    from minisimclr.training.optim import SGD

    original, calls = SGD.step, []

    def broken(optimizer: SGD, lr: float | None = None) -> None:
        calls.append(1)
        original(optimizer, lr)
        if len(calls) == 4:
            fail(KeyboardInterrupt)

    with monkeypatch.context() as patch:
        patch.setattr(SGD, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, IMAGES, folder=tmp_path)
    pretrain(CONFIG, IMAGES, folder=tmp_path, resume=True)
    assert arrays(tmp_path) == arrays(whole)


@POSIX
def test_a_stop_is_told_after_its_step_was_saved(tmp_path, monkeypatch):
    saved: list[int] = []

    def stop(message: str, signum: int) -> Interrupted:
        saved.append(load_run(tmp_path).steps)
        return Interrupted(message, signum)

    monkeypatch.setattr(session, "Interrupted", stop)
    with pytest.raises(Interrupted):
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert saved == [4]


@POSIX
def test_a_signal_must_not_hide_that_the_disk_is_full(tmp_path, monkeypatch):
    """Who is told that a run was stopped believes that it was saved."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session, "save", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=at(0, lambda: os.kill(os.getpid(), signal.SIGTERM)))


@POSIX
def test_a_run_under_nohup_is_whole_whatever_it_is_sent_and_agrees_with_another(tmp_path, whole, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        pretrain(CONFIG, IMAGES, folder=tmp_path, progress=lambda line: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert arrays(tmp_path) == arrays(whole)


@POSIX
def test_the_end_of_the_terminal_stops_a_run_and_nohup_does_not(tmp_path, whole):
    before = signal.getsignal(signal.SIGHUP)
    hang_up = at(2, lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Interrupted, match="stopped after step 3 of 6") as stop:
            pretrain(CONFIG, IMAGES, folder=tmp_path / "stopped", progress=hang_up)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        pretrain(CONFIG, IMAGES, folder=tmp_path / "nohup", progress=hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.value.signum == signal.SIGHUP
    assert load_run(tmp_path / "stopped").steps == 3
    assert arrays(tmp_path / "nohup") == arrays(whole)


def test_a_signal_that_comes_while_the_last_step_is_saved_is_carried_out(tmp_path, monkeypatch):
    original = session.save

    def save(run: Run, *args: Any) -> None:
        original(run, *args)
        if run.steps == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(session, "save", save)
    with pytest.raises(Interrupted, match="stopped after step 6 of 6"):
        pretrain(CONFIG, IMAGES, folder=tmp_path)


def test_a_full_disk_under_the_record_does_not_cost_the_checkpoint(tmp_path, monkeypatch):
    original = session.opened

    from contextlib import contextmanager

    @contextmanager
    def opened(run: Run) -> Any:
        with original(run) as write:
            yield lambda line: write(line) if line["step"] < 2 else fail(OSError)

    monkeypatch.setattr(session, "opened", opened)
    with pytest.raises(OSError):  # noqa: PT011
        pretrain(CONFIG, IMAGES, folder=tmp_path)
    assert load_run(tmp_path).steps == 3


# ── Checkpoints that are not what they seem ───────────────────────────────────────────────────────


@POSIX
@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)],
    ids=["folder", "pipe", "device", "loop"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "checkpoint.npz")
    with pytest.raises(CheckpointError) as refusal:
        load_run(tmp_path)
    assert_one_line(refusal, "checkpoint.npz")
    assert re.search(r"it is a (pipe|folder|device), not a file$|Too many levels", str(refusal.value))


@POSIX
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_only_a_file_is_opened_and_nothing_else_is_left_open(tmp_path, make):
    make(tmp_path / "x")
    before = os.listdir("/dev/fd")
    with pytest.raises(OSError, match="not a file"):
        os.close(storage.open_regular(tmp_path / "x", 100))
    assert len(os.listdir("/dev/fd")) == len(before)


@POSIX
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_data_that_are_no_file_are_refused_at_once(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(DataError, match="neither a folder nor a zip file"):
        load_dataset(tmp_path / "data")


def assert_one_line(refusal: Any, *words: str) -> None:
    message = str(refusal.value)
    assert len(message) <= 200
    assert message.isprintable()
    assert "unexpected" not in message
    assert all(word in message for word in words), message


def written(path: Path, arrays: dict[str, Any], meta: Any, packed: bool = False, **more: bytes) -> Path:
    """A checkpoint of any content."""
    text = np.frombuffer(meta if isinstance(meta, bytes) else json.dumps(meta).encode(), np.uint8)
    (np.savez_compressed if packed else np.savez)(path, meta=text, **arrays)
    with zipfile.ZipFile(path, "a") as file:
        for name, content in more.items():
            file.writestr(name, content)
    return path


def poisoned(value: float) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    def spoil(arrays: dict[str, Any], meta: dict[str, Any]) -> None:
        arrays["model/encoder.conv1.weight"].flat[-1] = value

    return spoil


HOSTILE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "momentum-without-shape": (lambda a, m: a.update({"momentum/0": np.float32(0)}), "momentum/0 has shape ()"),
    "weights-nan": (poisoned(math.nan), "model/encoder.conv1.weight holds NaN"),
    "weights-infinite": (poisoned(math.inf), "model/encoder.conv1.weight holds NaN or infinity"),
    "momentum-nan": (lambda a, m: a["momentum/3"].fill(math.nan), "momentum/3 holds NaN"),
    "variance-below-zero": (lambda a, m: a["model/encoder.bn1.running_var"].fill(-1), "encoder.bn1.running_var"),
    "float64": (lambda a, m: a.update({"momentum/1": a["momentum/1"].astype(float)}), "momentum/1 has dtype float64"),
    "big-endian": (lambda a, m: a.update({"momentum/1": a["momentum/1"].astype(">f4")}), "momentum/1 has dtype >f4"),
    "complex": (lambda a, m: a.update({"momentum/1": a["momentum/1"].astype("F")}), "momentum/1 has dtype complex64"),
    "text": (lambda a, m: a.update({"momentum/1": np.array("x")}), "momentum/1 has dtype"),
    "structured": (lambda a, m: a.update({"momentum/1": np.zeros(3, "f4,f4")}), "momentum/1 has dtype"),
    "one-too-many": (lambda a, m: a.update({"momentum/99": np.zeros(3)}), "has no use for momentum/99"),
    "scale-of-another-precision": (lambda a, m: a.update({"scale/value": np.float32(1)}), "scale/value"),
    "escape-code": (lambda a, m: a.update({"\x1b[2J\x07": np.zeros(3)}), "has no use for"),
    "long-name": (lambda a, m: a.update({"x" * 5000: np.zeros(3)}), "has no use for xxx"),
    "one-too-few": (lambda a, m: a.pop("momentum/2"), "misses momentum/2"),
    "steps-below-zero": (lambda a, m: m.update(steps=-1), "steps must be"),
    "steps-too-many": (lambda a, m: m.update(steps=7), "steps must be a whole number from 0 to 6"),
    "steps-fraction": (lambda a, m: m.update(steps=1.0), "steps must be"),
    "steps-true": (lambda a, m: m.update(steps=True), "steps must be"),
    "steps-text": (lambda a, m: m.update(steps="3"), "steps must be"),
    "steps-huge": (lambda a, m: m.update(steps=10**400), "steps must be"),
    "environment-list": (lambda a, m: m.update(environment=[]), "environment must be a table"),
    "environment-null": (lambda a, m: m.update(environment=None), "environment must be a table"),
    "threads-text": (lambda a, m: m["environment"].update(threads="2"), "environment threads must be of type int"),
    "blas-number": (lambda a, m: m["environment"].update(blas=2), "environment blas must be of type str"),
    "blas-table": (lambda a, m: m["environment"].update(blas={}), "environment blas must be of type str"),
    "blas-long": (lambda a, m: m["environment"].update(blas="x" * 10**5), "environment blas is longer"),
    "images-number": (lambda a, m: m.update(images=3), "images must be"),
    "images-text": (lambda a, m: m.update(images="\x1b[2J"), "images must be"),
    "config-text": (lambda a, m: m.update(config="x"), "config must be a table"),
    "setting-type": (lambda a, m: m["config"].update(lr="\x1b[2J" * 100), "lr must be of type float"),
    "setting-list": (lambda a, m: m["config"].update(encoder=["small"]), "encoder must be"),
    "setting-nan": (lambda a, m: m["config"].update(lr=math.nan), "lr must be"),
    "setting-unknown": (lambda a, m: m["config"].update({"\x1b" + "x" * 999: 1}), "unknown setting"),
    "method": (lambda a, m: m["config"].update(method="conv=" + "x" * 999), "method must be"),
    "huge-network": (lambda a, m: m["config"].update(encoder="resnet152", width=16), "more weights than there are"),
    "huge-head": (lambda a, m: m["config"].update(head_dim=65536, head_layers=8), "head"),
    "format-text": (lambda a, m: m.update(format="\x1b" * 999), "has format"),
    "format-true": (lambda a, m: m.update(format=True), "has format"),
}


@pytest.mark.parametrize(("spoil", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_line_that_names_the_entry(whole, tmp_path, spoil, says):
    stored, meta = checkpoint.load(whole / "checkpoint.npz")
    spoil(stored, meta)
    written(tmp_path / "checkpoint.npz", stored, meta)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as refusal:
        load_run(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_one_line(refusal, "checkpoint.npz", says)
    assert peak < 150 << 20


def huge(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """The header of an array, without its values."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": dtype})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "more",
    [
        {"x.npy": huge((1 << 40,))},
        {"x.npy": huge((1 << 62, 1 << 62))},
        {"x.npy": huge((-1,))},
        {"x.npy": huge((3,), "|O")},
        {"x.npy": b""},
        {"x.npy": b"\x93NUMPY\x09\x00" + bytes(100)},
        {"x.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535},
        {"momentum/0.npy": huge((3,))},
        {"meta.npy": huge((3,))},
        {f"{k}.npy": b"" for k in range(20_000)},
    ],
    ids=["large", "overflow", "negative", "objects", "empty", "version", "nested", "twice", "meta-twice", "many"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_entry_that_lies_is_refused_before_memory_is_taken(whole, tmp_path, more):
    stored, meta = checkpoint.load(whole / "checkpoint.npz")
    written(tmp_path / "checkpoint.npz", stored, meta, **more)
    tracemalloc.start()
    with pytest.raises(CheckpointError) as refusal:
        load_run(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_one_line(refusal, "checkpoint.npz")
    assert peak < 50 << 20


def test_what_is_packed_is_refused_because_a_bomb_would_be(whole, tmp_path):
    written(tmp_path / "checkpoint.npz", *checkpoint.load(whole / "checkpoint.npz"), packed=True)
    with pytest.raises(CheckpointError, match="is packed"):
        load_run(tmp_path)


def test_nothing_is_read_of_a_checkpoint_with_an_entry_too_many(whole, tmp_path, monkeypatch):
    stored, meta = checkpoint.load(whole / "checkpoint.npz")
    written(tmp_path / "checkpoint.npz", stored | {"y": np.zeros(9)}, meta)
    original, asked = archive.Archive.read, []
    monkeypatch.setattr(archive.Archive, "read", lambda self, name: (asked.append(name), original(self, name))[1])
    with pytest.raises(CheckpointError, match=r"has no use for y$"):
        load_run(tmp_path)
    assert asked == ["meta"]


@POSIX
@pytest.mark.parametrize(
    "way",
    [
        "momentum-without-shape",
        "weights-infinite",
        "steps-too-many",
        "big-endian",
        "one-too-many",
        "huge-network",
        "packed",
        "link",
        "pipe",
    ],
)
def test_a_damaged_checkpoint_is_survived_by_its_folder(copy, whole, tmp_path, way):
    """No other file is changed, and with the old one in its place the run goes on."""
    kept = copy / "checkpoint.npz"
    kept.rename(tmp_path / "kept.npz")
    if way == "link":
        kept.symlink_to(tmp_path / "kept.npz")
    elif way == "pipe":
        os.mkfifo(kept)
    else:
        stored, meta = checkpoint.load(tmp_path / "kept.npz")
        HOSTILE.get(way, (lambda a, m: None, ""))[0](stored, meta)
        written(kept, stored, meta, packed=way == "packed")
    before = contents(copy) | {"kept": (tmp_path / "kept.npz").read_bytes()}
    tracemalloc.start()
    if way != "link":  # which may be read, and not replaced
        with pytest.raises(CheckpointError):
            load_run(copy)
    with pytest.raises(OSError, match="checkpoint"):
        pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()
    assert contents(copy) | {"kept": (tmp_path / "kept.npz").read_bytes()} == before
    kept.unlink()
    (tmp_path / "kept.npz").rename(kept)
    pretrain(CONFIG, IMAGES, folder=copy, resume=True)
    assert arrays(copy) == arrays(whole)


def test_a_text_that_is_deeply_nested_or_no_text_is_refused(whole, tmp_path):
    stored, _ = checkpoint.load(whole / "checkpoint.npz")
    for meta in (b"[" * 100_000, b"\xff", b"", b"null", b"{" + b" " * (2 << 20)):
        written(tmp_path / "checkpoint.npz", stored, meta)
        with pytest.raises(CheckpointError) as refusal:
            load_run(tmp_path)
        assert_one_line(refusal, "meta")


@pytest.mark.slow
def test_a_refusal_takes_less_than_300_mib_in_a_process_of_its_own(whole, tmp_path):
    stored, meta = checkpoint.load(whole / "checkpoint.npz")
    meta["config"] |= {"encoder": "resnet152", "width": 16, "head_layers": 8, "head_dim": 65536}
    written(tmp_path / "checkpoint.npz", stored, meta)
    measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:]); " \
              "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # fmt: skip
    command = [sys.executable, "-m", "minisimclr", "evaluate", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", measure, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 300 << 10  # KiB


# ── Fuzz ──────────────────────────────────────────────────────────────────────────────────────────

NIGHTLY = settings.get_profile("nightly").max_examples
MUTATIONS = 20_000 if settings().max_examples == NIGHTLY else 500


@pytest.mark.slow
@settings(max_examples=MUTATIONS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_mutated_checkpoint_is_refused_in_one_line_or_is_the_same(whole, tmp_path_factory, data):
    """Bytes are changed, cut out, doubled or put in; most of all where names, shapes and sizes are."""
    raw = bytearray((whole / "checkpoint.npz").read_bytes())
    heads = [found.start() for found in re.finditer(b"PK", raw)]
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.sampled_from(heads)) + data.draw(st.integers(0, 200))
        place = min(data.draw(st.sampled_from([near, data.draw(st.integers(0, len(raw) - 1))])), len(raw) - 1)
        new = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"PK\5\6", b"(1,)"])))
        raw[place : place + data.draw(st.sampled_from([0, 1, len(new), 100]))] = new
    path = tmp_path_factory.getbasetemp() / "fuzz" / "checkpoint.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        run = load_run(path.parent)
    except CheckpointError as error:
        message = str(error)
        assert len(message) <= 200
        assert message.isprintable()
        assert "checkpoint.npz" in message
    else:  # a field that nothing depends on
        state = run.model.state_dict()
        good = load_run(whole).model.state_dict()
        assert all(state[name].tobytes() == good[name].tobytes() for name in good)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


# ── The page ──────────────────────────────────────────────────────────────────────────────────────


def test_every_test_that_the_page_names_exists():
    here = Path(__file__).parent
    files = {path.stem: path.read_text() for path in here.glob("test_*.py")}
    named = set(re.findall(r"\btest_\w+", (here.parent / "docs" / "robustness.md").read_text())) - files.keys()
    code = "\n".join(files.values())
    assert len(named) > 15
    assert {name for name in named if f"def {name}(" not in code} == set()
