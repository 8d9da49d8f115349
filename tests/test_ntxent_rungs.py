"""The error of each form of NT-Xent in float32: measured, printed, and compared with the table of chapter 5.

    python tests/test_ntxent_rungs.py          prints the table of the chapter, and what was measured

A cell of the table is a power of ten that the error stays below, on any BLAS: the smallest that is at least twice what
was measured. Here a cell must be true (no error is above it) and not modest (some error is above a hundredth of it).
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minisimclr.ntxent import nt_xent_value_and_grad

pytestmark = pytest.mark.host("the digits are those of a processor")

Array = np.ndarray[Any, Any]
CHAPTER = Path(__file__).parent.parent / "docs" / "05_nt_xent.md"
MARK = "errors of the rungs, checked by tests/test_ntxent_rungs.py"
RUNGS = ("composed", "plain", "exact", "tiled")
N, D, BATCHES = 127, 128, 6


def embeddings(situation: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """Two views in float32, of lengths near √D unless the situation says otherwise."""
    a, b, common = rng.standard_normal((N, D)), rng.standard_normal((N, D)), rng.standard_normal(D)
    match situation:
        case "views that nearly agree":
            b = a + 0.1 * b
        case "collapsed rows":
            a, b = common + 0.1 * a, common + 0.1 * b
        case "opposed views":
            b = -a
        case "lengths from 1e-30 to 1e30":
            a, b = a * 10 ** rng.uniform(-30, 30, (N, 1)), b * 10 ** rng.uniform(-30, 30, (N, 1))
        case "a row of zeros":
            a[0] = 0
    return a.astype(np.float32), b.astype(np.float32)


SITUATIONS = {  # and the temperature of each
    "random rows": 0.1,
    "random rows, hot": 5.0,
    "views that nearly agree": 0.05,
    "collapsed rows": 0.1,
    "opposed views": 1000.0,
    "lengths from 1e-30 to 1e30": 0.1,
    "a row of zeros": 0.1,
}


@functools.cache
def batches(situation: str) -> list[Any]:
    """Views in float32, with the loss and the gradients of the same numbers in float64."""
    several = [embeddings(situation, np.random.default_rng([seed, N, D])) for seed in range(BATCHES)]
    double = [[z.astype(np.float64) for z in views] for views in several]
    return [
        (views, nt_xent_value_and_grad(*wide, SITUATIONS[situation], "exact")) for views, wide in zip(several, double)
    ]


@functools.cache
def errors(rung: str, situation: str) -> tuple[float, float]:
    """Relative errors of the loss, and of the gradient by its norm, against float64; the worst of several batches."""
    worst = np.zeros(2)
    for views, (expected, *gradients) in batches(situation):
        with np.errstate(all="ignore"):  # the plain form divides by zero
            loss, *got = nt_xent_value_and_grad(*views, SITUATIONS[situation], rung)
            length = np.linalg.norm(np.concatenate(views).astype(np.float64), axis=1, keepdims=True)
            right, found = (length * np.concatenate(g) for g in (gradients, got))  # as of unit rows: all count alike
            off = [abs(loss - expected) / expected, np.linalg.norm(found - right) / np.linalg.norm(right)]
        worst = np.maximum(worst, off)  # NaN if either is
    return float(worst[0]), float(worst[1])


def cell(error: float) -> str:
    return "NaN" if math.isnan(error) else f"1e{math.ceil(math.log10(2 * error)):+d}"


def table(number: Any = cell) -> str:
    """The chapter's table: a row for each situation, a loss and a gradient for each rung."""
    lines = [
        "| float32, N = 127 | τ | " + " | ".join(f"{rung}: loss | gradient" for rung in RUNGS) + " |",
        "|---|---|" + "---|" * 2 * len(RUNGS),
    ]
    for situation, temperature in SITUATIONS.items():
        cells = [number(error) for rung in RUNGS for error in errors(rung, situation)]
        lines.append(f"| {situation.removesuffix(', hot')} | {temperature:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_the_chapter() -> list[list[str]]:
    """The cells of the chapter's table, row by row, without its head."""
    if not CHAPTER.exists():
        pytest.skip("the book is not part of this installation")
    text = CHAPTER.read_text().split(f"<!-- {MARK} -->")
    assert len(text) == 3, "the table stands between two marks"
    rows = [[part.strip() for part in line.strip("| ").split("|")] for line in text[1].strip().splitlines()]
    return rows[2:]


def is_true_and_not_modest(written: str, error: float) -> bool:
    if written == "NaN":
        return math.isnan(error)
    assert re.fullmatch(r"1e[+-]\d+", written), written
    return float(written) / 100 <= error <= float(written)


@pytest.mark.parametrize("row", range(len(SITUATIONS)), ids=list(SITUATIONS))
def test_the_table_of_the_chapter_says_the_error_of_each_rung(row: int, capsys: pytest.CaptureFixture[str]) -> None:
    situation = list(SITUATIONS)[row]
    written = in_the_chapter()
    assert len(written) == len(SITUATIONS)
    assert written[row][:2] == [situation.removesuffix(", hot"), f"{SITUATIONS[situation]:g}"]
    measured = [error for rung in RUNGS for error in errors(rung, situation)]
    print(situation, *(f"{error:.1e}" for error in measured))
    wrong = [
        f"{rung}, {what}: {text} is written, {error:.1e} measured"
        for (rung, what), text, error in zip(
            ((rung, what) for rung in RUNGS for what in ("loss", "gradient")), written[row][2:], measured, strict=True
        )
        if not is_true_and_not_modest(text, error)
    ]
    assert not wrong
    assert f"{measured[0]:.1e}" in capsys.readouterr().out


def test_each_rung_above_plain_errs_below_one_in_ten_thousand_in_every_situation() -> None:
    for rung in ("exact", "tiled"):
        for situation in SITUATIONS:
            assert max(errors(rung, situation)) < 1e-4, (rung, situation)


@pytest.mark.parametrize(
    ("written", "error", "right"),
    [
        ("1e-6", 8e-7, True),
        ("1e-6", 2e-6, False),
        ("1e-6", 5e-9, False),
        ("NaN", 1e-7, False),
        ("1e-6", math.nan, False),
    ],
)
def test_a_cell_that_claims_too_little_or_too_much_is_noticed(written: str, error: float, right: bool) -> None:
    assert is_true_and_not_modest(written, error) == right
    assert is_true_and_not_modest("NaN", math.nan)


if __name__ == "__main__":
    print(table())
    print()
    print(table(lambda error: f"{error:.1e}"))
