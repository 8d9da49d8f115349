"""A run and its folder: what is kept of it, and how it is found again.

config.json      the settings
metrics.jsonl    one JSON object per step: "loss", "top1", "gradient" (Σ max|g| over the parameters; 0: a step that
                 float16 left out), "lr" …
checkpoint.npz   weights, the optimizer's arrays, position (checkpoint.py)

This file keeps a run and does not know how it is trained: the optimizer's part is a dictionary of arrays.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..nn import ROOMS, method_of
from ..simclr import SimCLR
from . import checkpoint
from .config import Config, build_model

# Settings that may differ when a run is resumed: they change where, how exactly and by which form it is computed,
# not what is computed.
MAY_CHANGE = ("device", "precision", "method")

Metrics = dict[str, Any]  # one line of metrics.jsonl


class Interrupted(Exception):
    """A signal asked the run to stop; it finished its step and saved. `signum` is the number of the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class NonFiniteError(ArithmeticError):
    """The loss, a gradient or an array to be saved became NaN or infinite; the last checkpoint is as it was."""


@dataclass
class Run:
    """A model, how it was made, how its training went, and where it is kept.

    config   the settings                             history  one dictionary of metrics per step
    model    the network, as it is now                folder   where it is kept; None: nowhere
    steps    how many steps are done                  images   fingerprint of the training images

    >>> import minisimclr as ms
    >>> from minisimclr.training.config import build_model
    >>> run = ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
    >>> run.steps, run.folder
    (0, None)
    """

    config: Config
    model: SimCLR
    steps: int = 0
    history: list[Metrics] = field(default_factory=list)
    folder: Path | None = None
    images: str = ""


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """Load a run from its folder: configuration, trained model, steps done, metrics.

    The model is put on `device` and computes in float32, whatever it was trained on and in.

    Raises: CheckpointError, in one line, if there is no checkpoint or it cannot be used; RuntimeError for a device
            that is not there.

    >>> import numpy as np, tempfile, minisimclr as ms
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = ms.pretrain(ms.Config(size=16, batch=4, epochs=1), images, folder=folder)
    ...     run = ms.load_run(folder)
    >>> run.steps, len(run.history)
    (2, 2)
    """
    folder = Path(folder)
    path = folder / "checkpoint.npz"
    arrays, meta = checkpoint.load(path)
    with checkpoint.must_fit(path):
        config = Config.from_dict(meta["config"])
        run = Run(config, build_model(config.to_evaluate(device)), steps=int(meta["steps"]), folder=folder)
        run.model.load_state_dict(checkpoint.part(arrays, "model"))
    run.model.to(device)
    run.history = _read_metrics(folder / "metrics.jsonl", run.steps)
    return run


def fingerprint(images: np.ndarray[Any, Any]) -> str:
    """Return number and checksum of the images: a run is resumed on what it began with, or not at all."""
    return f"{len(images)} images, crc32 {zlib.crc32(np.ascontiguousarray(images).data):08x}"


def make_folder(folder: str | Path | None, resume: bool) -> Path | None:
    """Make the folder of a run if need be. One that holds a run is only touched to resume it.

    Raises: ValueError if it holds a run that is not to be resumed, or if there is none to resume.
    """
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run")
        return None
    folder = Path(folder)
    if not resume and (folder / "checkpoint.npz").exists():
        raise ValueError(f"{folder} already holds a run; go on with --resume, or choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def restore(run: Run, load_optimizer: Callable[[Mapping[str, Any]], None]) -> None:
    """Take over weights, position and metrics of the folder's checkpoint, and give its arrays to the optimizer.

    Raises: ValueError if the run was made with other settings or images; CheckpointError if it cannot be used.
    """
    assert run.folder is not None
    path = run.folder / "checkpoint.npz"
    arrays, meta = checkpoint.load(path)
    with checkpoint.must_fit(path):
        before = Config.from_dict(meta["config"]).as_dict()  # a setting that did not exist then has its default
    differing = [
        name for name, value in run.config.as_dict().items() if before[name] != value and name not in MAY_CHANGE
    ]
    if differing:
        raise ValueError(f"cannot resume {run.folder}: it was made with another {', '.join(differing)}")
    if meta.get("images") != run.images:
        raise ValueError(f"cannot resume {run.folder}: the training images are not those it began with")
    with checkpoint.must_fit(path):
        run.model.load_state_dict(checkpoint.part(arrays, "model"))
        load_optimizer(arrays)
        run.steps = int(meta["steps"])
    run.history = _read_metrics(run.folder / "metrics.jsonl", run.steps)


def environment_changes(folder: str | Path, config: Config) -> list[str]:
    """List the differences between this environment and the checkpoint's, a line each, "threads was 2, is 4".

    If the list is empty, a run that is resumed with this configuration continues bit for bit.
    """
    path = Path(folder) / "checkpoint.npz"
    _, meta = checkpoint.load(path)
    with checkpoint.must_fit(path):
        before = Config.from_dict(meta.get("config", {}))
        then = checkpoint.FIRST_ENVIRONMENT | meta.get("environment", {})
    now = checkpoint.environment(config.device, config.precision)
    changes = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    if any(method_of(room, before.method) != method_of(room, config.method) for room in ROOMS):
        changes.append(f"method was {before.method}, is {config.method}")
    return changes


def save(run: Run, optimizer_state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run. Nothing is written if an array of it is not finite.

    Raises: NonFiniteError, because a loss can be finite although weights or statistics overflowed.
    """
    assert run.folder is not None
    arrays = {f"model/{name}": array for name, array in run.model.state_dict().items()} | dict(optimizer_state)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(
                f"{name} became NaN or infinite by step {run.steps}, and was not saved; try a lower lr or weight decay"
            )
    meta = {
        "config": run.config.as_dict(),
        "steps": run.steps,
        "images": run.images,
        "environment": checkpoint.environment(run.config.device, run.config.precision),
    }
    checkpoint.save(run.folder / "checkpoint.npz", arrays, meta)


@contextmanager
def opened(run: Run) -> Iterator[Callable[[Metrics], None]]:
    """Open the folder for writing, and yield a function that adds a line to the run's history and metrics.jsonl.

    A resumed run first drops the lines that were written after its checkpoint: it makes those steps again.
    """
    if run.folder is None:
        yield run.history.append
        return
    for left_over in run.folder.glob(".checkpoint.npz.*.part"):  # of a process that was killed while it saved
        left_over.unlink(missing_ok=True)
    (run.folder / "config.json").write_text(json.dumps(run.config.as_dict(), indent=2) + "\n")
    temporary = run.folder / ".metrics.jsonl.part"
    temporary.write_text("".join(json.dumps(line) + "\n" for line in run.history))
    os.replace(temporary, run.folder / "metrics.jsonl")
    with open(run.folder / "metrics.jsonl", "a") as file:

        def write(line: Metrics) -> None:
            run.history.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()  # whoever watches the file sees each step

        yield write


def _read_metrics(path: Path, steps: int) -> list[Metrics]:
    """Read the lines of the steps before `steps`; a line cut off by a crash, or no file at all, is no harm."""
    lines: list[Metrics] = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and line["step"] < steps:
            lines.append(line)
    return lines
