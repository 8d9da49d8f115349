"""A run and its folder: what is kept of it, and how it is found again.

config.json      the settings, and "run", by which the folder is known as ours
metrics.jsonl    one JSON object per step: "loss", "top1", "gradient" (Σ max|g| over the parameters; 0: a step that
                 float16 left out), "lr" … (record.py)
checkpoint.npz   weights, the optimizer's arrays, position (checkpoint.py)

This file keeps a run and does not know how it is trained: the optimizer's part is a dictionary of arrays.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..nn import DEFAULT_FORMS, method_of
from ..simclr import SimCLR
from ..storage import Lock, open_to_append, remove_leftovers, shown, write
from ..values import path_name
from . import checkpoint, folders, record, stored
from .config import Config, build_model
from .photos import fingerprint as fingerprint
from .record import Metrics as Metrics
from .trained import Trained

# Settings that may differ when a run is resumed: they change where, how exactly and by which form it is computed,
# not what is computed. The images are known by their checksum, wherever they are kept. A run can be made longer.
MAY_CHANGE = ("data", "reading", "cache_side", "epochs", "device", "precision", "method")
RECENT = 10_000  # number of steps whose metrics a run without a folder remembers: 12 MB


class Interrupted(Exception):
    """A signal asked the run to stop; it finished its step and saved. `signum` is the number of the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class NonFiniteError(ArithmeticError):
    """The loss, a gradient or an array to be saved became NaN or infinite; the last checkpoint is as it was."""


class Run(Trained):
    """A model, how it was made, how its training went, and where it is kept.

    config   the settings                             history  one dictionary of metrics per step
    model    the network, as it is now                folder   where it is kept; None: nowhere
    steps    how many steps are done                  images   fingerprint of the training images
    extended [(step, epochs before), …]: from such a step on, the schedule is that of more epochs
    ranks    number of processes that train it

    The history is read from the folder when it is asked for. Without a folder it is that of the last 10,000 steps.

    >>> import minisimclr as ms
    >>> from minisimclr.training.config import build_model
    >>> run = ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
    >>> run.steps, run.folder
    (0, None)
    """

    def __init__(
        self,
        config: Config,
        model: SimCLR,
        steps: int = 0,
        history: Iterable[Metrics] = (),
        folder: Path | None = None,
        images: str = "",
        ranks: int = 1,
        news: Callable[[], Metrics] = dict,
    ) -> None:
        self.config, self.model, self.steps, self.folder, self.images = config, model, steps, folder, images
        self.ranks = ranks
        self.recent: deque[Metrics] = deque(history, maxlen=RECENT)
        self.extended: list[tuple[int, int]] = []
        self.own: tuple[str, ...] = ()  # what the caller brought, and a configuration cannot make: "model", "views"
        self.lock: Lock | None = None  # of the folder, while the run is trained
        self.news = news  # what the images have to tell since it was called last

    @property
    def history(self) -> list[Metrics]:
        """The metrics of the steps that are done, one dictionary each."""
        return list(self.recent) if self.folder is None else record.read(self.folder / "metrics.jsonl", self.steps)

    def release(self) -> None:
        """Give back the folder's lock."""
        if self.lock is not None:
            self.lock.release()


def load_run(folder: str | Path, device: str = "cpu", *, model: SimCLR | None = None) -> Run:
    """Load a run from its folder: configuration, trained model, steps done, metrics.

    model  takes over the weights; needed for a run that was trained with a model of one's own

    The model is put on `device` and computes in float32, whatever it was trained on and in.

    Raises: CheckpointError, in one line, if there is no checkpoint or it cannot be used; RuntimeError for a device
            that is not there.

    >>> import numpy as np, tempfile, minisimclr as ms
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = ms.pretrain(ms.Config(size=16, batch=4, epochs=1), images, folder=folder)
    ...     run = ms.load_run(folder)
    ...     print(run.steps, len(run.history))
    2 2
    """
    folder = Path(path_name("the folder of the run", folder))
    found = stored.read(folder / "checkpoint.npz", model)
    if model is None:
        model = build_model(found.config.to_evaluate(device))
    run = Run(found.config, model, found.steps, (), folder, found.images)
    run.own = found.own
    run.extended = found.extended
    run.model.load_state_dict(checkpoint.part(found.arrays, "model"))
    run.model.to(device)
    return run


