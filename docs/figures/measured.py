"""Make the tables of benchmarks/README.md of what `benchmarks/all.py` has stored in benchmarks/results.

    python docs/figures/measured.py         prints them

Each function returns Markdown. Where a benchmark was run in two hours, both numbers are shown, the smaller one first.
Of a file that is not there, a line says that it was not measured yet.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from how_fast import digits, missing, table

from minisimclr.ntxent import tiled

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
Row = dict[str, Any]

OURS = "auto, in a run"  # what a training run calls
RIVAL = "torch c.-l., memory kept"  # the honest one: it has our two calls of mallopt
PEERS = ("torch eager", "torch.compile", "lightly", "jax.jit")
# The aims for NT-Xent, as a fraction of a peer's time: up to this many images, of which peers, and how much.
AIMS: tuple[tuple[int, tuple[str, ...], float], ...] = (
    (128, ("torch eager", "torch.compile", "lightly"), 0.8),
    (256, PEERS, 1.0),
    (2048, PEERS, 0.8),
    (1 << 30, PEERS, 0.35),
)
WITHOUT_E = 0.45  # the aim from 4,096 images on if E is computed again
STEP_AIMS = {("ResNet-18, 128 views", "auto"): 1.3, ("ResNet-18, 128 views", "slabs"): 1.0,
             ("small, 512 views", "auto"): 0.8, ("ResNet-50, 8 views of 224", "auto"): 0.75}  # fmt: skip


# ── What is stored ────────────────────────────────────────────────────────────────────────────────


def hours(name: str) -> list[dict[str, Any]]:
    """The results of a benchmark: of one hour, or of two, if code, processor, kernels and threads are the same."""
    paths = [RESULTS / f"{name}.json", RESULTS / "again" / f"{name}.json"]
    found = [dict(json.loads(path.read_text())) for path in paths if path.exists()]
    return found if len({same(results) for results in found}) == 1 else found[:1]


def same(results: dict[str, Any]) -> str:
    """The things that two results must have in common to stand in one range."""
    device = results.get("device", {})
    return json.dumps([results.get("commit"), device.get("cpu"), device.get("blas"), results.get("threads")])


def ratio(row: Row, other: Row) -> float:
    """The time of a row as a fraction of another's: the median over the rounds, in each of which both had a turn."""
    pairs = list(zip(row.get("turns", []), other.get("turns", [])))
    return statistics.median(a / b for a, b in pairs) if pairs else float(row["median"] / other["median"])


def rows_of(results: dict[str, Any], key: str, value: Any) -> dict[str, Row]:
    """The rows of one case that were measured, by the names of the contestants."""
    return {row["name"]: row for row in results["rows"] if row.get(key) == value and "median" in row}


def span(values: Sequence[float], write: Callable[[float], str] = digits) -> str:
    """Write one number, or the smallest and the largest of several."""
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} – {high}"


def fraction(value: float) -> str:
    return f"{value:.2f}"


def where() -> str:
    """Name the machine, the versions, the commits and the days."""
    found = [results for name in NAMES for results in hours(name)]
    if not found:
        return missing(f"{NAMES[0]}.json")
    device = found[0]["device"]
    versions = {k: v for results in found for k, v in results.get("versions", {}).items()}
    commits = sorted({results["commit"] for results in found})
    dates = sorted({results["date"][:10] for results in found if "date" in results})
    packages = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{device['cores']} cores of {device['cpu']}, Python {device['python']}, NumPy {device['numpy']} on "
        f"{', '.join(device['blas'])}; {packages}. Measured {days}, at commit{'s' * (len(commits) > 1)} "
        f"{', '.join(commit[:7] + ' (changed)' * commit.endswith('-dirty') for commit in commits)}."
    )


# ── NT-Xent ───────────────────────────────────────────────────────────────────────────────────────


def aim_of(n: int) -> tuple[tuple[str, ...], float]:
    """The peers that count at this many images, and the fraction of their time that we want."""
    return next((peers, aim) for most, peers, aim in AIMS if n <= most)


def best_peer(rows: dict[str, Row], peers: Sequence[str]) -> str | None:
    """The fastest of these peers."""
    return min((name for name in peers if name in rows), key=lambda name: rows[name]["median"], default=None)


