"""Where contestants meet: each in a process of its own, taking turns, one run each per round.

So neither the memory nor the threads of one touch another's, and a slow minute of the machine is everybody's.
CPU time is the work done, summed over threads: on a busy machine, with one thread, it is the better measure (threads
that wait for others by spinning, as OpenMP's do, are counted as working).
A benchmark gives `main` its contestants: functions `prepare(case) -> (run, answer)`. `run()` does the work and
returns its result, finished; `answer(result)` makes a dictionary of plain arrays or numbers of it, to be compared.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from tqdm import tqdm

from minisimclr import processor
from minisimclr.ntxent import tiled

Case = dict[str, Any]
Prepare = Callable[[Case], tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]]
FLOOR = "floor"  # the contestant that measures the machine
TURN = 0.2  # seconds of calls at a stretch: in less, a processor that has just slept is still waking up
MEMORY_LIMIT = 10 * 2**30  # a contestant that wants more is left out


def rates(threads: int) -> dict[str, float]:
    """Multiply–adds a second of the matrix product, and bytes a second of a copy that fits no cache."""
    rng = np.random.default_rng(0)
    a, b = rng.random((512, 256), np.float32), rng.random((256, 256), np.float32)
    source = np.ones((threads, 8 << 20), np.float32)
    products = [np.empty((512, 256), np.float32) for _ in range(threads)]
    copies = [(source[k], np.empty_like(source[k])) for k in range(threads)]

    def multiply(out: Any) -> None:
        for _ in range(20):
            np.matmul(a, b, out=out)

    def best(task: Any, items: Any) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with processor.blas_at_one_thread():
                processor.parallel(task, items)
            times.append(time.perf_counter() - start)
        return min(times)

    return {
        "gemm": threads * 20 * 512 * 256 * 256 / best(multiply, products),
        "copy": source.nbytes / best(lambda pair: np.copyto(pair[1], pair[0]), copies),
    }


# ── A contestant's process ────────────────────────────────────────────────────────────────────────


def serve(prepare: Prepare | None, torch: bool, threads: int, floor: Callable[[int], dict[str, float]] = rates) -> None:
    """Answer the questions that come in on stdin, one JSON object a line."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))  # fail alone, not with the machine
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    if torch:
        import torch as library

        library.set_num_threads(threads)
    run: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if prepare is None:
                reply["rates"] = floor(threads)
            elif "prepare" in question:
                run, answer = prepare(question["prepare"])
                first = answer(run())
                if question["file"]:
                    np.savez(question["file"], **first)
                del first
                if question.get("memory", True) and not hasattr(run, "others"):
                    reply["memory"] = extra_memory(run)
            else:
                reply["times"], reply["cpu"] = turn(run)
        except Exception as exception:
            text = f"{type(exception).__name__}: {exception}" if str(exception) else type(exception).__name__
            reply["failed"] = text.splitlines()[0][:120]
        print(json.dumps(reply), file=answers, flush=True)


def turn(run: Any) -> tuple[list[float], float]:
    """Seconds of each call for a fifth of a second, at least one, and CPU seconds a call.

    Of several calls the first warms the caches up and is not counted.
    """
    times: list[float] = []
    others = getattr(run, "others", lambda: 0.0)  # CPU seconds of processes that a contestant started
    begin, work = time.perf_counter(), time.process_time() + others()
    while not times or time.perf_counter() - begin < TURN:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times[1:] or times, (time.process_time() + others() - work) / len(times)


