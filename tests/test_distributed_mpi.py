"""Processes under a real mpiexec: what threads cannot show. The arithmetic itself is tested in test_distributed.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ranks import on_ranks

import minisimclr as ms
from minisimclr.training.config import Config

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
MISSING = importlib.util.find_spec("mpi4py") is None or MPIEXEC is None

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.host("processes that exchange NumPy's arrays"),
    pytest.mark.skipif(MISSING, reason="needs mpi4py and mpiexec: pip install mpi4py mpich"),
]

SECONDS = 30  # in which all ranks must end, whatever happened to one of them
OPTIONS = ["--size", "8", "--batch", "7", "--head-dim", "8", "--method", "views=plain", "--monitor", "0"]
CONFIG = Config(size=8, batch=7, epochs=3, head_dim=8, lr=0.5, warmup=0.2, method="views=plain")
ENVIRONMENT = os.environ | {
    "OPENBLAS_NUM_THREADS": "1",
    "MINISIMCLR_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(ms.__file__).parents[1]), str(Path(__file__).parent)]),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 16 images of 10×10 pixels, 14 of them to train on: two steps an epoch."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(16):
        (folder / f"class{k % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(folder / f"class{k % 2}" / f"{k:02}.png")
    return folder


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "minisimclr", "pretrain", *map(str, arguments), *OPTIONS, "--distributed"]


def under_mpi(*parts: tuple[int, list[str]], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a number of processes of each command under one mpiexec."""
    joined: list[str] = []
    for count, arguments in parts:
        joined += [":"] * bool(joined) + ["-n", str(count), *arguments]
    return subprocess.run(
        [str(MPIEXEC), *joined], env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False
    )


@contextmanager
def running(size: int, images: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a run that would take for ever, and yield it with the ids of its ranks when it has made some steps."""
    arguments = [str(MPIEXEC), "-n", str(size), *command("--data", images, "--out", folder, "--epochs", 100_000)]
    process = subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + 60
        while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, ranks_of(folder)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def ranks_of(folder: Path) -> list[int]:
    """The ids of the processes that train in this folder, in the order of their ranks."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and str(folder) in (path / "cmdline").read_text() and "mpi" not in cmdline0(path):
                rank = dict(e.split("=", 1) for e in (path / "environ").read_text().split("\0") if "=" in e)["PMI_RANK"]
                found[int(rank)] = int(path.name)
        except (OSError, KeyError):
            continue
    return [found[rank] for rank in sorted(found)]


def cmdline0(path: Path) -> str:
    return Path((path / "cmdline").read_text().partition("\0")[0]).name


def ended(process: subprocess.Popen[str], ids: list[int]) -> tuple[int, str]:
    """Wait for the end of a run; return its exit code and what it said. No process may be left."""
    said, _ = process.communicate(timeout=SECONDS)
    assert not [number for number in ids if Path(f"/proc/{number}").exists()]
    return process.returncode, said


def ours(said: str) -> list[str]:
    """The lines of this package, without the progress, those of mpiexec, and the number of the images."""
    return [line for line in said.splitlines() if line.startswith("minisimclr") and "images of the split" not in line]


# ── The collectives ───────────────────────────────────────────────────────────────────────────────

COLLECTIVES = """
import json, sys
import numpy as np
import minisimclr as ms
from minisimclr.training.distributed import SHORT, mpi_ranks

ms.set_threads(1)
with mpi_ranks() as ranks:
    r, W = ranks.rank, ranks.size
    for dtype in (np.float16, np.float32, np.float64, np.int64, np.uint8):
        for shape in ((), (3,), (2, 0), (2, 3, 5)):
            mine = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape) + r, dtype)
            all_of_them = np.stack([np.asarray(mine.astype(int) - r + k, dtype) for k in range(W)])
            for got, expected in (
                (ranks.all_gather(mine.T.copy().T), all_of_them),
                (ranks.all_reduce(mine), all_of_them.sum(axis=0, dtype=dtype)),
                (ranks.broadcast(mine), all_of_them[0]),
            ):
                assert got.shape == expected.shape and got.dtype == dtype, (shape, dtype)
                assert np.array_equal(got, expected), (shape, dtype)
    parts = [np.random.default_rng(k).standard_normal(SHORT + 1).astype(np.float32) for k in range(W)]
    total = parts[0].copy()
    for part in parts[1:]:
        total += part  # in the order of the ranks, to the last bit
    assert ranks.all_reduce(parts[r]).tobytes() == total.tobytes()
    config = ms.Config(**json.loads(sys.argv[1]))
    images = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3), np.uint8)
    run = ms.pretrain(config, images, ranks=ranks)
    np.savez(f"{sys.argv[2]}/{r}.npz", **run.model.state_dict())
"""


def collectives_and_a_run(size: int, folder: Path) -> None:
    arguments = [sys.executable, "-c", COLLECTIVES, json.dumps(CONFIG.as_dict()), str(folder)]
    done = under_mpi((size, arguments))
    assert (done.returncode, done.stderr) == (0, "")
    images = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3), np.uint8)
    ms.set_threads(1)
    try:
        expected = on_ranks(size, lambda ranks: ms.pretrain(CONFIG, images, ranks=ranks))[0].model.state_dict()
    finally:
        ms.set_threads(None)
    for rank in range(size):
        with np.load(folder / f"{rank}.npz") as found:
            assert found.files == list(expected)
            assert all(np.array_equal(found[name], array) for name, array in expected.items())


