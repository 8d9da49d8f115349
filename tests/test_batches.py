"""The views of each step: the same whoever makes them, and no worker outlives its use."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minisimclr.cli import main
from minisimclr.training import workers as worker_processes
from minisimclr.training.batches import epoch_order, step_views, views_ahead
from minisimclr.training.config import Config
from minisimclr.training.run import Interrupted
from minisimclr.training.train import pretrain

pytestmark = pytest.mark.host

CONFIG = Config(size=8, batch=4, epochs=3, head_dim=8, strength=1.0, seed=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 10, 12, 3), np.uint8)
STEPS = range(1, 6)  # as a resumed run would ask for


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def all_views(workers: int, config: Config = CONFIG) -> list[np.ndarray]:
    with views_ahead(config, IMAGES, STEPS, workers) as views:
        return [np.stack(views(step)) for step in STEPS]  # a copy: they are valid for one step only


def test_views_are_the_same_with_any_number_of_workers() -> None:
    alone = all_views(0)
    assert alone[0].shape == (2, 4, 8, 8, 3)
    for workers in (1, 2):
        np.testing.assert_array_equal(all_views(workers), alone)


def test_each_step_sees_the_images_of_its_epochs_order() -> None:
    config = Config(size=8, batch=4, epochs=3, head_dim=8, strength=0.0, min_area=1.0)
    plain = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    views = step_views(config, plain)
    for step in range(6):
        epoch, k = divmod(step, 2)
        order = epoch_order(11, 4, config.rng(2, epoch))[k]
        for view in views(step):
            np.testing.assert_array_equal(np.rint(255 * view[:, 0, 0, 0]), order)


def test_two_steps_see_different_views() -> None:
    shown = all_views(0)
    assert min(abs(a - b).mean() for i, a in enumerate(shown) for b in shown[:i]) > 0.01


def test_a_run_is_the_same_with_workers() -> None:
    alone, helped = (pretrain(CONFIG, IMAGES, workers=workers) for workers in (0, 2))
    for name, array in alone.model.state_dict().items():
        np.testing.assert_array_equal(array, helped.model.state_dict()[name])


def test_what_a_worker_raises_is_raised_here() -> None:
    grey = np.zeros((11, 8, 8, 1), np.uint8)
    with views_ahead(CONFIG, grey, STEPS, 1) as views, pytest.raises(ValueError, match=r"\(N,H,W,3\), not \(4, 8"):
        views(1)


def failing_views(batch: Any, rng: Any) -> Any:
    raise OSError("photos.cache is damaged; remove it, and it is built again")


def test_an_error_of_a_file_in_a_worker_is_raised_here_in_its_own_words() -> None:
    """An OSError is not taken for the end of the training process."""
    with views_ahead(CONFIG, IMAGES, STEPS, 1, own=failing_views) as views, pytest.raises(OSError, match="is damaged"):
        views(1)


def test_a_damaged_file_in_a_worker_ends_the_run_with_its_words() -> None:
    with pytest.raises(OSError, match="is damaged; remove it, and it is built again"):
        pretrain(CONFIG, IMAGES, views=failing_views, workers=1)


def test_an_error_in_the_training_process_ends_the_workers() -> None:
    with pytest.raises(ZeroDivisionError), views_ahead(CONFIG, IMAGES, STEPS, 2) as views:
        views(1 // 0)


def test_a_worker_that_was_killed_is_one_line() -> None:
    with views_ahead(CONFIG, IMAGES, range(600), 1) as views:
        views(0)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        with pytest.raises(ChildProcessError, match="worker process 1 of 1 ended with exit code -9") as caught:
            [views(step) for step in range(1, 10)]  # what it had already sent can still be used
        assert "\n" not in str(caught.value)


def test_workers_end_when_the_training_process_is_killed() -> None:
    """The workers find nobody at the other end. Each first prints its number, by way of the views' configuration."""
    code = (
        "import multiprocessing, sys, time, numpy as np\n"
        "from minisimclr.training.config import Config\n"
        "from minisimclr.training.batches import views_ahead\n"
        "if __name__ == '__main__':\n"
        "    with views_ahead(Config(size=8, batch=4), np.zeros((11, 8, 8, 3), np.uint8), range(99), 2) as views:\n"
        "        views(0), views(1)\n"
        "        print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(pid: int) -> bool:
    """True if a process of this number is alive. A dead one that its parent has not collected yet does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_stops_the_run_and_saves_it(tmp_path: Path, signum: signal.Signals) -> None:
    """Ctrl-C in a terminal reaches the workers too: they leave it to the training process, which goes on to its end."""
    (tmp_path / "photos").mkdir()
    for k, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "photos" / f"{k}.png")
    command = [
        sys.executable,
        "-m",
        "minisimclr",
        "pretrain",
        "--workers",
        "2",
        "--data",
        str(tmp_path / "photos"),
        "--batch",
        "4",
        "--size",
        "8",
        "--epochs",
        "10000",
        "--out",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        lines = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (lines.exists() and lines.read_text()) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(run.pid, signum)
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signum
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("minisimclr: stopped after step")
    assert (tmp_path / "run" / "checkpoint.npz").exists()


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 0, not -1"), views_ahead(CONFIG, IMAGES, STEPS, -1):
        pass


@pytest.mark.parametrize("workers", [65, 2.0, True, "2", None])
def test_a_number_of_workers_has_a_bound_that_is_said(workers: Any, capsys: Any) -> None:
    ahead = views_ahead(CONFIG, IMAGES, STEPS, workers)
    with pytest.raises((ValueError, TypeError), match="workers must be") as caught, ahead:
        pass
    if workers == 65:
        assert str(caught.value) == "workers must be at most 64, not 65"
        assert main(["pretrain", "--workers", "65"]) == 2
        assert capsys.readouterr().err == "minisimclr: error: --workers must be at most 64, not 65\n"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
def test_a_worker_that_is_stuck_is_not_waited_for_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_processes, "PATIENCE", 0.2)
    stop: list[int] = []
    with views_ahead(CONFIG, IMAGES, range(600), 1, stop) as views:
        views(0)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        stop.append(signal.SIGINT)
        with pytest.raises(Interrupted, match=r"stopped after step . of 600") as caught:
            [views(step) for step in range(1, 10)]
        assert caught.value.signum == signal.SIGINT
    assert not running(worker.pid or 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own watch is Linux's")
def test_workers_that_are_stuck_end_when_the_training_process_is_killed() -> None:
    code = (
        "import multiprocessing, os, signal, time, numpy as np\n"
        "from minisimclr.training.config import Config\n"
        "from minisimclr.training.batches import views_ahead\n"
        "if __name__ == '__main__':\n"
        "    with views_ahead(Config(size=8, batch=4), np.zeros((11, 8, 8, 3), np.uint8), range(99), 1) as views:\n"
        "        views(0)\n"
        "        (worker,) = multiprocessing.active_children()\n"
        "        os.kill(worker.pid, signal.SIGSTOP)\n"
        "        print(worker.pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_there_are_no_more_workers_than_steps() -> None:
    with views_ahead(CONFIG, IMAGES, range(1), 5) as views:
        views(0)
        assert len(multiprocessing.active_children()) == 1


def test_a_script_without_a_main_guard_says_what_is_missing_in_one_line_and_trains_nothing(tmp_path: Path) -> None:
    """Its workers import it, and would train as well: into the same folder, with workers of their own."""
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np, minisimclr as ms\n"
        "config = ms.Config(size=8, batch=4, epochs=1, head_dim=8)\n"
        "images = np.zeros((8, 8, 8, 3), np.uint8)\n"
        "ms.pretrain(config, images, folder='run', workers=1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("RuntimeError: workers need a main guard")
    assert 'if __name__ == "__main__":' in last
    assert done.stderr.count("Traceback") == 1
    assert not (tmp_path / "run" / "checkpoint.npz").exists()
