"""A run and its folder: what is kept while training, how it is stopped, and how it goes on.

config.json      the settings
metrics.jsonl    one JSON object per step: "loss", "top1", "gradient" (Σ max|g| over the parameters; 0: a step that
                 float16 left out), "lr" …
checkpoint.npz   weights, momentum, position (checkpoint.py)
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import device_of, to_device
from ..simclr import SimCLR
from . import checkpoint
from .config import Config, build_model
from .optim import Optimizer
from .precision import LossScale

SAVE_EVERY = 60.0  # seconds between checkpoints, at most; and one at the end
MAY_CHANGE = ("device", "precision")  # settings that a resumed run may change: where and how exactly, not what

Metrics = dict[str, Any]  # one line of metrics.jsonl


class Interrupted(Exception):
    """A signal asked the run to stop; it finished its step and saved. `signum` says which."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class NonFiniteError(ArithmeticError):
    """The loss, a gradient or what would be saved became NaN or infinite; the last checkpoint is as it was."""


@dataclass
class Run:
    """A model, how it was made, how it went and where it is kept (None: nowhere)."""

    config: Config
    model: SimCLR
    steps: int = 0  # done so far
    history: list[Metrics] = field(default_factory=list)
    folder: Path | None = None
    images: str = ""  # fingerprint of the training images


# ── The run's folder ──────────────────────────────────────────────────────────────────────────────


def load_run(folder: str | Path, device: str = "cpu") -> Run:
    """A run as its folder holds it: configuration, trained model, steps done, metrics.

    The model is put on `device` and computes in float32, wherever and in whatever it was trained.
    """
    folder = Path(folder)
    arrays, meta = checkpoint.load(folder / "checkpoint.npz")
    try:
        config = Config.from_dict(meta["config"])
        run = Run(config, build_model(config.to_evaluate(device)), steps=int(meta["steps"]), folder=folder)
        run.model.load_state_dict(checkpoint.part(arrays, "model"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"checkpoint {folder / 'checkpoint.npz'} does not fit: {error}") from None
    run.model.to(device)
    run.history = _read_metrics(folder / "metrics.jsonl", run.steps)
    return run


def fingerprint(images: np.ndarray[Any, Any]) -> str:
    """Number and checksum of the images: a run is resumed on what it began with, or not at all."""
    return f"{len(images)} images, crc32 {zlib.crc32(np.ascontiguousarray(images).data):08x}"


def claim(folder: str | Path | None, resume: bool) -> Path | None:
    """The folder, made if need be; one that holds a run is only touched to resume it."""
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run")
        return None
    folder = Path(folder)
    if not resume and (folder / "checkpoint.npz").exists():
        raise ValueError(f"{folder} already holds a run; go on with --resume, or choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def restore(run: Run, optimizer: Optimizer, scale: LossScale) -> None:
    """Take over weights, momentum, loss scale, position and metrics of the folder's checkpoint."""
    assert run.folder is not None
    path = run.folder / "checkpoint.npz"
    arrays, meta = checkpoint.load(path)
    before = Config().as_dict() | meta.get("config", {})  # a setting that did not exist then had its default
    differing = [
        name for name, value in run.config.as_dict().items() if before.get(name) != value and name not in MAY_CHANGE
    ]
    if differing:
        raise ValueError(f"cannot resume {run.folder}: it was made with another {', '.join(differing)}")
    if meta.get("images") != run.images:
        raise ValueError(f"cannot resume {run.folder}: the training images are not those it began with")
    try:
        run.model.load_state_dict(checkpoint.part(arrays, "model"))
        for k, velocity in enumerate(optimizer.velocity):
            velocity[...] = to_device(arrays[f"momentum/{k}"], device_of(velocity))
        scale.load(checkpoint.part(arrays, "scale"))
        run.steps = int(meta["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"checkpoint {path} does not fit: {error}") from None
    run.history = _read_metrics(run.folder / "metrics.jsonl", run.steps)


def environment_changes(folder: str | Path, device: str = "cpu", precision: str = "float32") -> list[str]:
    """In what the present environment differs from the checkpoint's: if in nothing, resuming is exact bit for bit."""
    _, meta = checkpoint.load(Path(folder) / "checkpoint.npz")
    then = {"device": "cpu", "precision": "float32"} | meta.get("environment", {})
    now = checkpoint.environment(device, precision)
    return [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]


@contextmanager
def keeper(run: Run, optimizer: Optimizer, scale: LossScale) -> Iterator[Callable[..., None]]:
    """save(now=…): write a checkpoint if it must be now or the last one is SAVE_EVERY seconds old."""
    last = time.monotonic()

    def save(*, now: bool) -> None:
        nonlocal last
        if run.folder is None or not (now or time.monotonic() - last > SAVE_EVERY):
            return
        arrays = {f"model/{name}": array for name, array in run.model.state_dict().items()}
        arrays |= {f"momentum/{k}": to_device(v, "cpu") for k, v in enumerate(optimizer.velocity)}
        arrays |= {f"scale/{name}": array for name, array in scale.state().items()}
        for name, array in arrays.items():  # a loss can be finite although weights or statistics overflowed
            if not np.isfinite(array).all():
                raise NonFiniteError(
                    f"{name} became NaN or infinite by step {run.steps}, and was not saved; "
                    "try a lower lr or weight decay"
                )
        checkpoint.save(
            run.folder / "checkpoint.npz",
            arrays,
            {
                "config": run.config.as_dict(),
                "steps": run.steps,
                "images": run.images,
                "environment": checkpoint.environment(run.config.device, run.config.precision),
            },
        )
        last = time.monotonic()

    if run.folder is not None:
        for left_over in run.folder.glob(".checkpoint.npz.*.part"):  # of a process that was killed while it saved
            left_over.unlink(missing_ok=True)
        (run.folder / "config.json").write_text(json.dumps(run.config.as_dict(), indent=2) + "\n")
    yield save


@contextmanager
def metrics_file(run: Run) -> Iterator[Callable[[Metrics], None]]:
    """write(metrics): to the run's history and, one JSON object a line, to metrics.jsonl.

    A resumed run first drops the lines that were written after its checkpoint: those steps come again.
    """
    if run.folder is not None:
        temporary = run.folder / ".metrics.jsonl.part"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in run.history))
        os.replace(temporary, run.folder / "metrics.jsonl")
    with nullcontext() if run.folder is None else open(run.folder / "metrics.jsonl", "a") as file:

        def write(metrics: Metrics) -> None:
            run.history.append(metrics)
            if file is not None:
                file.write(json.dumps(metrics) + "\n")
                file.flush()

        yield write


def _read_metrics(path: Path, steps: int) -> list[Metrics]:
    """The lines of the steps before `steps`; a line cut off by a crash, or no file at all, is no harm."""
    lines: list[Metrics] = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and line["step"] < steps:
            lines.append(line)
    return lines


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of dying of it; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield received
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: Any) -> None:
        received.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, remember)
    try:
        yield received
    finally:
        restore()