def test_processes_exchange_arrays_and_train_bit_for_bit_what_threads_do(tmp_path: Path) -> None:
    collectives_and_a_run(3, tmp_path)


@pytest.mark.slow
def test_four_processes_train_bit_for_bit_what_four_threads_do(tmp_path: Path) -> None:
    collectives_and_a_run(4, tmp_path)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def test_the_command_trains_on_three_ranks_and_rank_0_speaks_for_all(images: Path, tmp_path: Path) -> None:
    done = under_mpi((3, command("--data", images, "--out", tmp_path / "run", "--epochs", 2)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"trained 4 steps; next: minisimclr evaluate {tmp_path / 'run'}\n"
    assert len(done.stderr.splitlines()) == 3  # the number of the images, the progress, and how fast it was
    assert ms.load_run(tmp_path / "run").steps == 4
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.npz",
        "config.json",
        "metrics.jsonl",
    ]


def test_sigterm_to_mpiexec_stops_all_ranks_after_the_same_step(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with running(2, images, folder) as (process, ids):
        process.terminate()
        code, said = ended(process, ids)
    steps = ms.load_run(folder).steps
    assert (code, ours(said)) == (143, [f"minisimclr: stopped after step {steps} of 200000"])
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in records] == list(range(steps))


def test_a_run_that_was_stopped_goes_on_bit_for_bit_on_as_many_ranks(images: Path, tmp_path: Path) -> None:
    whole = under_mpi((2, command("--data", images, "--out", tmp_path / "whole", "--epochs", 20)))
    assert whole.returncode == 0, whole.stderr
    stopping = tmp_path / "stopping.py"  # the same command, asked to stop at its twelfth step
    stopping.write_text(
        "import os, signal, sys\n"
        "from minisimclr.training import session\n"
        "record = session.Session.record\n"
        "def at_the_twelfth(self, **numbers):\n"
        "    if self.waiting[-1]['step'] == 11 and self.ranks.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    record(self, **numbers)\n"
        "session.Session.record = at_the_twelfth\n"
        "from minisimclr.cli import entry\n"
        "entry()\n"
    )
    arguments = command("--data", images, "--out", tmp_path / "cut", "--epochs", 20)
    cut = under_mpi((2, [sys.executable, str(stopping), *arguments[3:]]))
    assert (cut.returncode, ours(cut.stderr)) == (143, ["minisimclr: stopped after step 12 of 40"])
    resumed = under_mpi((2, [*command("--out", tmp_path / "cut"), "--resume"]))
    assert (resumed.returncode, [line for line in ours(resumed.stderr) if "images/s" not in line]) == (0, [])
    one, other = (ms.load_run(tmp_path / name) for name in ("whole", "cut"))
    assert other.steps == 40
    assert all(np.array_equal(a, other.model.state_dict()[name]) for name, a in one.model.state_dict().items())
    on_three = under_mpi((3, [*command("--out", tmp_path / "cut"), "--resume"]))
    changed, finished = ours(on_three.stderr)
    assert changed == "minisimclr: note: ranks was 2, is 3; the run goes on, but not bit for bit"
    assert finished.startswith("minisimclr: note: the run had all its steps already")


# ── What goes wrong ───────────────────────────────────────────────────────────────────────────────


def test_sigterm_to_one_rank_stops_all(images: Path, tmp_path: Path) -> None:
    with running(3, images, tmp_path / "run") as (process, ids):
        os.kill(ids[2], signal.SIGTERM)
        code, said = ended(process, ids)
    steps = ms.load_run(tmp_path / "run").steps
    assert (code, ours(said)) == (143, [f"minisimclr: stopped after step {steps} of 200000"])


def test_a_killed_rank_ends_all_and_the_last_checkpoint_stays_whole(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = under_mpi((2, command("--data", images, "--out", folder, "--epochs", 1)))
    assert first.returncode == 0
    before = (folder / "checkpoint.npz").read_bytes()
    with running(2, images, tmp_path / "other") as (process, ids):
        os.kill(ids[1], signal.SIGKILL)
        code, said = ended(process, ids)
    assert code != 0
    assert "signal 9" in said  # mpiexec's own words
    assert (folder / "checkpoint.npz").read_bytes() == before, "the checkpoint has changed"
    assert not list((tmp_path / "other").glob("*.part"))


def test_a_rank_without_its_data_ends_all_and_says_which_and_why(images: Path, tmp_path: Path) -> None:
    there, missing = (command("--data", data, "--out", tmp_path / "run") for data in (images, tmp_path / "nothing"))
    began = time.monotonic()
    done = under_mpi((2, there), (1, missing))
    assert time.monotonic() - began < SECONDS
    assert done.returncode == 2
    assert ours(done.stderr) == [
        f"minisimclr: error: rank 2 of 3: {tmp_path / 'nothing'}: no such folder or zip file "
        '(or say "doodles" for the built-in images)'
    ]
    assert not (tmp_path / "run").exists()


def test_a_full_disk_on_rank_0_ends_all_and_the_last_checkpoint_stays_whole(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = under_mpi((2, command("--data", images, "--out", folder, "--epochs", 40)))
    assert first.returncode == 0, first.stderr
    before = (folder / "checkpoint.npz").read_bytes()
    full = tmp_path / "full.py"  # a limit of the size of files stands for the disk
    full.write_text(
        "import resource, signal\n"
        "from minisimclr.training import session\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "record = session.Session.record\n"
        "def full_from_the_third_step_on(self, **numbers):\n"
        "    if self.waiting[-1]['step'] == 2:\n"
        f"        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)\n"
        "    record(self, **numbers)\n"
        "session.Session.record = full_from_the_third_step_on\n"
        "from minisimclr.cli import entry\n"
        "entry()\n"
    )
    shutil.copytree(folder, tmp_path / "again")
    arguments = command("--data", images, "--out", tmp_path / "fresh", "--epochs", 40)[3:]
    done = under_mpi((1, [sys.executable, str(full), *arguments]), (1, command(*arguments[1:])))
    assert done.returncode == 4, done.stderr
    assert len(ours(done.stderr)) == 1
    assert ours(done.stderr)[0].startswith(f"minisimclr: error: rank 0 of 2: {tmp_path / 'fresh' / 'checkpoint.npz'}: ")
    assert not list((tmp_path / "fresh").glob("*.part"))


@pytest.mark.parametrize("wrong", ["--temperature 0", "--batch 2"])
def test_a_mistake_of_all_ranks_is_told_once(wrong: str, images: Path, tmp_path: Path) -> None:
    done = under_mpi((3, command("--data", images, "--out", tmp_path / "run") + wrong.split()))
    assert done.returncode == 2
    assert len(ours(done.stderr)) == 1
    assert "rank 0 of 3: " in done.stderr
