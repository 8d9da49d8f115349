"""Time, memory and error of NT-Xent, forward and backward.

    python benchmarks/ntxent.py                # ours, plain NumPy, and PyTorch if it is installed
    python benchmarks/ntxent.py --quick        # one size, an answer in about ten seconds
    python benchmarks/ntxent.py --peers        # and every other implementation that can be imported
    python benchmarks/ntxent.py --choose       # the forms among which `auto` chooses, from N = 16 to 16,384
    python benchmarks/ntxent.py --json out.json --plot out.png

Each contestant lives in a process of its own, so that neither its memory nor its threads touch another's.
They take turns of a fifth of a second (or one call), so that a slow minute of the machine slows all of them
(arena.py). The columns are:

    median      of the time over the rounds; quartiles, the first and the third; fastest, of all rounds
    of peer     the median as a fraction of the first peer's
    x floor     the time as a multiple of what the products and exponentials alone would take: with symmetry
                3n²d/2 multiply–adds and n²/2 exponentials (n = 2N), at the rates of this machine's BLAS and NumPy,
                measured in the same rounds
    memory      the most that a call holds beyond its inputs (the gradients are included)
    error       the larger of the relative errors of loss and gradient, against float64 on the same float32
                inputs: on random rows, and on views that nearly agree at τ = 0.05, as in a trained network
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena
import peers
from arena import FLOOR, Contestant

from minisimclr import processor
from minisimclr.ntxent import exact, tiled

Row = dict[str, Any]  # what is known about one contestant at one size

GROWTH = "tiled, E recomputed"  # the contestant whose growth with N is fitted; it never runs out of memory
GROWING = (2048, 4096, 8192)  # images per batch in that fit; in smaller ones the fixed cost of a call shows
LARGEST_EXACT = 2048  # images up to which the exact form says what is right: it holds several matrices (2N,2N)
SIZES = [2**k for k in range(4, 15)]  # images per batch with --choose: 16 … 16,384


class Bench(NamedTuple):
    """The things that every part of a measurement needs."""

    options: argparse.Namespace
    folder: Path  # inputs and answers go from process to process as files in here
    progress: Any


def prepare(name: str) -> arena.Prepare:
    """A contestant as the arena wants it: a case is a file of inputs, and a temperature."""

    def prepared(case: arena.Case) -> tuple[Any, Any]:
        with np.load(case["inputs"]) as file:
            za, zb = file["za"], file["zb"]
        run = {**peers.OURS, **peers.GPU, **peers.PEERS}[name](za, zb, case["temperature"])
        return run, lambda result: dict(zip(("loss", "da", "db"), map(plain, result)))

    return prepared


def plain(array: Any) -> Any:
    """A result as a NumPy array, from NumPy, CuPy, PyTorch or JAX."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def machine_rates(threads: int) -> dict[str, float]:
    """Multiply–adds and exponentials a second, over `threads` threads, on tiles as ours."""
    rng = np.random.default_rng(0)
    one, two = rng.random((256, 256), np.float32), rng.random((256, 128), np.float32)
    times = []
    for work in (lambda out: np.matmul(one, two, out=out[:, :128]), lambda out: np.exp(one, out=out)):
        buffers = [np.empty((256, 256), np.float32) for _ in range(threads)]

        def task(out: Any, work: Any = work) -> None:
            for _ in range(50):
                work(out)

        with processor.blas_at_one_thread():
            times.append(
                arena.fastest(lambda task=task, buffers=buffers: processor.parallel(task, buffers)) / 50 / threads
            )
    return {"products": 256 * 256 * 128 / times[0], "exponentials": 256 * 256 / times[1]}


# ── A benchmark of one size ───────────────────────────────────────────────────────────────────────


def measure(contestants: list[Contestant], n: int, peer: str, bench: Bench) -> list[Row]:
    """One row for each contestant, at one size: errors and memory first, then times."""
    taking_part = [c for c in contestants if n <= peers.LARGEST.get(c.name, n)]
    rows = compare_with_float64(taking_part, n, bench)
    times = take_turns(taking_part, n, bench)
    rates = times.pop(FLOOR)
    best = {key: max(rate[key] for rate in rates) for key in rates[0]}
    pairs = (2 * n) ** 2 / 2
    floor = min(pairs * (3 * bench.options.dim / rate["products"] + 1 / rate["exponentials"]) for rate in rates)
    for c in taking_part:
        if c.failed is not None and c.name != FLOOR:
            rows[c.name]["failed"] = c.failed
        elif c.name != FLOOR:
            rows[c.name] |= statistics_of(times[c.name]) | {"floor": floor, "rates": best}
    usual = rows.get(peer, {})
    for row in rows.values():
        if "median" in usual and "median" in row:
            row["of_peer"] = arena.ratio(row, usual)
    return list(rows.values())