def kept(n: int) -> bool:
    """Return True if `auto` keeps E in a training run, for so many images."""
    return tiled.form(n, 0.1, np.dtype(np.float32), tiled.KEEP_BYTES) != "tiled, E recomputed"


def losses(threads: int) -> str:
    """NT-Xent at every size, as a fraction of each peer's time."""
    found = hours(f"ntxent_{threads}")
    if not found:
        return missing(f"ntxent_{threads}.json")
    lines = []
    for n in sorted({row["n"] for row in found[0]["rows"]}):
        cases = [rows for results in found if OURS in (rows := rows_of(results, "n", n))]
        if not cases:
            continue
        times = span([1e3 * rows[OURS]["median"] for rows in cases])
        floor = span([rows[OURS]["median"] / rows[OURS]["floor"] for rows in cases], lambda value: f"{value:.1f}")
        shares = [share_of(found[0], cases, n, name) for name in PEERS]
        peers, aim = aim_of(n)
        aim = aim if kept(n) else WITHOUT_E
        lines.append([f"{n:,}", times, floor, *shares, *against(cases, OURS, peers, aim)])
        again = [rows for rows in cases if "tiled, E recomputed" in rows]
        if n >= 4096 and kept(n) and again:
            times = span([1e3 * rows["tiled, E recomputed"]["median"] for rows in again])
            cells = against(again, "tiled, E recomputed", peers, WITHOUT_E)
            lines.append([f"{n:,}, E computed again", times, "", *[""] * len(PEERS), *cells])
    heading = [f"N, {threads} thread{'s' * (threads > 1)}", "ms", "× floor", *(f"of {name}" for name in PEERS),
               "of the best that counts", "aim"]  # fmt: skip
    return table(heading, lines)


def share_of(results: dict[str, Any], cases: list[dict[str, Row]], n: int, name: str) -> str:
    """A cell: our time as a fraction of a peer's, or why the peer was left out."""
    own = [ratio(rows[OURS], rows[name]) for rows in cases if name in rows]
    failed = [row["failed"] for row in results["rows"] if (row["n"], row["name"]) == (n, name) and "failed" in row]
    return span(own, fraction) if own else failed[0][:40] if failed else ""


def against(cases: list[dict[str, Row]], ours: str, peers: Sequence[str], aim: float) -> list[str]:
    """Two cells: the fraction of the best peer's time, with its name, and the aim; bold if some hour misses it."""
    best = [(best_peer(rows, peers), rows) for rows in cases]
    shares = [ratio(rows[ours], rows[name]) for name, rows in best if name is not None]
    if not shares:
        return ["no peer", f"{aim:g}"]
    mark = "**" if max(shares) > aim else ""
    names = " and ".join(dict.fromkeys(name for name, _ in best if name is not None))
    return [f"{mark}{span(shares, fraction)}{mark} of {names}", f"{aim:g}"]


def choices(name: str) -> str:
    """The time of each form at every size, as a fraction of the best one's, and what `auto` takes."""
    found = hours(name)
    if not found:
        return missing(f"{name}.json")
    forms = ("whole matrix", "tiled, E kept", "tiled, E recomputed")
    lines = []
    for n in sorted({row["n"] for row in found[0]["rows"]}):
        cases = [(rows, best_peer(rows, forms)) for results in found if (rows := rows_of(results, "n", n))]
        shares = []
        for form in (*forms, OURS, "auto"):
            own = [ratio(rows[form], rows[best]) for rows, best in cases if form in rows and best is not None]
            shares.append(span(own, fraction) if own else "")
        lines.append([f"{n:,}", *shares])
    about = found[0]
    threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
    heading = [f"N, {about['dtype']}, {threads}", *forms, OURS, "a bare call"]
    return table(heading, lines)


def all_peers() -> str:
    """Time, memory and error of every implementation, at two sizes."""
    found = hours("ntxent_peers")
    if not found:
        return missing("ntxent_peers.json")
    tables = []
    for n in sorted({row["n"] for row in found[0]["rows"]}):
        lines = []
        for name in dict.fromkeys(row["name"] for row in found[0]["rows"] if row["n"] == n):
            cases = [rows[name] for results in found if name in (rows := rows_of(results, "n", n))]
            if not cases:
                failed = next(row for row in found[0]["rows"] if row["n"] == n and row["name"] == name)
                lines.append([name, failed.get("failed", "not measured"), *[""] * 4])
                continue
            memory = cases[0].get("memory")
            lines.append([
                name, span([1e3 * row["median"] for row in cases]),
                span([row["median"] / row["floor"] for row in cases], lambda value: f"{value:,.1f}"),
                "?" if memory is None else f"{memory / 2**20:,.1f}",
                f"{cases[0]['error']:.0e}", f"{cases[0]['error_aligned']:.0e}",
            ])  # fmt: skip
        heading = [f"N = {n:,}", "ms", "× floor", "extra memory, MiB", "error", "error, aligned"]
        tables.append(table(heading, lines))
    return "\n\n".join(tables)