def take_folder(folder: str | Path | None, resume: bool) -> tuple[Path | None, Lock | None]:
    """Make the folder of a run if need be, and lock it. One that holds a run is only touched to resume it.

    Raises: ValueError if another process trains in it, if it holds a run that is not to be resumed or files that are
            not a run's, or if there is none to resume.
    """
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run")
        return None, None
    folder = Path(path_name("the folder of the run", folder))
    if not resume:
        folders.require_free(folder)
    elif not folder.is_dir():
        raise checkpoint.CheckpointError(f"there is no checkpoint {shown(folder / 'checkpoint.npz')}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(folder)
    except BlockingIOError:
        raise ValueError(f"{shown(folder)} is in use: another process trains there; wait for it, or stop it") from None
    try:
        if resume:
            folders.require_resumable(folder)
        else:
            folders.require_free(folder)  # once more: now nobody else can begin a run in it
    except BaseException:
        lock.release()
        raise
    return folder, lock


def restore(run: Run, load_optimizer: Callable[[Mapping[str, Any]], None]) -> None:
    """Take over weights and position of the folder's checkpoint, and give its arrays to the optimizer.

    Raises: ValueError if the run was made with other settings or images; CheckpointError if it cannot be used.
    """
    assert run.folder is not None
    path = run.folder / "checkpoint.npz"
    found = stored.read(path, run.model if "model" in run.own else None)
    if found.own != run.own:
        brought = " and ".join(found.own) or "nothing"
        raise ValueError(f"cannot resume {run.folder}: its caller brought {brought} of his own, and must again")
    before = found.config.as_dict()  # a setting that did not exist then has its default
    differing = [
        name for name, value in run.config.as_dict().items() if before[name] != value and name not in MAY_CHANGE
    ]
    if differing:
        raise ValueError(f"cannot resume {run.folder}: it was made with another {', '.join(differing)}")
    if run.config.epochs < found.config.epochs:
        raise ValueError(f"cannot resume {run.folder}: its {found.config.epochs} epochs can only become more")
    if found.images != run.images:
        begun, now = found.config.cache_side, run.config.cache_side
        how = "" if begun == now else f", or were kept with cache_side {begun}, not {now}: set it to {begun}"
        raise ValueError(f"cannot resume {run.folder}: the training images are not those it began with{how}")
    with checkpoint.explained(path):
        run.model.load_state_dict(checkpoint.part(found.arrays, "model"))
        load_optimizer(found.arrays)
    run.steps, run.extended = found.steps, found.extended
    if run.config.epochs > found.config.epochs:
        run.extended = [*found.extended, (found.steps, found.config.epochs)]


def environment_changes(folder: str | Path, config: Config, ranks: int = 1) -> list[str]:
    """List the differences between this environment and the checkpoint's, a line each, "threads was 2, is 4".

    If the list is empty, a run that is resumed with this configuration continues bit for bit.
    """
    found = stored.read_text(Path(folder) / "checkpoint.npz")
    before, then = found.config, found.environment
    now = checkpoint.environment(config.device, config.precision, ranks)
    changes = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    if any(method_of(kind, before.method) != method_of(kind, config.method) for kind in DEFAULT_FORMS):
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
        **({"extended": run.extended} if run.extended else {}),
        **({"own": list(run.own)} if run.own else {}),
        "environment": checkpoint.environment(run.config.device, run.config.precision, run.ranks),
    }
    checkpoint.save(run.folder / "checkpoint.npz", arrays, meta)


@contextmanager
def opened(run: Run) -> Iterator[Callable[[Metrics], None]]:
    """Open the folder for writing, and yield a function that adds a line to the run's record.

    A resumed run first drops the lines that were written after its checkpoint: it makes those steps again.
    """
    if run.folder is None:
        yield run.recent.append
        return
    remove_leftovers(run.folder, folders.NAMES)  # of a process that was killed while it wrote
    settings = json.dumps({**run.config.as_dict(), "run": folders.run_id(run.config)}, indent=2) + "\n"
    write(run.folder / "config.json", settings)
    record.cut(run.folder / "metrics.jsonl", run.steps)
    with open_to_append(run.folder / "metrics.jsonl") as file:

        def write_line(line: Metrics) -> None:
            left = (json.dumps(line) + "\n").encode()
            while left:  # at once, because whoever watches the file wants to see each step; a full disk takes a part
                left = left[file.write(left) :]

        yield write_line