def compare_with_float64(contestants: list[Contestant], n: int, bench: Bench) -> dict[str, Row]:
    """The errors of each contestant and its memory; afterwards all of them are ready to be timed."""
    options, rng = bench.options, np.random.default_rng([bench.options.seed, n])
    # Each contestant is timed on the case that it prepared last, so the aligned views come first.
    cases = {
        "error_aligned": (views(rng, n, options.dim, 0.1, options.dtype), 0.05),
        "error": (views(rng, n, options.dim, 1.0, options.dtype), options.temperature),
    }
    truth = {what: save(bench.folder / f"{what}.npz", *pair, t) for what, (pair, t) in cases.items()}
    answer = bench.folder / "answer.npz"
    rows: dict[str, Row] = {c.name: {"name": c.name, "n": n} for c in contestants if c.name != FLOOR}
    for c in contestants:
        bench.progress.set_postfix_str(f"N = {n}: {c.name}")
        for what, (_, temperature) in cases.items() if c.name != FLOOR else ():
            case = {"inputs": str(bench.folder / f"{what}.npz"), "temperature": temperature}
            reply = c.ask(options.patience, prepare=case, file=str(answer), memory=what == "error")
            if c.failed is None:
                with np.load(answer) as got:
                    found = [got[key] for key in ("loss", "da", "db")]
                rows[c.name] |= {**reply, what: error(found, *truth[what])}
        bench.progress.update(1)
    return rows


def take_turns(contestants: list[Contestant], n: int, bench: Bench) -> dict[str, list[Any]]:
    """The times of each contestant's calls, turn by turn; for the floor, the rates of the machine."""
    times: dict[str, list[Any]] = {c.name: [] for c in contestants}
    deadline = time.monotonic() + bench.options.seconds
    rounds = 0
    while rounds < bench.options.rounds or time.monotonic() <= deadline:
        rounds += 1
        for c in arena.in_any_order(contestants, rounds):
            bench.progress.set_postfix_str(f"N = {n}: round {rounds}, {c.name}")
            time.sleep(arena.REST)
            if answer := c.ask(bench.options.patience, run=True):
                times[c.name].append(answer["times"] if "times" in answer else answer["rates"])
    bench.progress.update(1)
    return times


def statistics_of(turns: list[list[float]]) -> Row:
    times = [time for turn in turns for time in turn]
    medians = [statistics.median(turn) for turn in turns]
    quartiles = np.quantile(times, [0.25, 0.75]).tolist()
    return {"times": times, "turns": medians, "median": statistics.median(medians), "quartiles": quartiles}


def views(rng: np.random.Generator, n: int, d: int, noise: float, dtype: str) -> tuple[Any, Any]:
    za = rng.standard_normal((n, d))
    return za.astype(dtype), (za + noise * rng.standard_normal((n, d))).astype(dtype)


def save(path: Path, za: Any, zb: Any, temperature: float) -> tuple[Any, Any]:
    """Store the inputs; return the loss and its gradient in float64, by a form that none of the fast ones shares."""
    np.savez(path, za=za, zb=zb)
    form = exact if len(za) <= LARGEST_EXACT else tiled
    loss, da, db = form.value_and_grad(za.astype(np.float64), zb.astype(np.float64), temperature)
    return loss, np.concatenate([da, db])


def error(result: list[Any], loss: Any, dz: Any) -> float:
    """The larger of the relative errors of loss and gradient."""
    got, *gradients = (np.asarray(x, np.float64) for x in result)
    in_gradient = np.linalg.norm(np.concatenate(gradients) - dz) / np.linalg.norm(dz)
    return float(max(abs(got - loss) / abs(loss), in_gradient))


