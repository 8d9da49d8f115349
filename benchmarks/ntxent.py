"""How fast, how lean and how exact is NT-Xent, forward and backward?

    python benchmarks/ntxent.py                # ours, plain NumPy, and PyTorch if it is installed
    python benchmarks/ntxent.py --peers        # and every other implementation that can be imported
    python benchmarks/ntxent.py --json out.json --plot out.png

Each contestant lives in a process of its own, so that neither its memory nor its threads touch another's.
They take turns of a thirtieth of a second (or one call), so that a slow minute of the machine is everybody's.
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
import contextlib
import ctypes
import gc
import importlib.util
import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import peers

from minisimclr import backend
from minisimclr.ntxent import tiled

MEMORY_LIMIT = 10 * 2**30  # a contestant that wants more is left out
FLOOR = "floor"  # the contestant that measures the machine


# ── A contestant's process ────────────────────────────────────────────────────────────────────────

def serve(name: str, threads: int) -> None:
    """Answer the questions that come in on stdin, one JSON object a line."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))  # fail alone, not with the machine
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    if "torch" in sys.modules or peers.PACKAGE.get(name) in ("torch", "lightly", "pytorch_metric_learning"):
        import torch

        torch.set_num_threads(threads)
    run: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "prepare" in question:
                za, zb, *_ = load(question["prepare"])
                if name == FLOOR:
                    run = machine_rates
                else:
                    run = {**peers.OURS, **peers.PEERS}[name](za, zb, question["temperature"])
                    run()
                    answer["memory"] = extra_memory(run)
            elif "error" in question:
                answer["error"] = error(run(), *load(question["error"])[2:])
            elif name == FLOOR:
                answer["rates"] = run(threads)
            else:
                answer["times"] = turn(run)
        except Exception as exception:
            answer["failed"] = f"{type(exception).__name__}: {exception}".splitlines()[0][:120]
        print(json.dumps(answer), file=answers, flush=True)


def turn(run: Any) -> list[float]:
    """Seconds of each call for a thirtieth of a second, at least one, after one to warm up if calls are short."""
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < 1 / 30:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[1:] or times


