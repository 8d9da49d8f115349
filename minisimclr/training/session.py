"""A session of training: it records the steps of a run, saves, and stops when asked.

A GPU works through a queue while Python runs ahead and fills it. To see a number, Python must wait until the
queue is empty, and then the GPU waits for Python. So loss, gradient and top-1 stay where they were computed, as
0-d arrays, and those of several steps are fetched together. Nothing is lost: every step gets its line, and a number
that is not finite is noticed before anything is saved. A CPU has no queue: there each step is read as it ends.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..backend import Array, array_module, to_numpy
from ..processor import blas_at_one_thread
from . import precision
from .config import Config
from .optim import Optimizer
from .run import Interrupted, Metrics, NonFiniteError, Run, fingerprint, make_folder, opened, restore, save

READ_EVERY = {"cpu": 1, "cuda": 10}  # steps between readings, by device: a reading empties a GPU's queue
SAVE_EVERY = 60.0  # seconds between checkpoints, at least: a crash loses a minute; one more is written at the end


def begin(
    config: Config, images: np.ndarray[Any, Any], folder: str | Path | None, resume: bool
) -> tuple[Run, Optimizer]:
    """Build the model and its optimizer, take the folder, and go on from its checkpoint if the run is resumed.

    Raises: RuntimeError for a precision that the device does not have, ValueError for a folder that does not fit,
            CheckpointError for a checkpoint that cannot be used; nothing is written by then.
    """
    model, optimizer = precision.build(config)
    run = Run(config, model, folder=make_folder(folder, resume), images=fingerprint(images))
    if resume:
        restore(run, optimizer.load_state_dict)
    return run, optimizer


class Session:
    """The remaining steps of a run, with what is recorded and saved of them.

    with Session(run, optimizer, total_steps) as session:
        for step in session:                                  # saves in between, and stops at SIGINT or SIGTERM
            ...
            session.record(loss=loss.data, gradient=size)     # raises if one of them is not finite
            optimizer.step(lr)

    steps     a range: the steps that are left
    progress  is called with the metrics of every step
    """

    def __init__(
        self,
        run: Run,
        optimizer: Optimizer,
        total_steps: int,
        progress: Callable[[Metrics], None] = lambda metrics: None,
    ) -> None:
        self.run, self.optimizer, self.progress = run, optimizer, progress
        self.steps = range(run.steps, total_steps)
        self.waiting: list[Metrics] = []  # the metrics of steps that were not read yet, numbers still on the device
        self.finished: list[Metrics] = []  # metrics that were read in this step, to be written when it ends

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(blas_at_one_thread())  # once for all steps; our own threads share out the work
            stack.enter_context(np.errstate(over="ignore", invalid="ignore"))  # `record` looks for itself
            self.stop = stack.enter_context(stop_signals())
            self.write = stack.enter_context(opened(self.run))
            self.close = stack.pop_all().close
        self.saved = time.monotonic()  # when the last checkpoint was written
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step that is left.

        Raises: Interrupted after a step in which a signal came, when all is saved.
        """
        config, total = self.run.config, self.steps.stop
        self.since = time.perf_counter()  # when the metrics were last read
        for step in self.steps:
            epoch = step * config.epochs // total
            self.waiting.append(
                {"step": step, "steps": total, "epoch": epoch, "chance": math.log(2 * config.batch - 1)}
            )
            yield step
            self.run.steps = step + 1
            if self.finished:  # only a state whose numbers were read and found finite is saved
                self._keep()

    def record(self, **numbers: Any) -> None:
        """Note numbers of this step: Python's, or 0-d arrays, which stay on their device until they are read.

        They are read after every READ_EVERY steps, at the end, and when a signal asks to stop.

        Raises: NonFiniteError if a number that is read is not finite. Called before the optimizer's step, this
                leaves the weights as they were.
        """
        self.waiting[-1] |= numbers
        last = self.waiting[-1]["step"] == self.steps[-1]
        if last or self.stop or len(self.waiting) >= READ_EVERY[self.run.config.device]:
            self.finished = self._read()

    def _read(self) -> list[Metrics]:
        """Fetch the numbers of the waiting steps in one transfer, and return their metrics, each with its speed."""
        names = [name for name, value in self.waiting[0].items() if hasattr(value, "dtype")]
        values: list[Array] = [line[name] for line in self.waiting for name in names]
        xp = array_module(*values)
        table = to_numpy(xp.stack([xp.asarray(value, dtype=xp.float64) for value in values]))  # (steps·names,)
        for line, row in zip(self.waiting, table.reshape(len(self.waiting), -1).tolist()):
            for name, value in zip(names, row):
                self._require_finite(name, value, line["step"])
                line[name] = value
        now = time.perf_counter()
        rate = self.run.config.batch * len(self.waiting) / (now - self.since)
        lines, self.waiting, self.since = self.waiting, [], now
        return [line | {"images_per_second": rate} for line in lines]

    def _require_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            late = self.waiting[-1]["step"] - step
            consequence = (
                f"noticed {late} step{'s' * (late > 1)} later, and not saved"
                if late
                else "the weights were left as they were"
            )
            raise NonFiniteError(
                f"the {name} became {value} at step {step}; {consequence}; try a lower lr or a higher temperature"
            )

    def _keep(self) -> None:
        """Write the metrics that were read, and a checkpoint if it is time; stop if a signal asked for it."""
        lines, self.finished = self.finished, []
        for line in lines:
            self.write(line)
            self.progress(line)
        done, total = self.run.steps, self.steps.stop
        must = bool(self.stop) or done == total
        if self.run.folder is not None and (must or time.monotonic() - self.saved > SAVE_EVERY):
            save(self.run, self.optimizer.state_dict())
            self.saved = time.monotonic()
        if self.stop:
            raise Interrupted(f"stopped after step {done} of {total}", self.stop[0])


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield received
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def remember(signum: int, frame: Any) -> None:
        received.append(signum)
        put_back()

    for signum in before:
        signal.signal(signum, remember)
    try:
        yield received
    finally:
        put_back()