def growth(contestant: Contestant, bench: Bench) -> dict[str, Any]:
    """The exponent k of time ∝ N^k: a line through the logarithms of the fastest of three runs at each size."""
    options, rng = bench.options, np.random.default_rng(bench.options.seed)
    fastest = {}
    for n in GROWING:
        bench.progress.set_postfix_str(f"growth, N = {n}")
        za, zb = views(rng, n, options.dim, 1.0, options.dtype)
        np.savez(bench.folder / "growth.npz", za=za, zb=zb)
        case = {"inputs": str(bench.folder / "growth.npz"), "temperature": options.temperature}
        contestant.ask(options.patience, prepare=case, file=None, memory=False)
        times = [t for _ in range(3) for t in contestant.ask(options.patience, run=True).get("times", [])]
        if not times:
            return {}
        fastest[n] = min(times)
        bench.progress.update(1)
    exponent = np.polyfit(np.log(list(fastest)), np.log(list(fastest.values())), 1)[0]
    return {"exponent": float(exponent), "fastest": fastest}


# ── The output ────────────────────────────────────────────────────────────────────────────────────


def table(rows: list[dict[str, Any]], peer: str, options: argparse.Namespace) -> str:
    case = f"d = {options.dim}, τ = {options.temperature:g}, {options.dtype}"
    lines = [f"N = {rows[0]['n']} images, {case}, forward + backward"]
    lines.append(
        f"  {'':24}{'median':>11}{'quartiles':>22}{'fastest':>9}{'of ' + peer:>19}"
        f"{'x floor':>9}{'memory':>12}{'error':>9}{'aligned':>9}"
    )
    for row in rows:
        if "failed" in row:
            lines.append(f"  {row['name']:24}  left out: {row['failed']}")
            continue
        low, high = (1e3 * t for t in row["quartiles"])
        memory = f"{row['memory'] / 2**20:,.1f} MiB" if row.get("memory") is not None else "?"
        lines.append(
            f"  {row['name']:24}{1e3 * row['median']:>8,.2f} ms{f'{low:,.2f} – {high:,.2f}':>22}"
            f"{1e3 * min(row['times']):>9,.2f}{row.get('of_peer', math.nan):>19.2f}{row['median'] / row['floor']:>9.2f}"
            f"{memory:>12}{row.get('error') or math.nan:>9.0e}{row.get('error_aligned') or math.nan:>9.0e}"
        )
    return "\n".join(lines)


def choices(rows: list[Row], options: argparse.Namespace) -> str:
    """For each N every form's time, as a fraction of the best one's, and which form `auto` takes.

    A bare call holds little memory, so that beyond SPARE_BYTES a form that keeps E is none of its choices.
    """
    heads = [*peers.FORMS, "auto takes", "of the best", "in a run", "of the best"]
    lines = [f"{'N':>8}" + "".join(f"{head:>21}" for head in heads)]
    for n in options.sizes:
        median = {row["name"]: row["median"] for row in rows if row["n"] == n and "median" in row}
        forms = {name: median[name] for name in peers.FORMS if name in median}
        best = min(forms.values(), default=math.nan)
        cells = [f"{forms[name] / best:.2f}" if name in forms else "" for name in peers.FORMS]
        for name, keep_bytes in (("auto", tiled.SPARE_BYTES), ("auto, in a run", tiled.KEEP_BYTES)):
            taken = tiled.form(n, options.temperature, np.dtype(options.dtype), keep_bytes)
            cells += [taken, f"{median.get(name, math.nan) / best:.2f}"]
        lines.append(f"{n:>8}" + "".join(f"{cell:>21}" for cell in cells))
    return "\n".join(lines)


