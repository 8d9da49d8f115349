"""The console: whatever the standard streams are, and whenever Ctrl-C comes, there is no traceback."""

from __future__ import annotations

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm.auto
import tqdm.std
from PIL import Image

from minisimclr import Config, cli
from minisimclr.cli import console, main, streams

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.name != "posix", reason="descriptors and signals are POSIX's")]

TRAIN = ["--size", "16", "--batch", "4", "--epochs", "1", "--head-dim", "8"]
COMMANDS = ("demo", "pretrain", "evaluate", "report", "embed", "gradcheck")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """16 images of two classes, in a folder whose name is not UTF-8 and would drive a terminal."""
    folder = os.fsencode(tmp_path_factory.mktemp("photos")) + b"/\xff\x1b[31m\xe9"
    rng = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/a", "test/b"):
        here = Path(os.fsdecode(folder)) / name
        here.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(here / f"{k}.png")
    return os.fsdecode(folder)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A run in a folder with a name of that kind."""
    folder = os.fsdecode(os.fsencode(tmp_path_factory.mktemp("runs")) + b"/\xfe\x1b[2J")
    assert main(["pretrain", "--data", photos, "--out", folder, *TRAIN]) == 0
    return folder


def command(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, its streams redirected by a shell."""
    script = 'shift; "$@" ' + redirect
    return subprocess.run(
        ["bash", "-c", "set -o pipefail; " + script, "x", "x", sys.executable, "-m", "minisimclr", *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


# ── A stream in the same process ──────────────────────────────────────────────────────────────────


class Broken(io.StringIO):
    """A stream that fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


GONE = {
    "none": lambda: None,
    "closed": closed,
    "reader-gone": lambda: Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")),
    "descriptor-gone": lambda: Broken(OSError(errno.EBADF, "Bad file descriptor")),
    "terminal-gone": lambda: Broken(OSError(errno.EIO, "Input/output error")),
}


@pytest.mark.parametrize("stream", GONE.values(), ids=GONE)
@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_stream_that_is_gone_changes_nothing(trained, tmp_path, monkeypatch, stream, which):
    broken = stream()
    monkeypatch.setattr(sys, which, broken)
    assert main(["embed", trained, "--to", str(tmp_path / "e.npz")]) == 0
    assert getattr(sys, which) is broken
    assert (tmp_path / "e.npz").exists()
    assert main(["embed", str(tmp_path), "--to", str(tmp_path / "f.npz")]) == 4


@pytest.mark.parametrize(("which", "code"), [("stdout", 4), ("stderr", 0)])
def test_a_full_disk_under_stdout_is_an_error_and_under_stderr_is_not(
    trained, tmp_path, monkeypatch, capsys, which, code
):
    with monkeypatch.context() as patch:
        patch.setattr(sys, which, Broken(OSError(errno.ENOSPC, "No space left on device")))
        assert main(["embed", trained, "--to", str(tmp_path / "e.npz")]) == code
    said = capsys.readouterr().err
    assert said == ("minisimclr: error: standard output: No space left on device\n" if which == "stdout" else "")


def test_letters_that_the_encoding_lacks_are_spelled_out():
    raw = io.BytesIO()
    stream = streams._Safe(io.TextIOWrapper(raw, encoding="ascii"), forgiving=False)
    stream.write("τ \udcff …\n")
    stream.flush()
    assert raw.getvalue() == b"\\u03c4 \\udcff \\u2026\n"


@pytest.mark.parametrize("name", [*COMMANDS, ""])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16", "cp1252"])
def test_help_is_shown_in_any_encoding(monkeypatch, name, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"] if name else ["--help"])
    assert stop.value.code == 0
    text = raw.getvalue().decode(encoding)
    assert "usage: minisimclr" in text
    assert all(len(line) < 56 or "{" in line or " | " in line for line in text.splitlines())  # choices stay together


def test_names_do_not_drive_the_terminal(trained, photos, tmp_path, capsys):
    assert main(["report", trained]) == 0
    assert main(["embed", trained, "--to", os.fsdecode(b"%s/\xfd\x1b[2J.npz" % os.fsencode(tmp_path))]) == 0
    assert main(["embed", os.fsdecode(b"/no/\x1b[2J\xff")+"\n\n", "--to", "x.npz"]) == 4  # fmt: skip
    captured = capsys.readouterr()
    assert all(c == "\n" or c.isprintable() for c in captured.out + captured.err)
    assert captured.err.count("\n") == 1


def test_a_line_that_says_what_is_done_is_no_wider_than_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with console.saying("loading " + "x" * 100):
        pass
    assert max(len(part.removeprefix("\x1b[K")) for part in capsys.readouterr().err.split("\r")) == 39


# ── Progress ──────────────────────────────────────────────────────────────────────────────────────


def shown_progress(monkeypatch, columns: int, steps: int, done: int = 3) -> list[str]:
    """The lines that a terminal of this many columns shows, one after the other in one place."""
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # no thread of its own
    with console.training(Config(), start=steps - done) as show:
        for step in range(steps - done, steps):
            show({"step": step, "steps": steps, "loss": 4.0172, "chance": 6.24, "top1": 1.0, "images_per_second": 9.0})
    return [line for line in terminal.getvalue().replace("\n", "\r").split("\r") if line.strip()]


@pytest.mark.parametrize("steps", [117, 1_234_567])
@pytest.mark.parametrize("columns", [200, 79, 73, 61, 40, 20])
def test_progress_is_one_line_of_78_columns_that_shrinks_with_the_terminal(monkeypatch, columns, steps):
    lines = shown_progress(monkeypatch, columns, steps)
    assert max(map(len, lines)) <= min(78, columns - 1)
    assert f"{steps}/{steps}"[: columns - 6] in lines[-1]
    if columns > 60:
        assert "loss 4.017" in lines[-1]
        assert "top-1 100 %" in lines[-1]
        assert " left" in lines[-1]
    assert ("(chance 6.24)" in lines[-1]) == (columns > 72)


def test_a_notebook_gets_the_bar_of_tqdm_auto(monkeypatch):
    """ipykernel's stream is known by the name of its module, so that ipykernel need not be there."""
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    made: list[Any] = []

    def bar(*args: Any, **options: Any) -> Any:
        made.append(tqdm.std.tqdm(*args, **options))
        return made[-1]

    monkeypatch.setattr("tqdm.auto.tqdm", bar)
    with console.training(Config(), start=0) as show:
        show({"step": 0, "steps": 2, "loss": 4.0, "chance": 6.24, "top1": 0.5, "images_per_second": 9.0})
    assert len(made) == 1
    assert (made[0].total, made[0].n, made[0].ncols) == (2, 1, None)
    assert "chance 6.24" in stream.getvalue()


# ── Ctrl-C ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["_parser", "set_threads", "safe_streams", "_run"])
def test_ctrl_c_anywhere_in_main_ends_with_130_and_one_line_at_most(monkeypatch, capsys, place):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, place, interrupt)
    assert main(["gradcheck"]) == 130
    silent = place == "safe_streams"  # there was nothing to stop yet
    assert capsys.readouterr().err == ("" if silent else "minisimclr: error: stopped\n")


def test_a_command_that_is_interrupted_says_so(monkeypatch, capsys):
    from minisimclr.cli import gradcheck

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gradcheck, "run_command", interrupt)
    assert main(["gradcheck"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "minisimclr: error: stopped"


def test_a_second_ctrl_c_is_no_traceback_either(monkeypatch):
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    monkeypatch.setattr(cli, "complain", interrupt)
    assert main(["gradcheck"]) == 130


# ── In a process of its own ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "redirect",
    ["<&- >&- 2>&-", "2>&1 | head -c 1",
     *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-", "| head -c 0", "2>/dev/full"))],
)  # fmt: skip
def test_training_goes_on_whatever_becomes_of_the_streams(photos, tmp_path, redirect):
    done = command("pretrain", "--data", photos, "--out", str(tmp_path / "run"), *TRAIN, redirect=redirect)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert (tmp_path / "run" / "checkpoint.npz").exists()
    with np.load(tmp_path / "run" / "checkpoint.npz") as archive:  # nothing of C's was written into it
        assert len(archive.files) > 10


def arguments_of(name: str, trained: str, photos: str, folder: Path) -> list[str]:
    return {
        "evaluate": ["evaluate", trained, "--k", "3"],
        "report": ["report", trained],
        "embed": ["embed", trained, "--to", f"{folder}.npz"],
        "pretrain": ["pretrain", "--data", photos, "--out", str(folder / "run"), *TRAIN],
        "gradcheck": ["gradcheck"],
        "help": ["pretrain", "--help"],
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "redirect"),
    [
        *[("evaluate", redirect) for redirect in ("| head -c 0", "2>&1 | head -c 1", ">&-")],
        *[("embed", redirect) for redirect in ("2>&-", ">&- 2>&-")],
        *[("help", redirect) for redirect in ("| head -c 0", ">&-")],
        *[("report", "| head -c 0"), ("gradcheck", "| head -c 0")],
    ],
)
def test_no_command_minds_its_streams(trained, photos, tmp_path, name, redirect):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    done = command(*arguments_of(name, trained, photos, tmp_path), redirect=redirect, **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed", "help", "pretrain"])
def test_a_full_disk_under_stdout_is_one_line_and_code_4(trained, photos, tmp_path, name):
    done = command(*arguments_of(name, trained, photos, tmp_path), redirect=">/dev/full")
    assert done.returncode == 4
    assert done.stderr.decode().splitlines()[-1] == "minisimclr: error: standard output: No space left on device"
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_a_terminal_of_40_columns_shows_a_bar_of_one_line(photos, tmp_path):
    leader, follower = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "minisimclr", "pretrain", "--data", photos, "--out", tmp_path / "run", *TRAIN],
        stderr=follower, stdout=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    assert process.wait(60) == 0
    text = seen.decode("utf-8", "replace").replace("\x1b[K", "").replace("\x1b[A", "")
    parts = [part for line in text.split("\n") for part in line.split("\r")]
    bars = [part for part in parts if "note:" not in part]  # a note is text, which the terminal breaks
    assert any("loss" in part for part in bars)
    assert max(map(len, bars)) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "evaluate", "embed"])
def test_ctrl_c_at_any_moment_is_no_traceback_and_leaves_nothing_half(trained, photos, tmp_path, name):
    """The moments are spread over the start and the work, from the first line of `entry` on."""
    script = "import minisimclr.cli as c, sys; print('ready', flush=True); c.entry()"
    for k, delay in enumerate(np.linspace(0, 1.2, 8)):
        arguments = arguments_of(name, trained, photos, tmp_path / str(k))
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (130, 0), errors
        assert b"Traceback" not in errors, errors
        assert not [path for path in tmp_path.rglob("*.part")]
