"""`minisimclr gradcheck`: each operation against its reference and three checks.

To show how sharp a check is, each runs a second time on the same function with a gradient that is a
thousandth too large, and must refuse it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..backend import is_array, to_numpy
from ..engine.autograd import Tensor, no_grad
from .gradcheck import Comparison, compare_direction, compare_elements, compare_path
from .table import TABLE, Entry

ALLOWED = (1e-6, 1e-6, 1e-9)  # largest relative errors in the checks of elements, direction and path
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Row:
    """The largest relative errors over an operation's samples, and whether they are allowed."""

    name: str
    samples: int
    value: float
    elements: float
    direction: float
    path: float
    allowed: float  # the largest error of the value that passes
    agree: bool  # value and gradient are right
    refused: bool  # a gradient that is 0.1 % off was refused by each check
    domain: str = "all numbers"
    kinks: str = "none"

    @property
    def passed(self) -> bool:
        return self.agree and self.refused


def comparisons(entry: Entry, f: Function, inputs: tuple[Any, ...]) -> tuple[Comparison, Comparison, Comparison]:
    """The three checks of f at one sample."""
    rng = np.random.default_rng(1)
    starts = [to_numpy(x) if is_array(x) else x for x in inputs]
    ends = tuple(x + entry.reach * _size(x) * rng.uniform(-1, 1, np.shape(x)) for x in starts)
    return compare_elements(f, *inputs), compare_direction(f, *inputs), compare_path(f, inputs, ends)


def _size(x: Any) -> float:
    """Return the size of an input, to which the length of a path is proportional; at most 1, as kinks stay in place."""
    return min(1.0, float(np.abs(x).max(initial=0)))


def a_thousandth_off(f: Function) -> Function:
    """The same value with a gradient 0.1 % too large."""

    def g(*inputs: Tensor) -> Tensor:
        y = f(*inputs)
        return y * 1.001 - y.detach() * 0.001

    return g


def check_entry(entry: Entry) -> Row:
    value = elements = direction = path = 0.0
    agree = refused = True
    for inputs, settings in entry.samples:
        f = entry.function(settings)
        with no_grad():
            computed, expected = f(*inputs).data, np.asarray(entry.expected(inputs, settings))
        value = _larger(value, _distance(computed, expected))
        right, wrong = comparisons(entry, f, inputs), comparisons(entry, a_thousandth_off(f), inputs)
        elements, direction, path = (_larger(a, b.reported_error) for a, b in zip((elements, direction, path), right))
        agree &= all(c.error <= limit for c, limit in zip(right, ALLOWED))
        if any(c.analytic != 0 for c in right):  # a thousandth of a gradient of 0 is 0
            refused &= all(c.error > limit for c, limit in zip(wrong, ALLOWED))
    agree &= value <= entry.tolerance
    errors = (value, elements, direction, path)
    return Row(
        entry.name, len(entry.samples), *errors, entry.tolerance, agree, refused, domain=entry.domain, kinks=entry.kinks
    )


def _distance(computed: Any, expected: Any) -> float:
    if computed.shape != expected.shape:
        return float("nan")
    return float(np.abs(computed - expected).max(initial=0) / max(1e-300, np.abs(expected).max(initial=0)))


def _larger(a: float, b: float) -> float:
    """The larger of two numbers, or NaN if either is NaN, so that no NaN can hide."""
    return float(np.maximum(a, b))


def _together(a: Row, b: Row) -> Row:
    """Two entries of one operation as one row."""
    return Row(
        a.name,
        a.samples + b.samples,
        _larger(a.value, b.value),
        _larger(a.elements, b.elements),
        _larger(a.direction, b.direction),
        _larger(a.path, b.path),
        max(a.allowed, b.allowed),
        a.agree and b.agree,
        a.refused and b.refused,
        domain=a.domain if a.domain != "all numbers" else b.domain,
        kinks=a.kinks if a.kinks != "none" else b.kinks,
    )


def run() -> Iterator[Row]:
    """Yield one row for each operation and form, with the largest errors of its entries."""
    for _, entries in groupby(TABLE, key=lambda entry: entry.name):
        rows = [check_entry(entry) for entry in entries]
        yield functools.reduce(_together, rows)


def main_table(color: bool) -> tuple[str, bool]:
    """The table to print, and whether everything passed."""

    def paint(text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if color else text

    def error(number: float, allowed: float) -> str:
        return paint(f"{number:>11.0e}", 32 if number <= allowed else 31)

    rows = list(run())
    width = 2 + max(len(row.name) for row in rows)
    lines = [f"{'op':<{width}}{'samples':>7}{'value':>11}{'elements':>11}{'direction':>11}{'path':>11}  0.1 % off is"]
    for row in rows:
        seen = paint("refused", 32) if row.refused else paint("NOT SEEN", 31)
        found, allowed = (row.value, row.elements, row.direction, row.path), (row.allowed, *ALLOWED)
        lines.append(f"{row.name:<{width}}{row.samples:>7}{''.join(map(error, found, allowed))}  {seen}")
    limits = (max(row.allowed for row in rows), *ALLOWED)
    lines.append(f"{'allowed':<{width}}{'':>7}{''.join(f'{limit:>11.0e}' for limit in limits)}")
    lines += [
        "",
        "Largest relative errors, in float64. value: against loops or SciPy. elements: each element of the",
        "gradient against a difference quotient. direction: the slope along a random direction likewise.",
        "path: the gradient's integral along a segment against the change of the function; it needs no",
        "difference quotient and is the sharpest. Each check must also refuse a gradient 0.1 % too large.",
        "",
    ]
    lines += [f"{row.name:<{width}}for {row.domain}" for row in rows if row.domain != "all numbers"]
    lines += [f"{row.name:<{width}}at a kink: {row.kinks}" for row in rows if row.kinks != "none"]
    lines.append("")
    failed = [row.name for row in rows if not row.passed]
    verdict = paint(f"failed: {', '.join(failed)}", 31) if failed else paint(f"all {len(rows)} operations pass", 32)
    return "\n".join([*lines, verdict]), not failed
