"""The lines that a command shows: progress and notes on stderr, one line for an error."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from tqdm import tqdm

from ..backend import whose_memory
from ..storage import one_line
from ..training.config import Config
from ..training.distributed import RankError
from ..training.run import Interrupted, Metrics, NonFiniteError

LOG_EVERY = 10.0  # seconds between two lines of a log; a terminal shows a bar instead
LONGEST = 500  # length of an error, characters; ours are shorter, what they quote may not be
EXPECTED = (ValueError, NonFiniteError, RuntimeError, ImportError)  # errors whose message is made for users
WIDEST, WIDE, NARROW = 78, 72, 50  # columns of the progress: at most; with the chance level; with a bar
BAR = "step {n_fmt}/{total_fmt} {bar} {desc}, {remaining} left"
NO_BAR = "{desc}"  # the number of the step is part of it: older versions of tqdm would not cut the line


def complain(message: str) -> None:
    """Print an error as one line."""
    print(f"minisimclr: error: {one_line(message, most=LONGEST)}", file=sys.stderr)


def explanation(error: BaseException) -> str:
    """Return what went wrong, and what to do, in a line."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, MemoryError):  # CuPy's OutOfMemoryError is one too
        return f"not enough memory{whose_memory(error)}; use a smaller --batch, --size or --width"
    if isinstance(error, EXPECTED):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; --debug shows where it came from"


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return 128 + getattr(error, "signum", signal.SIGINT)
    if isinstance(error, RankError):
        return error.code
    if isinstance(error, NonFiniteError):
        return 3
    if isinstance(error, OSError):
        return 4
    return 2 if isinstance(error, (*EXPECTED, MemoryError)) else 1


@contextmanager
def silent(yes: bool) -> Iterator[None]:
    """Show nothing inside, if yes; an error is shown outside."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, ExitStack() as stack:
        if yes:
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def note(message: str) -> None:
    """Print a line about something that the user may not expect."""
    print(f"minisimclr: note: {one_line(message, most=LONGEST)}", file=sys.stderr)


def show(*texts: str) -> None:
    """Print results, at once: a disk that is full is noticed here. Control characters in names are not passed on."""
    for text in texts:
        for line in text.split("\n"):
            print("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line))
    sys.stdout.flush()


def largest_memory() -> str:
    """Return, in words, the largest memory of this process so far."""
    try:
        import resource  # not on Windows
    except ImportError:
        return "memory unknown"
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return f"memory up to {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:,.0f} MiB"


def _width() -> int:
    """Return the number of columns that a line on stderr may take, and at least 1."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns  # not stdout's, which may be a file
    except (OSError, ValueError):
        columns = shutil.get_terminal_size().columns
    return max(columns - 1, 1)


@contextmanager
def saying(task: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, show a line that says what is being done, and wipe it afterwards.

    It yields a function that shows a detail behind the task.
    """
    shown = sys.stderr.isatty()

    def say(detail: str) -> None:
        if shown:  # no longer than the terminal is wide: what flows over is not wiped
            text = one_line(f"{task}{': ' if detail else ' …'}{detail}", most=_width())
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    say("")
    try:
        yield say
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def training(config: Config, start: int) -> Iterator[Callable[[Metrics], None]]:
    """Yield a function that shows the progress of training: a bar on one line, else a line of a log now and then.

    The bar is for a terminal, and for a notebook, where it is a widget.
    """
    if type(sys.stderr).__module__.startswith("ipykernel"):
        from tqdm.auto import tqdm as widget  # only here: it takes its time

        progress: Any = _Bar(start, widget)
    else:
        progress = _Bar(start, tqdm, WIDEST) if sys.stderr.isatty() else _Log(start, config.batch)
    try:
        yield progress.show
    finally:
        progress.close()


class _Progress:
    """The numbers of a step, with the last measurement of the monitor, and its advice."""

    measured = ""

    def summary(self, metrics: Metrics, width: int = WIDEST) -> str:
        """Return the numbers of a step; where the line is narrow, without chance and what was measured."""
        if "rank" in metrics:
            knn = f"kNN {100 * metrics['knn']:.0f} %, " if "knn" in metrics else ""
            self.measured = f", {knn}rank {metrics['rank']:.0f}"
        chance, measured = (f" (chance {metrics['chance']:.2f})", self.measured) if width >= WIDE else ("", "")
        chance = "" if measured and width <= WIDEST else chance  # one line has no room for both
        return f"loss {metrics['loss']:.3f}{chance}, top-1 {100 * metrics['top1']:.0f} %{measured}"

    def advise(self, metrics: Metrics) -> None:
        """Print the advice of this step, if there is one."""
        if "advice" in metrics:
            note(f"step {metrics['step'] + 1}: {metrics['advice']}")


class _Bar(_Progress):
    """The progress on one line, which is never wider than the terminal, nor than `widest`."""

    def __init__(self, start: int, kind: Any, widest: int | None = None) -> None:
        self.start, self.kind, self.widest = start, kind, widest
        self.bar: Any = None  # made at the first step, which knows how many there are

    def show(self, metrics: Metrics) -> None:
        width = WIDEST if self.widest is None else min(_width(), self.widest)  # now: a window may be made smaller
        if self.bar is None:
            options = {"smoothing": 0.1, "ncols": self.widest and width, "bar_format": BAR, "desc": "first step"}
            self.bar = self.kind(total=metrics["steps"], initial=self.start, **options)
        if self.widest is not None:
            self.bar.ncols = width
            self.bar.bar_format = BAR if width >= NARROW else NO_BAR
        if "advice" in metrics:
            self.bar.clear()
            self.advise(metrics)
        text = self.summary(metrics, width)
        if self.widest is not None and width < NARROW:
            text = f"step {metrics['step'] + 1}/{metrics['steps']} {text}"[:width]
        self.bar.set_description_str(text, refresh=False)
        self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class _Log(_Progress):
    """The progress in a file: a line every LOG_EVERY seconds, and one at the end."""

    def __init__(self, start: int, batch: int) -> None:
        self.start, self.batch = start, batch
        self.began = self.spoke = time.monotonic()

    def show(self, metrics: Metrics) -> None:
        done, steps, now = metrics["step"] + 1, metrics["steps"], time.monotonic()
        summary = self.summary(metrics, LONGEST)
        self.advise(metrics)
        if done < steps and now - self.spoke <= LOG_EVERY:
            return
        rate = (done - self.start) / (now - self.began)  # steps per second
        left = tqdm.format_interval((steps - done) / rate)
        text = f"step {done}/{steps}  {summary}, {rate * self.batch:.0f} images/s, {left} left"
        print(text, file=sys.stderr, flush=True)
        self.spoke = now

    def close(self) -> None:
        pass