def extra_memory(run: Any) -> int | None:
    """How far one call pushes up this process's resident memory (Linux only)."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    tiled.release()  # what waits for the next call counts as part of the call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory that the process still holds would hide the call's
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class Contestant:
    """The other side of the pipe: a process that runs the same script with --serve."""

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        keys = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINISIMCLR_THREADS")
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--serve", name, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | dict.fromkeys(keys, str(threads)),
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


# ── The machine ───────────────────────────────────────────────────────────────────────────────────


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
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return result.stdout.strip() or "unknown"


# ── Rounds ────────────────────────────────────────────────────────────────────────────────────────


def measure(
    contestants: list[Contestant],
    case: Case,
    floor: Callable[[Case, dict[str, float]], float],
    exact: Callable[[Case], dict[str, Any]] | None,
    peer: str,
    options: argparse.Namespace,
    folder: Path,
) -> list[dict[str, Any]]:
    """One row a contestant: times, memory and, if there is something exact to compare with, the error."""
    rows: dict[str, dict[str, Any]] = {c.name: {"name": c.name, "case": case["name"]} for c in contestants}
    truth = exact(case) if exact else None
    for c in contestants:
        if c.name != FLOOR:
            path = folder / "answer.npz"
            rows[c.name].update(c.ask(options.patience, prepare=case, file=str(path)))
            if c.failed is None:
                with np.load(path) as got:
                    rows[c.name].update(errors({k: got[k] for k in got.files}, truth))
    times: dict[str, list[Any]] = {c.name: [] for c in contestants}
    work: dict[str, list[float]] = {c.name: [] for c in contestants}
    deadline = time.monotonic() + options.seconds
    while not ((time.monotonic() > deadline and len(times[FLOOR]) >= 3) or len(times[FLOOR]) >= options.rounds):
        for c in contestants:
            time.sleep(0.002)  # let the threads of the one before fall asleep
            if reply := c.ask(options.patience, run=True):
                times[c.name] += reply.get("times") or [reply["rates"]]
                work[c.name].append(reply.get("cpu", 0.0))
    best = {key: max(rate[key] for rate in times[FLOOR]) for key in times[FLOOR][0]}
    for c in contestants:
        row = rows[c.name]
        if c.failed is not None:
            row["failed"] = c.failed
        elif c.name != FLOOR:
            low, high = np.quantile(times[c.name], [0.25, 0.75]).tolist()
            row |= {
                "times": times[c.name],
                "median": statistics.median(times[c.name]),
                "quartiles": [low, high],
                "cpu": statistics.median(work[c.name]),
                "floor": floor(case, best),
            }
    for row in rows.values():
        if "median" in row and "median" in rows.get(peer, {}):
            row["speed"] = rows[peer]["median"] / row["median"]
    return [row for name, row in rows.items() if name != FLOOR]


def errors(got: dict[str, Any], truth: dict[str, Any] | None) -> dict[str, Any]:
    """Relative to what is exact; or, if nothing is, the numbers themselves."""
    if truth is None:
        return {key: float(value) for key, value in got.items() if value.ndim == 0}
    return {"error": max(float(np.linalg.norm(got[k] - truth[k]) / np.linalg.norm(truth[k])) for k in truth)}


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────


def table(rows: list[dict[str, Any]], peer: str, unit: str, per_run: float) -> str:
    """A case, one line a contestant."""
    known = ("name", "case", "failed", "memory", "times", "median", "quartiles", "cpu", "floor", "speed")
    extra = next((key for row in rows for key in row if key not in known), "")
    title = f"speed of {peer}"
    lines = [
        f"{rows[0]['case']}",
        f"  {'':26}{'median':>11}{'quartiles':>18}{title:>{max(12, len(title) + 2)}}"
        f"{'x floor':>9}{'CPU time':>12}{'memory':>13}{unit:>11}{extra:>10}",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"  {row['name']:26}  left out: {row['failed']}")
            continue
        low, high = (1e3 * t for t in row["quartiles"])
        memory = f"{row['memory'] / 2**20:,.0f} MiB" if row.get("memory") is not None else "?"
        last = f"{row.get(extra, math.nan):{'.1e' if extra == 'error' else '.5f'}}"
        lines.append(
            f"  {row['name']:26}{1e3 * row['median']:>8,.1f} ms{f'{low:,.1f} – {high:,.1f}':>18}"
            f"{row.get('speed', math.nan):>{max(12, len(title) + 2)}.2f}{row['median'] / row['floor']:>9.2f}"
            f"{1e3 * row['cpu']:>9,.1f} ms{memory:>13}{per_run / row['median']:>11,.1f}{last:>10}"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], peer: str, path: str) -> None:
    """Speed against the peer's, a group of bars a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = plt.subplots(figsize=(10, 1 + 0.28 * len(cases) * (len(names) + 1)), layout="constrained")
    for k, name in enumerate(names):
        own = {row["case"]: row["speed"] for row in rows if row["name"] == name and "speed" in row}
        at = [i * (len(names) + 1) + k for i, case in enumerate(cases) if case in own]
        axes.barh(at, list(own.values()), height=0.85, label=name, color=f"C{k}")
    axes.set_yticks([i * (len(names) + 1) + (len(names) - 1) / 2 for i in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=1)
    axes.set(xlabel=f"speed, {peer} = 1")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=160)


