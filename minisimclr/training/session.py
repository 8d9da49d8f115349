"""The numbers of a training step, and when they are read.

A GPU works through a queue while Python runs ahead and fills it. To see a number Python must wait until the
queue is empty, and then the GPU waits for Python. So loss, gradient and top-1 stay where they were computed, as
0-d arrays, and those of several steps are fetched together. Nothing is lost: every step gets its line, and what
is not finite is noticed before anything is saved. A CPU has no queue: there each step is read as it ends.
"""

from __future__ import annotations

import math
import time
from typing import Any

from ..backend import Array, array_module, to_numpy
from .run import Metrics, NonFiniteError

READ_EVERY = {"cpu": 1, "cuda": 10}  # steps, by device


class Meter:
    """Collects the numbers of up to `every` steps and reads them in one transfer."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.lines: list[Metrics] = []  # of the steps not read yet
        self.since = math.nan  # of the last reading, at first the beginning of a step

    def begin(self, **known: Any) -> None:
        """A new step, and what is known of it beforehand, "step" among it."""
        if math.isnan(self.since):
            self.since = time.perf_counter()
        self.lines.append(known)

    def note(self, **numbers: Array) -> None:
        """Numbers of this step, 0-d arrays. If each step is read anyway, what is not finite is refused at once."""
        self.lines[-1] |= numbers
        if self.every == 1:
            for name, value in numbers.items():
                self._require_finite(name, float(value), self.lines[-1]["step"])

    @property
    def full(self) -> bool:
        return len(self.lines) >= self.every

    def read(self, images: int) -> list[Metrics]:
        """The lines of the steps since the last reading, `images` in each; NonFiniteError for a broken one."""
        names = [name for name, value in self.lines[0].items() if hasattr(value, "dtype")]
        values = [line[name] for line in self.lines for name in names]
        xp = array_module(*values)
        table = to_numpy(xp.stack([xp.asarray(value, dtype=xp.float64) for value in values]))
        for line, row in zip(self.lines, table.reshape(len(self.lines), -1).tolist()):
            for name, value in zip(names, row):
                self._require_finite(name, value, line["step"])
                line[name] = value
        now = time.perf_counter()
        rate = images * len(self.lines) / (now - self.since)
        lines, self.lines, self.since = self.lines, [], now
        return [line | {"images_per_second": rate} for line in lines]

    def _require_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            late = self.lines[-1]["step"] - step
            consequence = (
                f"noticed {late} step{'s' * (late > 1)} later, and not saved"
                if late
                else "the weights were left as they were"
            )
            raise NonFiniteError(
                f"the {name} became {value} at step {step}; {consequence}; try a lower lr or a higher temperature"
            )