# ── The step, convolutions, views ─────────────────────────────────────────────────────────────────


def steps(threads: int) -> str:
    """A step beside PyTorch's, the honest rival first: a table for each case."""
    found = hours(f"train_step_{threads}")
    if not found:
        return missing(f"train_step_{threads}.json")
    tables = []
    for case in found[0]["cases"]:
        cases = [rows for results in found if RIVAL in (rows := rows_of(results, "case", case))]
        names = [RIVAL, *(name for name in cases[0] if name != RIVAL)] if cases else []
        lines = []
        for name in names:
            own = [rows[name] for rows in cases if name in rows]
            speeds = [1 / ratio(rows[name], rows[RIVAL]) for rows in cases if name in rows]
            aim = STEP_AIMS.get((case, name), 0.0) if threads == 2 else 0.0
            mark = "**" if min(speeds) < aim else ""
            lines.append([
                name.replace("c.-l.", "channels-last"), span([1e3 * row["median"] for row in own]),
                span([row["median"] / row["floor"] for row in own], fraction), mark + span(speeds, fraction) + mark,
                f"{aim:g}" if aim else "", mebibytes(own),
            ])  # fmt: skip
        heading = [f"{case}, {threads} thread{'s' * (threads > 1)}", "ms", "× floor", "speed", "aim", "memory, MiB"]
        tables.append(table(heading, lines) if lines else f"*{case}: {RIVAL} was not measured.*")
    return "\n\n".join(tables)


def mebibytes(rows: Sequence[Row]) -> str:
    known = [row["memory"] / 2**20 for row in rows if row.get("memory") is not None]
    return span(known, lambda value: f"{value:,.0f}") if known else "?"


def by_case(name: str, peer: str) -> str:
    """The milliseconds of each contestant in each case, and its speed beside the peer's: conv, augment and photos."""
    found = hours(name)
    if not found:
        return missing(f"{name}.json")
    measured = list(dict.fromkeys(row["name"] for row in found[0]["rows"] if "median" in row))
    lines = []
    for contestant in measured:
        cells = []
        for case in found[0]["cases"]:
            cases = [rows for results in found if contestant in (rows := rows_of(results, "case", case))]
            times = [1e3 * rows[contestant]["median"] for rows in cases]
            speeds = [1 / ratio(rows[contestant], rows[peer]) for rows in cases if peer in rows]
            cells.append(f"{span(times)}; {span(speeds, fraction)} ×" if speeds else span(times) if times else "")
        lines.append([contestant, *cells])
    return table([f"ms; speed of {peer} = 1", *found[0]["cases"]], lines) if lines else missing(f"{name}.json")


def demo() -> str:
    """The demo's seconds."""
    found = hours("demo")
    if not found:
        return missing("demo.json")
    seconds = span([results["seconds"] for results in found], lambda value: f"{value:,.0f}")
    return f"`minisimclr demo`, from its start to its end, took {seconds} s (aim: 110)."


NAMES = ("train_step_2", "train_step_1", "ntxent_2", "ntxent_1", "ntxent_peers", "choose_2", "choose_1",
         "choose_float64", "conv", "augment", "photos", "demo")  # fmt: skip
TABLES: tuple[tuple[Any, ...], ...] = (
    (where,), (losses, 2), (losses, 1), (choices, "choose_2"), (choices, "choose_1"), (choices, "choose_float64"),
    (all_peers,), (steps, 2), (steps, 1), (by_case, "conv", "torch channels-last"),
    (by_case, "augment", "Pillow, 2 processes"), (by_case, "photos", "DataLoader, 2 workers"), (demo,),
)  # fmt: skip

if __name__ == "__main__":
    for make, *arguments in TABLES:
        print(make(*arguments), end="\n\n")
