"""Make the tables of benchmarks/README.md of what `benchmarks/all.py` has stored in benchmarks/results.

    python docs/figures/measured.py         prints them

Each function returns Markdown. Where a benchmark was run in two hours, both numbers are shown, the smaller one first.
Of a file that is not there, a line says that it was not measured yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from how_fast import digits, missing, table

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
    """The results of a benchmark: of one hour, or of two."""
    paths = [RESULTS / f"{name}.json", RESULTS / "again" / f"{name}.json"]
    return [dict(json.loads(path.read_text())) for path in paths if path.exists()]


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
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    found = [results for name in ("train_step_2", "ntxent_2") for results in hours(name)]
    if not found:
        return missing("train_step_2.json")
    device = found[0]["device"]
    versions = {k: v for results in found for k, v in results.get("versions", {}).items()}
    commits = sorted({results["commit"] for name in names for results in hours(name) if "commit" in results})
    dates = sorted({results["date"] for name in names for results in hours(name) if "date" in results})
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


def of_best(rows: dict[str, Row], ours: str, peers: Sequence[str]) -> float | None:
    """Our time as a fraction of that of the fastest of these peers."""
    times = [rows[name]["median"] for name in peers if name in rows]
    return rows[ours]["median"] / min(times) if times and ours in rows else None


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
        shares = []
        for name in PEERS:
            own = [rows[OURS]["median"] / rows[name]["median"] for rows in cases if name in rows]
            shares.append(span(own, fraction) if own else "")
        peers, aim = aim_of(n)
        lines.append([f"{n:,}", times, floor, *shares, *against(cases, OURS, peers, aim)])
        if n >= 4096:
            again = span([1e3 * rows["tiled, E recomputed"]["median"] for rows in cases])
            cells = against(cases, "tiled, E recomputed", peers, WITHOUT_E)
            lines.append(["E computed again", again, "", *[""] * len(PEERS), *cells])
    heading = [f"N, {threads} thread{'s' * (threads > 1)}", "ms", "× floor", *(f"of {name}" for name in PEERS),
               "of the best", "aim"]  # fmt: skip
    return table(heading, lines)


def against(cases: list[dict[str, Row]], ours: str, peers: Sequence[str], aim: float) -> list[str]:
    """Two cells: the fraction of the best peer's time, and the aim; bold where it is missed in some hour."""
    shares = [share for rows in cases if (share := of_best(rows, ours, peers)) is not None]
    if not shares:
        return ["no peer", f"{aim:g}"]
    mark = "**" if max(shares) > aim else ""
    return [mark + span(shares, fraction) + mark, f"{aim:g}" + ("" if len(peers) == len(PEERS) else ", without jax")]


def choices(name: str) -> str:
    """The time of each form at every size, as a fraction of the best one's, and what `auto` takes."""
    found = hours(name)
    if not found:
        return missing(f"{name}.json")
    forms = ("whole matrix", "tiled, E kept", "tiled, E recomputed")
    lines = []
    for n in sorted({row["n"] for row in found[0]["rows"]}):
        cases = [rows for results in found if len(rows := rows_of(results, "n", n)) >= 4]
        shares = []
        for form in (*forms, "auto, in a run"):
            own = [
                rows[form]["median"] / min(rows[other]["median"] for other in forms if other in rows)
                for rows in cases
                if form in rows
            ]
            shares.append(span(own, fraction) if own else "")
        lines.append([f"{n:,}", *shares])
    about = found[0]
    heading = [f"N, {about['dtype']}, {about['threads']} threads", *forms, "auto, in a run"]
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
                (failed,) = (row["failed"] for row in found[0]["rows"] if row["n"] == n and row["name"] == name)
                lines.append([name, failed, *[""] * 4])
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
            speeds = [rows[RIVAL]["median"] / rows[name]["median"] for rows in cases if name in rows]
            aim = STEP_AIMS.get((case, name), 0.0) if threads == 2 else 0.0
            mark = "**" if min(speeds) < aim else ""
            lines.append([
                name.replace("c.-l.", "channels-last"), span([1e3 * row["median"] for row in own]),
                span([row["median"] / row["floor"] for row in own], fraction), mark + span(speeds, fraction) + mark,
                f"{aim:g}" if aim else "", span([row["memory"] / 2**20 for row in own], lambda value: f"{value:,.0f}"),
            ])  # fmt: skip
        heading = [f"{case}, {threads} thread{'s' * (threads > 1)}", "ms", "× floor", "speed", "aim", "memory, MiB"]
        tables.append(table(heading, lines))
    return "\n\n".join(tables)


def by_case(name: str, unit: str) -> str:
    """The time of each contestant in each case, and its speed beside the peer's: of conv, augment and photos."""
    found = hours(name)
    if not found:
        return missing(f"{name}.json")
    measured = list(dict.fromkeys(row["name"] for row in found[0]["rows"] if "median" in row))
    peer = next((name for name in (found[0]["peer"], "DataLoader, 1 worker") if name in measured), measured[0])
    lines = []
    for contestant in measured:
        cells = []
        for case in found[0]["cases"]:
            cases = [rows for results in found if contestant in (rows := rows_of(results, "case", case))]
            times = [1e3 * rows[contestant]["median"] for rows in cases]
            speeds = [rows[peer]["median"] / rows[contestant]["median"] for rows in cases if peer in rows]
            cells.append(f"{span(times)}; {span(speeds, fraction)} ×" if speeds else span(times) if times else "")
        lines.append([contestant, *cells])
    return table([f"{unit}; speed of {peer} = 1", *found[0]["cases"]], lines)


def demo() -> str:
    """The demo's seconds and its accuracies."""
    found = hours("demo")
    if not found:
        return missing("demo.json")
    return f"`minisimclr demo` took {span([results['seconds'] for results in found], lambda s: f'{s:,.0f}')} s."


TABLES: tuple[tuple[Any, ...], ...] = (
    (where,), (losses, 2), (losses, 1), (choices, "choose_2"), (choices, "choose_1"), (choices, "choose_float64"),
    (all_peers,), (steps, 2), (steps, 1), (by_case, "conv", "ms"), (by_case, "augment", "ms"),
    (by_case, "photos", "ms"), (demo,),
)  # fmt: skip

if __name__ == "__main__":
    for make, *arguments in TABLES:
        print(make(*arguments), end="\n\n")
