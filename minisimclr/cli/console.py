"""What the user sees while a command works: lines and bars on stderr, and one line for an error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..training.config import Config
from ..training.run import Metrics


def complain(message: str) -> None:
    print(f"minisimclr: error: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def saying(what: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, a line that says what is being done, and is wiped afterwards."""
    shown = sys.stderr.isatty()

    def say(detail: str) -> None:
        if shown:
            print(f"\r\x1b[K{what}{': ' if detail else ' …'}{detail}", end="", file=sys.stderr, flush=True)

    say("")
    try:
        yield say
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def training(config: Config, start: int) -> Iterator[Callable[[Metrics], None]]:
    """The progress line: a bar on a terminal; in a log, a plain line now and then."""
    bar: Any = None
    spoken = began = time.monotonic()

    def progress(metrics: Metrics) -> None:
        nonlocal bar, spoken
        text = f"loss {metrics['loss']:.3f} (chance {metrics['chance']:.2f}), top-1 {100 * metrics['top1']:.0f} %"
        if sys.stderr.isatty():
            if bar is None:
                bar = tqdm(
                    total=metrics["steps"],
                    initial=start,
                    unit="step",
                    dynamic_ncols=True,
                    smoothing=0.1,
                    bar_format="step {n_fmt}/{total_fmt} {bar:20} {desc}, {remaining} left",
                )
            bar.set_description_str(f"{text}, {metrics['images_per_second']:.0f} images/s", refresh=False)
            bar.update()
        elif time.monotonic() - spoken > 10 or metrics["step"] + 1 == metrics["steps"]:
            spoken = time.monotonic()
            done, steps = metrics["step"] + 1, metrics["steps"]
            rate = (done - start) / (spoken - began)
            left = tqdm.format_interval((steps - done) / rate)
            print(
                f"step {done}/{steps}  {text}, {rate * config.batch:.0f} images/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()