def extra_memory(run: Any) -> int | None:
    """How far one call pushes up this process's resident memory (Linux only)."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory that the process still holds would hide the call's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def machine_rates(threads: int) -> tuple[float, float]:
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
        backend.parallel(task, buffers)
        times.append((time.perf_counter() - start) / 50 / threads)
    return 256 * 256 * 128 / times[0], 256 * 256 / times[1]


def error(result: tuple[Any, Any, Any], loss: Any, dz: Any) -> float:
    got, *gradients = (np.asarray(x, np.float64) for x in result)
    in_gradient = np.linalg.norm(np.concatenate(gradients) - dz) / np.linalg.norm(dz)
    return float(max(abs(got - loss) / abs(loss), in_gradient))


def load(path: str) -> list[Any]:
    with np.load(path) as file:
        return [file[key] for key in ("za", "zb", "loss", "dz")]


# ── The other side of the pipe ────────────────────────────────────────────────────────────────────

class Contestant:
    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        keys = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINISIMCLR_THREADS")
        environment = os.environ | dict.fromkeys(keys, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        self.failed: str | None = None

    def ask(self, patience: float, **question: Any) -> dict[str, Any]:
        """The answer, or {} from now on if the contestant fails, dies or takes longer than its patience."""
        if self.failed is not None:
            return {}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer: dict[str, Any] = {}
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], patience)
            if not ready:
                self.failed = f"no answer in {patience:.0f} s"
                self.process.kill()
                return {}
            answer = json.loads(self.process.stdout.readline() or '{"failed": "the process died (out of memory?)"}')
        except BrokenPipeError:
            answer = {"failed": "the process died"}
        self.failed = answer.get("failed")
        return {} if self.failed else answer

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()


# ── A benchmark of one size ───────────────────────────────────────────────────────────────────────

def measure(
    contestants: list[Contestant], n: int, options: argparse.Namespace, folder: Path, progress: Any
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([options.seed, n])
    random = views(rng, n, options.dim, noise=1.0)
    aligned = views(rng, n, options.dim, noise=0.1)
    path, aligned_path = (str(folder / f"{what}{n}.npz") for what in ("random", "aligned"))
    save(path, *random, options.temperature)
    save(aligned_path, *aligned, 0.05)

    rows: dict[str, dict[str, Any]] = {}
    for c in contestants:
        progress.set_postfix_str(f"N = {n}: {c.name}")
        row = rows[c.name] = {"name": c.name, "n": n}
        if c.failed is None and c.name != FLOOR:
            # The errors first: the last thing prepared is what is timed.
            if c.ask(options.patience, prepare=aligned_path, temperature=0.05):
                row["error_aligned"] = c.ask(options.patience, error=aligned_path).get("error")
            row.update(c.ask(options.patience, prepare=path, temperature=options.temperature))
            row.update(c.ask(options.patience, error=path))
        elif c.name == FLOOR:
            c.ask(options.patience, prepare=path, temperature=options.temperature)
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
    floor = min(pairs * (3 * options.dim / products + 1 / exponentials) for products, exponentials in times.pop(FLOOR))
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


def save(path: str, za: Any, zb: Any, temperature: float) -> None:
    """The inputs, and the answer in float64."""
    loss, da, db = tiled.value_and_grad(za.astype(np.float64), zb.astype(np.float64), temperature)
    np.savez(path, za=za, zb=zb, loss=loss, dz=np.concatenate([da, db]))


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────

def table(rows: list[dict[str, Any]], peer: str, dim: int, temperature: float) -> str:
    lines = [f"N = {rows[0]['n']} images, d = {dim}, τ = {temperature:g}, float32, forward + backward"]
    lines.append(f"  {'':24}{'median':>11}{'quartiles':>22}{'fastest':>9}{'of ' + peer:>19}"
                 f"{'x floor':>9}{'memory':>12}{'error':>9}{'aligned':>9}")
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


def growth(rows: list[dict[str, Any]]) -> str:
    """The exponent k of time ∝ N^k, fitted over the sizes from 1024 on."""
    own = [row for row in rows if row["name"] == "tiled, E recomputed" and "times" in row]
    points = [(row["n"], min(row["times"])) for row in own if row["n"] >= 1024]
    if len(points) < 2:
        return ""
    slope = np.polyfit(*np.log(np.array(points)).T, 1)[0]
    return f"tiled, E recomputed: time grows as N^{slope:.2f} from N = {points[0][0]} to {points[-1][0]}"


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


def device() -> dict[str, Any]:
    """What ran this, without names of hosts or folders."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    models = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    pools = [pool for pool in threadpoolctl.threadpool_info() if "numpy" in pool["filepath"]]
    return {
        "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
        "python": platform.python_version(), "numpy": np.__version__,
        "blas": [f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}" for pool in pools],
    }  # fmt: skip


def commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent,
                            capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


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
    parser.add_argument("--threads", type=int, default=backend.threads())
    parser.add_argument("--seconds", type=float, default=12, help="how long to measure each size (at least 3 rounds)")
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a contestant is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="time and memory against N, log–log (needs matplotlib)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads)
        return

    wanted = [*peers.OURS, *(peers.PEERS if options.peers else ["torch eager"])]
    wanted = [name for name in wanted if not options.only or name in options.only]
    missing = [name for name in wanted if name in peers.PEERS and importlib.util.find_spec(peers.PACKAGE[name]) is None]
    names = [name for name in wanted if name not in missing]
    hardware = device()
    print(f"{hardware['cpu']}, {options.threads} threads; NumPy {hardware['numpy']} on {', '.join(hardware['blas'])}")
    if missing:
        print(f"not installed: {', '.join(missing)}   (pip install \"minisimclr[peers]\")")

    rows: list[dict[str, Any]] = []
    peer = next((name for name in names if name in peers.PEERS), "NumPy textbook")
    contestants = [Contestant(name, options.threads) for name in [*names, FLOOR]]
    try:
        with tempfile.TemporaryDirectory() as folder, \
                tqdm(total=len(options.sizes) * (len(contestants) + 1), leave=False, disable=None,
                     bar_format="{bar:20} {postfix}") as progress:
            for n in sorted(options.sizes):
                rows += (now := measure(contestants, n, options, Path(folder), progress))
                tqdm.write("\n" + table(now, peer, options.dim, options.temperature))
    finally:
        for contestant in contestants:
            contestant.leave()
    print("\n" + growth(rows))
    if options.json:
        result = {
            "benchmark": "ntxent", "commit": commit(), "date": time.strftime("%Y-%m-%d"), "device": hardware,
            "versions": versions(names), "threads": options.threads, "dim": options.dim,
            "temperature": options.temperature, "seed": options.seed, "peer": peer, "rows": rows,
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
