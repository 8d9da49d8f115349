"""How fast, how lean and how exact is NT-Xent, forward and backward?

    python benchmarks/ntxent.py                # ours, plain NumPy, and PyTorch if it is installed
    python benchmarks/ntxent.py --peers        # and every other implementation that can be imported
    python benchmarks/ntxent.py --json out.json --plot out.png

Each contestant lives in a process of its own, so that neither its memory nor its threads touch another's.
They take turns of a fifth of a second (or one call), so that a slow minute of the machine is everybody's
(arena.py).
Shown are:

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
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena
import peers
from arena import FLOOR, Contestant

from minisimclr import processor
from minisimclr.ntxent import tiled

GROWTH, GROWING = "tiled, E recomputed", (2048, 4096, 8192)  # where overhead does not rule, and no memory runs out


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

        start = time.perf_counter()
        processor.parallel(task, buffers)
        times.append((time.perf_counter() - start) / 50 / threads)
    return {"products": 256 * 256 * 128 / times[0], "exponentials": 256 * 256 / times[1]}


# ── A benchmark of one size ───────────────────────────────────────────────────────────────────────


def measure(
    contestants: list[Contestant], n: int, options: argparse.Namespace, folder: Path, progress: Any
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([options.seed, n])
    # The errors on aligned views first: the last thing prepared is what is timed.
    cases = {
        "error_aligned": (views(rng, n, options.dim, noise=0.1), 0.05),
        "error": (views(rng, n, options.dim, noise=1.0), options.temperature),
    }
    truth = {what: save(folder / f"{what}.npz", *pair, temperature) for what, (pair, temperature) in cases.items()}
    answer = folder / "answer.npz"
    rows: dict[str, dict[str, Any]] = {}
    for c in contestants:
        progress.set_postfix_str(f"N = {n}: {c.name}")
        row = rows[c.name] = {"name": c.name, "n": n}
        for what, (_, temperature) in cases.items() if c.name != FLOOR else ():
            case = {"inputs": str(folder / f"{what}.npz"), "temperature": temperature}
            reply = c.ask(options.patience, prepare=case, file=str(answer), memory=what == "error")
            if c.failed is None:
                with np.load(answer) as got:
                    row |= {**reply, what: error([got[key] for key in ("loss", "da", "db")], *truth[what])}
        progress.update(1)

    times: dict[str, list[Any]] = {c.name: [] for c in contestants}
    deadline = time.monotonic() + options.seconds
    while True:
        for c in contestants:
            progress.set_postfix_str(f"N = {n}: round {len(times[FLOOR]) + 1}, {c.name}")
            # OpenBLAS and OpenMP keep their threads spinning for some 50 ms after a call: wait till they sleep.
            time.sleep(0.08)
            if answer := c.ask(options.patience, run=True):
                times[c.name] += answer.get("times") or [answer["rates"]]
        rounds = len(times[FLOOR])
        if time.monotonic() > deadline and rounds >= 3:
            break
    progress.update(1)

    pairs = (2 * n) ** 2 / 2
    floor = min(pairs * (3 * options.dim / rate["products"] + 1 / rate["exponentials"]) for rate in times.pop(FLOOR))
    for c in contestants:
        row = rows[c.name]
        if c.failed is not None:
            row["failed"] = c.failed
        elif c.name != FLOOR:
            row["times"] = times[c.name]
            row["median"] = statistics.median(times[c.name])
            row["quartiles"] = np.quantile(times[c.name], [0.25, 0.75]).tolist()
            row["floor"] = floor
    rows.pop(FLOOR)
    peer = next((c.name for c in contestants if c.name in peers.PEERS), "NumPy textbook")
    for row in rows.values():
        if "median" in row and "median" in rows[peer]:
            row["of_peer"] = row["median"] / rows[peer]["median"]
    return list(rows.values())


def views(rng: np.random.Generator, n: int, d: int, noise: float) -> tuple[Any, Any]:
    za = rng.standard_normal((n, d))
    return za.astype(np.float32), (za + noise * rng.standard_normal((n, d))).astype(np.float32)


def save(path: Path, za: Any, zb: Any, temperature: float) -> tuple[Any, Any]:
    """Store the inputs; return the loss and its gradient in float64."""
    np.savez(path, za=za, zb=zb)
    loss, da, db = tiled.value_and_grad(za.astype(np.float64), zb.astype(np.float64), temperature)
    return loss, np.concatenate([da, db])


def error(result: list[Any], loss: Any, dz: Any) -> float:
    """The larger of the relative errors of loss and gradient."""
    got, *gradients = (np.asarray(x, np.float64) for x in result)
    in_gradient = np.linalg.norm(np.concatenate(gradients) - dz) / np.linalg.norm(dz)
    return float(max(abs(got - loss) / abs(loss), in_gradient))


def growth(contestant: Contestant, options: argparse.Namespace, folder: Path, progress: Any) -> dict[str, Any]:
    """The exponent k of time ∝ N^k: a line through the logarithms of the fastest of three runs at each size."""
    rng = np.random.default_rng(options.seed)
    fastest = {}
    for n in GROWING:
        progress.set_postfix_str(f"growth, N = {n}")
        za, zb = views(rng, n, options.dim, noise=1.0)
        np.savez(folder / "growth.npz", za=za, zb=zb)
        case = {"inputs": str(folder / "growth.npz"), "temperature": options.temperature}
        contestant.ask(options.patience, prepare=case, file=None, memory=False)
        times = [t for _ in range(3) for t in contestant.ask(options.patience, run=True).get("times", [])]
        if not times:
            return {}
        fastest[n] = min(times)
        progress.update(1)
    exponent = np.polyfit(np.log(list(fastest)), np.log(list(fastest.values())), 1)[0]
    return {"exponent": float(exponent), "fastest": fastest}


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────


def table(rows: list[dict[str, Any]], peer: str, dim: int, temperature: float) -> str:
    lines = [f"N = {rows[0]['n']} images, d = {dim}, τ = {temperature:g}, float32, forward + backward"]
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


def plot(rows: list[dict[str, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for k, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        own = [row for row in rows if row["name"] == name and "median" in row]
        width = 2.4 if name.startswith("tiled") else 1.2
        style = {"marker": "o", "markersize": 4, "linewidth": width, "color": f"C{k % 10}"}
        left.loglog([r["n"] for r in own], [1e3 * r["median"] for r in own], label=name, **style)
        right.loglog([r["n"] for r in own], [r["memory"] / 2**20 for r in own], label=name, **style)
    sizes = sorted({row["n"] for row in rows})
    floor = [1e3 * next(r["floor"] for r in rows if r["n"] == n and "floor" in r) for n in sizes]
    left.loglog(sizes, floor, color="gray", linestyle=":", label="floor")
    for axes, title in ((left, "time of a call, ms"), (right, "extra memory, MiB")):
        axes.set(xlabel="images N", title=title)
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)


def versions(names: list[str]) -> dict[str, str]:
    from importlib import metadata

    packages = {peers.PACKAGE[name].replace("_", "-") for name in names if name in peers.PACKAGE}
    return {package: metadata.version(package) for package in sorted(packages)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], metavar="N", help="images per batch")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--peers", action="store_true", help="add every implementation that can be imported")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these contestants only")
    parser.add_argument("--threads", type=int, default=processor.threads())
    parser.add_argument("--seconds", type=float, default=12, help="how long to measure each size (at least 3 rounds)")
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a contestant is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="time and memory against N, log–log (needs matplotlib)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        torch = peers.PACKAGE.get(options.serve) in ("torch", "lightly", "pytorch_metric_learning")
        arena.serve(None if options.serve == FLOOR else prepare(options.serve), torch, options.threads, machine_rates)
        return

    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "minisimclr[plot]"')
    ours = [*peers.OURS, *(peers.GPU if peers.has_gpu() else [])]
    wanted = [*ours, *(peers.PEERS if options.peers else ["torch eager"])]
    if unknown := set(options.only or ()) - {*ours, *peers.PEERS}:
        parser.error(f"no contestant {', '.join(sorted(unknown))}; there are: {', '.join([*ours, *peers.PEERS])}")
    wanted = [name for name in [*ours, *peers.PEERS] if name in (options.only or wanted)]
    missing = [name for name in wanted if name in peers.PEERS and importlib.util.find_spec(peers.PACKAGE[name]) is None]
    names = [name for name in wanted if name not in missing]
    hardware = arena.device()
    print(f"{hardware['cpu']}, {options.threads} threads; NumPy {hardware['numpy']} on {', '.join(hardware['blas'])}")
    if missing:
        print(f'not installed: {", ".join(missing)}   (pip install "minisimclr[peers]")')

    rows: list[dict[str, Any]] = []
    grown: dict[str, Any] = {}
    peer = next((name for name in names if name in peers.PEERS), "NumPy textbook")
    contestants = [Contestant(name, options.threads) for name in [*names, FLOOR]]
    try:
        steps = len(options.sizes) * (len(contestants) + 1) + len(GROWING)
        with (
            tempfile.TemporaryDirectory() as folder,
            tqdm(total=steps, leave=False, disable=None, bar_format="{bar:20} {postfix}") as progress,
        ):
            for n in sorted(options.sizes):
                rows += (now := measure(contestants, n, options, Path(folder), progress))
                tqdm.write("\n" + table(now, peer, options.dim, options.temperature))
            if GROWTH in names:
                grown = growth(contestants[names.index(GROWTH)], options, Path(folder), progress)
    finally:
        for contestant in contestants:
            contestant.leave()
    if grown:
        sizes = ", ".join(f"{1e3 * t:,.0f} ms at {n}" for n, t in grown["fastest"].items())
        print(f"\n{GROWTH}: time grows as N^{grown['exponent']:.2f} ({sizes})")
    if options.json:
        result = {
            "benchmark": "ntxent",
            "commit": arena.commit(),
            "date": time.strftime("%Y-%m-%d"),
            "device": hardware,
            "versions": versions(names),
            "threads": options.threads,
            "dim": options.dim,
            "temperature": options.temperature,
            "seed": options.seed,
            "peer": peer,
            "growth": grown,
            "rows": rows,
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