def by_name(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def plot(rows: list[Row], path: str) -> None:
    """Time, with the floor, and memory of every contestant against N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    measured = [row for row in rows if "median" in row]
    for k, (name, own) in enumerate(by_name(measured).items()):
        sizes = [row["n"] for row in own]
        width = 2.4 if name.startswith("tiled") else 1.2
        style = {"marker": "o", "markersize": 4, "linewidth": width, "color": f"C{k % 10}"}
        left.loglog(sizes, [1e3 * row["median"] for row in own], label=name, **style)
        right.loglog(sizes, [row["memory"] / 2**20 for row in own], label=name, **style)
    floor = {row["n"]: 1e3 * row["floor"] for row in measured}
    left.loglog(list(floor), list(floor.values()), color="gray", linestyle=":", label="floor")
    for axes, title in ((left, "time of a call, ms"), (right, "extra memory, MiB")):
        axes.set(xlabel="images N", title=title)
        axes.set_xticks(list(floor), [str(n) for n in floor])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def read_options() -> argparse.Namespace:
    """The command line; usage errors end the program here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size and a few seconds, unless these are given")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="images per batch; default: 256 1024 4096")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--peers", action="store_true", help="add every implementation that can be imported")
    parser.add_argument("--choose", action="store_true", help="our forms only, at every size, and what auto takes")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these contestants only")
    parser.add_argument("--threads", type=int, default=processor.threads())
    parser.add_argument("--seconds", type=float, help="how long to measure each size (at least 3 rounds); default: 12")
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a contestant is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="time and memory against N, log–log (needs matplotlib)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # rounds: turns of each contestant, at least
    sizes, seconds, options.rounds = ([1024], 1, 2) if options.quick else ([256, 1024, 4096], 12, 3)
    if options.choose:
        sizes, seconds, options.only = SIZES, 3, ["auto", "auto, in a run", *peers.FORMS]
    options.sizes = sorted(options.sizes or sizes)
    options.seconds = options.seconds or seconds
    options.only = [peers.ALIASES.get(name, name) for name in options.only or ()]
    known = {**peers.OURS, **(peers.GPU if options.only and peers.has_gpu() else {}), **peers.PEERS}
    if unknown := sorted(set(options.only) - known.keys()):
        parser.error(f"no contestant {', '.join(unknown)}; there are: {', '.join(known)}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install ".[plot]"')
    return options


def choose(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The contestants that were asked for: those that can run here, and those that are not installed."""
    ours = [*peers.OURS, *(peers.GPU if peers.has_gpu() else [])]
    asked = options.only or [*ours, *(peers.PEERS if options.peers else ["torch eager"])]
    wanted = [name for name in [*ours, *peers.PEERS] if name in asked]
    missing = [name for name in wanted if name in peers.PEERS and importlib.util.find_spec(peers.PACKAGE[name]) is None]
    return [name for name in wanted if name not in missing], missing


def run(
    names: list[str], peer: str, options: argparse.Namespace, store: Callable[[list[Row], dict[str, Any]], None]
) -> tuple[list[Row], dict[str, Any]]:
    """Every size, each printed and stored when it is done; and the growth of the time with N, unless `--quick`."""
    rows: list[Row] = []
    grown: dict[str, Any] = {}
    contestants: dict[str, Contestant] = {}
    steps = len(options.sizes) * (len(names) + 2) + len(GROWING)
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=steps, leave=False, disable=None, bar_format="{bar:20} {postfix}") as progress,
    ):
        for name in [*names, FLOOR]:
            contestants[name] = Contestant(name, options.threads)
            stack.callback(contestants[name].leave)
        bench = Bench(options, Path(folder), progress)
        for n in options.sizes:
            rows += (now := measure(list(contestants.values()), n, peer, bench))
            tqdm.write("\n" + table(now, peer, options))
            store(rows, {})  # also if the next size does not end
        if GROWTH in names and not options.quick and not options.choose:
            grown = growth(contestants[GROWTH], bench)
    return rows, grown


def main() -> None:
    options = read_options()
    if options.serve:
        torch = peers.PACKAGE.get(options.serve) in ("torch", "lightly", "pytorch_metric_learning")
        arena.serve(None if options.serve == FLOOR else prepare(options.serve), torch, options.threads, machine_rates)
        return
    names, missing = choose(options)
    peer = next((name for name in names if name in peers.PEERS), "NumPy textbook")
    hardware = arena.announce(options.threads, missing)
    settings = {key: getattr(options, key) for key in ("threads", "dim", "temperature", "dtype", "seed")}
    packages = {peers.PACKAGE[name].replace("_", "-") for name in names if name in peers.PACKAGE}
    about = {"device": hardware, "versions": arena.versions(packages), **settings, "peer": peer}

    def store(rows: list[Row], grown: dict[str, Any], complete: bool = False) -> None:
        if options.json:
            arena.write(options.json, "ntxent", {**about, "growth": grown, "complete": complete, "rows": rows})

    rows, grown = run(names, peer, options, store)
    if options.choose:
        print(f"\nthe time of each form, of the best; {options.threads} threads\n{choices(rows, options)}")
    if grown:
        sizes = ", ".join(f"{1e3 * t:,.0f} ms at {n}" for n, t in grown["fastest"].items())
        print(f"\n{GROWTH}: time grows as N^{grown['exponent']:.2f} ({sizes})")
    store(rows, grown, complete=True)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
