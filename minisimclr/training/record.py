"""The record of a run, metrics.jsonl: one JSON object per step.

The record is for reading; nothing is computed from it. So a line that is damaged, lost or doubled is told, and stops
nothing, and what cannot be read is left in the file as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..storage import open_regular, shown, write

Metrics = dict[str, Any]  # one line of metrics.jsonl
LONGEST = 1 << 16  # length of a line, bytes; ours have 250
LONGEST_RUN = 1 << 27  # number of steps of which each is looked for, so that memory stays small
LARGEST = 1 << 26  # size of the file, bytes, with this many more for each step:
LARGEST_LINE = 1 << 12


class Line(NamedTuple):
    """A line of the file: its bytes, the metrics in it (None: damaged), and its step (None: it cannot be told)."""

    raw: bytes
    metrics: Metrics | None
    step: int | None


def _lines(path: Path, steps: int) -> Iterator[Line]:
    """Yield the lines of the file. Raises: OSError if it is missing, no regular file, or too large for the steps."""
    with os.fdopen(open_regular(path, LARGEST + LARGEST_LINE * steps), "rb") as file:
        while raw := file.readline(LONGEST):
            yield Line(raw, *_parsed(raw))


def _parsed(raw: bytes) -> tuple[Metrics | None, int | None]:
    try:
        metrics = json.loads(raw.decode())
        if isinstance(metrics, dict) and type(metrics.get("step")) is int:
            return metrics, metrics["step"]
    except (ValueError, RecursionError):
        pass
    found = re.search(rb'"step": (\d{1,15}),', raw)  # perhaps the damage is elsewhere
    return None, int(found[1]) if found else None


def read(path: Path, steps: int) -> list[Metrics]:
    """Return the metrics of the steps before `steps`: of whole lines, in the order of the file; none without a file."""
    try:
        return [
            line.metrics
            for line in _lines(path, steps)
            if line.metrics is not None and 0 <= line.metrics["step"] < steps
        ]
    except OSError:
        return []


def cut(path: Path, steps: int) -> None:
    """Drop the lines of the steps from `steps` on, which come again, and a last one that was cut off by a crash.

    All others stay as they are, byte for byte.

    Raises: OSError if the file is no regular file, or cannot be written.
    """
    try:
        if all(_stays(line, steps) and line.raw.endswith(b"\n") for line in _lines(path, steps)):
            return
    except FileNotFoundError:
        write(path, b"")
        return
    except OSError as error:
        raise OSError(f"{shown(path)} cannot be read: {error}; move it away to go on") from None

    def content(file: IO[bytes]) -> None:
        for line in _lines(path, steps):
            if _stays(line, steps):
                # a long line comes in pieces; only the last of the file may want its end
                file.write(line.raw if len(line.raw) == LONGEST or line.raw.endswith(b"\n") else line.raw + b"\n")

    write(path, content)


def _stays(line: Line, steps: int) -> bool:
    if line.step is None:
        return line.raw.endswith(b"\n") or len(line.raw) == LONGEST
    return line.step < steps


def remarks(path: Path, steps: int) -> list[str]:
    """Return what is wrong with the record of `steps` steps, a line each: nothing, if all is well."""
    steps = min(steps, LONGEST_RUN)
    damaged = unknown = doubled = unordered = 0
    seen, last = bytearray(steps // 8 + 1), -1  # a bit for each step
    try:
        for line in _lines(path, steps):
            if line.step is None:
                unknown += 1
            elif 0 <= line.step < steps:
                byte, bit = divmod(line.step, 8)
                doubled += seen[byte] >> bit & 1
                seen[byte] |= 1 << bit
                damaged += line.metrics is None
                unordered += line.step < last
                last = line.step
    except FileNotFoundError:
        return [f"there is no {path.name}: the metrics of {_counted(steps, 'step')} are lost"] if steps else []
    except OSError as error:
        return [f"{path.name} cannot be read: {error.strerror or error}"]
    lost = max(0, steps - sum(byte.bit_count() for byte in seen) - unknown)
    found = {"damaged": damaged + unknown, "lost": lost, "doubled": doubled, "out of order": unordered}
    said = [
        f"{_counted(count, 'line')} {'is' if count == 1 else 'are'} {what}" for what, count in found.items() if count
    ]
    return [f"{path.name}: {', '.join(said)}"] if said else []


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
