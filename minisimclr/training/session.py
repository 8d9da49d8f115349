"""A session of training: it records the steps of a run, saves, and stops when asked.

A GPU works through a queue while Python runs ahead and fills it. To see a number, Python must wait until the
queue is empty, and then the GPU waits for Python. So loss, gradient and top-1 stay where they were computed, as
0-d arrays, and those of several steps are fetched together. Nothing is lost: every step gets its line, and a number
that is not finite is noticed before anything is saved. A CPU has no queue: there each step is read as it ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Self

import numpy as np

from ..backend import Array, array_module, is_array, to_numpy
from ..collective import ALONE, Ranks, add_up, share
from ..objectives import chance
from ..processor import blas_at_one_thread
from ..simclr import SimCLR
from .optim import Optimizer
from .run import Interrupted, Metrics, NonFiniteError, Run, opened, save
from .signals import returns_run, stop_signals

READ_EVERY = {"cpu": 1, "cuda": 10}  # steps between readings, by device: a reading empties a GPU's queue
SAVE_EVERY = 60.0  # seconds between checkpoints, at least; more are written after the first epoch and at the end
Monitor = Callable[[SimCLR, list[Metrics]], Metrics]  # model, metrics of the last steps -> what else to record


class Session:
    """The remaining steps of a run, with what is recorded and saved of them.

    with Session(run, optimizer, total_steps) as session:     # whatever ends the loop, the last whole step is saved
        for step in session:                                  # saves in between, and stops when a signal asks for it
            session.record(loss=loss.data, gradient=size)     # raises if one of them is not finite
            optimizer.step(lr)

    steps     a range: the steps that are left
    progress  is called with the metrics of every step
    monitor   is called with the model and the metrics of the steps just read; what it returns is recorded with them
    ranks     the processes that share each batch; they stop after the same step, whichever of them was asked to
    """

    def __init__(
        self,
        run: Run,
        optimizer: Optimizer,
        total_steps: int,
        progress: Callable[[Metrics], None] = lambda metrics: None,
        monitor: Monitor | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.run, self.optimizer, self.progress, self.ranks = run, optimizer, progress, ranks or ALONE
        self.monitor = monitor if self.ranks.rank == 0 else None
        self.agreed: list[int] = []  # the signal that asked to stop, if all ranks know of it
        self.steps = range(run.steps, total_steps)
        self.waiting: list[Metrics] = []  # the metrics of steps that were not read yet, numbers still on the device
        self.finished: list[Metrics] = []  # metrics that were read in this step, to be written when it ends
        self.kept = run.steps  # steps that the last checkpoint holds
        self.buffers: list[tuple[Any, str, Array]] = []  # running statistics after the last whole step
        self.whole = True  # False while the weights are between two steps

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.run.release)
            stack.enter_context(blas_at_one_thread())  # once for all steps; our own threads share out the work
            stack.enter_context(np.errstate(over="ignore", invalid="ignore"))  # `record` looks for itself
            self.stop = stack.enter_context(stop_signals())
            self.write = stack.enter_context(opened(self.run))
            self.close = stack.pop_all().close
        self.saved = time.monotonic()  # when the last checkpoint was written
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        try:
            self._rescue(error)
        finally:
            self.close()
        late = self._interrupted() if self.asked and error is None else None  # the last step had been saved already
        if late and not returns_run(late):
            raise late
        return bool(late) or returns_run(error)

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped after step {self.run.steps} of {self.steps.stop}", self.asked[0])

    @property
    def asked(self) -> list[int]:
        """The signals that asked to stop. Ranks obey one when all know of it, so that none waits for another."""
        return self.stop if self.ranks.size == 1 else self.agreed

    @property
    def share(self) -> slice:
        """The images of each batch that this rank sees."""
        return share(self.run.config.batch, self.ranks)

    def add_up(self, gradients: list[Array]) -> None:
        """Add up the gradients over the ranks, in place."""
        add_up(self.ranks, gradients)

    def _rescue(self, error: BaseException | None) -> None:
        """Save the last whole step, whatever ended the loop after it, if its numbers are finite.

        A step that was broken off has moved the running statistics already, and not the weights yet; so the
        statistics are put back. One that was broken off while the optimizer wrote the weights cannot be saved.
        """
        late = isinstance(error, NonFiniteError) and len(self.waiting) > 1  # which of these steps spoiled the weights?
        if self.run.folder is None or not self.whole or late or self.run.steps <= self.kept:
            return
        for module, name, array in self.buffers:
            setattr(module, name, array)
        self.waiting = [line for line in self.waiting if line["step"] < self.run.steps]
        try:
            lines = self.finished + (self._read() if self.waiting else [])
            with suppress(OSError):  # the record is for reading: the checkpoint is what must not be lost
                for line in lines:
                    self.write(line)
            save(self.run, self.optimizer.state_dict())
        except (NonFiniteError, OSError):
            if error is None:
                raise
            # what ended the loop is what must be told; the last checkpoint is as it was

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step that is left.

        Raises: Interrupted after a step in which a signal came, when all is saved.
        """
        config, total = self.run.config, self.steps.stop
        level = chance(config.objective, config.batch, config.margin)
        self.since = time.perf_counter()  # when the metrics were last read
        for step in self.steps:
            epoch = step * config.epochs // total
            self.waiting.append({"step": step, "steps": total, "epoch": epoch, "chance": level})
            self._settle()
            yield step
            self.run.steps = step + 1
            self._settle()
            if self.finished:  # only a state whose numbers were read and found finite is saved
                self._keep()

    def record(self, **numbers: Any) -> None:
        """Note numbers of this step: Python's, or 0-d arrays, which stay on their device until they are read.

        They are read after every READ_EVERY steps, at the end, and when a signal asks to stop.

        Raises: NonFiniteError if a number that is read is not finite. Called before the optimizer's step, this
                leaves the weights as they were.
        """
        self.waiting[-1] |= numbers | self.run.news()
        if self.ranks.size > 1:
            signum = int(self.ranks.all_gather(np.array(self.stop[0] if self.stop else 0)).max())
            self.agreed = [signum] if signum else []
        last = self.waiting[-1]["step"] == self.steps[-1]
        if last or self.asked or len(self.waiting) >= READ_EVERY[self.run.config.device]:
            self.finished = self._read()
        self.whole = False  # from here on the optimizer writes the weights

    def _settle(self) -> None:
        """Note that a step is whole. Running statistics are replaced and never overwritten: to keep them is enough."""
        if self.run.folder is not None:
            modules = [module for _, module in self.run.model.modules()]
            self.buffers = [(m, name, value) for m in modules for name, value in vars(m).items() if is_array(value)]
        self.whole = True

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
            noticed = f"noticed {late} step{'s' * (late > 1)} later, and not saved"
            then = noticed if late else "the weights were left as they were"
            advice = "try a lower lr or a higher temperature"
            raise NonFiniteError(f"the {name} became {value} at step {step}; {then}; {advice}")

    def _keep(self) -> None:
        """Write the metrics that were read, and a checkpoint if it is time; stop if a signal asked for it."""
        if self.monitor is not None:
            self.finished[-1] |= self.monitor(self.run.model, self.finished)
            self.since = time.perf_counter()  # the speed is that of training
        lines = list(self.finished)
        while self.finished:  # one that was written is not written again, whatever becomes of the others
            self.write(self.finished[0])
            del self.finished[0]
        for line in lines:
            self.progress(line)
        done = self.run.steps
        first = self.kept == 0 and done >= self.steps.stop // self.run.config.epochs  # a run can be looked at early
        must = bool(self.asked) or first  # what is left at the end is saved by `_rescue`
        if self.run.folder is not None and (must or time.monotonic() - self.saved > SAVE_EVERY):
            save(self.run, self.optimizer.state_dict())
            self.saved, self.kept = time.monotonic(), done
        if self.asked:
            raise self._interrupted()