def main(
    benchmark: str,
    description: str,
    ours: dict[str, Prepare],
    peers: dict[str, tuple[str, Prepare]],
    cases: dict[str, Case],
    *,
    default: list[str],
    defaults: list[str],
    floor: Callable[[Case, dict[str, float]], float],
    exact: Callable[[Case], dict[str, Any]] | None = None,
    unit: str,
    per_run: Callable[[Case], float],
    seconds: float = 5,
) -> None:
    """The command line of a benchmark. `default` names the cases, `defaults` the peers that run without being asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=default,
        choices=list(cases),
        metavar="CASE",
        help=f"of {', '.join(cases)}; default: %(default)s",
    )
    parser.add_argument("--peers", action="store_true", help="add every implementation that can be imported")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these contestants only")
    parser.add_argument("--threads", type=int, default=processor.threads())
    parser.add_argument("--seconds", type=float, default=seconds, help="how long to measure a case (at least 3 rounds)")
    parser.add_argument("--rounds", type=int, default=200, help="at most this many rounds a case")
    parser.add_argument("--patience", type=float, default=240, help="seconds after which a contestant is left out")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="needs matplotlib")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    everyone = ours | {name: prepare for name, (_, prepare) in peers.items()}
    if options.serve:
        package, _ = peers.get(options.serve, ("", None))
        serve(everyone.get(options.serve), package == "torch", options.threads)
        return

    wanted = [*ours, *(peers if options.peers else defaults)]
    wanted = [name for name in wanted if not options.only or name in options.only]
    missing = [name for name in wanted if name in peers and importlib.util.find_spec(peers[name][0]) is None]
    names = [name for name in wanted if name not in missing]
    peer = next((name for name in names if name in peers), names[0])
    hardware = device()
    print(f"{hardware['cpu']}, {options.threads} threads; NumPy {hardware['numpy']} on {', '.join(hardware['blas'])}")
    if missing:
        print(f'not installed: {", ".join(missing)}   (pip install "minisimclr[peers]")')
    contestants = [Contestant(name, options.threads) for name in [*names, FLOOR]]
    rows: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in tqdm(options.cases, leave=False, disable=None):
                case = {"name": name, **cases[name]}
                rows += (now := measure(contestants, case, floor, exact, peer, options, Path(folder)))
                tqdm.write("\n" + table(now, peer, unit, per_run(case)))
    finally:
        for contestant in contestants:
            contestant.leave()
    if options.json:
        from importlib import metadata

        packages = sorted({peers[name][0] for name in names if name in peers})
        Path(options.json).write_text(
            json.dumps(
                {
                    "benchmark": benchmark,
                    "commit": commit(),
                    "date": time.strftime("%Y-%m-%d"),
                    "device": hardware,
                    "versions": {package: metadata.version(package) for package in packages},
                    "threads": options.threads,
                    "peer": peer,
                    "cases": {name: cases[name] for name in options.cases},
                    "rows": rows,
                },
                indent=1,
            )
            + "\n"
        )
    if options.plot:
        plot(rows, peer, options.plot)
