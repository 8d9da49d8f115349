"""The arena of the benchmarks: each contestant in a process of its own, taking turns, one run each per round.

So neither the memory nor the threads of one touch another's, and a slow minute of the machine slows all of them.
CPU time is the work done, summed over threads: on a busy machine, with one thread, it is the better measure (threads
that wait for others by spinning, as OpenMP's do, are counted as working).
A benchmark gives `main` its contestants: functions `prepare(case) -> (run, answer)`. `run()` does the work and
returns when its result is finished. `answer(result)` makes a dictionary of NumPy arrays or numbers of it, which can
be compared with the others'.
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
import random
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl
from tqdm import tqdm

from minisimclr import processor
from minisimclr.ntxent import tiled

Case = dict[str, Any]
Prepare = Callable[[Case], tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]]
FLOOR = "floor"  # the contestant that measures the machine
TURN = 0.2  # seconds of calls at a stretch: in less, a processor that has just slept is still waking up
REST = 0.08  # seconds between turns; OpenBLAS and OpenMP keep their threads spinning for 50 ms after a call
LEAST_ROUNDS = 3
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
        with processor.blas_at_one_thread():
            return fastest(lambda: processor.parallel(task, items))

    return {
        "gemm": threads * 20 * 512 * 256 * 256 / best(multiply, products),
        "copy": source.nbytes / best(lambda pair: np.copyto(pair[1], pair[0]), copies),
    }


def fastest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest call within a turn: the first ones wake the processor up."""
    times = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < TURN:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


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
                reply["times"], reply["cpu"], reply["faults"] = turn(run)
        except Exception as exception:
            text = f"{type(exception).__name__}: {exception}" if str(exception) else type(exception).__name__
            reply["failed"] = text.splitlines()[0][:120]
        print(json.dumps(reply), file=answers, flush=True)


def turn(run: Any) -> tuple[list[float], float, float]:
    """Seconds of each call for a fifth of a second, at least one; CPU seconds and page faults a call.

    Of several calls the first warms the caches up and is not counted.
    """
    times: list[float] = []
    others = getattr(run, "others", lambda: 0.0)  # CPU seconds of processes that a contestant started
    begin, work, faults = time.perf_counter(), time.process_time() + others(), page_faults()
    while not times or time.perf_counter() - begin < TURN:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    count = len(times)
    return times[1:] or times, (time.process_time() + others() - work) / count, (page_faults() - faults) / count


def page_faults() -> int:
    """The pages of memory that this process has met for the first time (0 on Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def extra_memory(run: Any) -> int | None:
    """The bytes by which one call pushes up this process's resident memory (Linux only)."""
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    tiled.release()  # what waits for the next call counts as part of the call
    tiled._scratch = threading.local()  # and so does what each thread holds
    getattr(run, "forget", lambda: None)()  # and the gradients of the call before
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
        """The answer; or {} until the next case, if the contestant fails, and for ever if it dies or takes too long."""
        if "prepare" in question and self.process.poll() is None:
            self.failed = None
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
                self.process.wait()
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
    """The processor and the libraries, without names of hosts or folders."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    models = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    pools = [pool for pool in threadpoolctl.threadpool_info() if "numpy" in pool["filepath"]]
    return {
        "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(),
        "python": platform.python_version(), "numpy": np.__version__,
        "blas": [f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}" for pool in pools],
    }  # fmt: skip


def commit() -> str:
    """The last commit of the package or of a benchmark; with "-dirty" if one of them has changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()

    code = ("--", "../minisimclr", "*.py")
    changed = git("status", "--porcelain", *code)
    return (git("log", "-1", "--format=%h", "--abbrev=12", *code) or "unknown") + ("-dirty" if changed else "")


def announce(threads: int, missing: list[str]) -> dict[str, Any]:
    """Print the device and the contestants that are not installed; return the device."""
    hardware = device() | {"load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
    print(f"{hardware['cpu']}, {threads} threads; NumPy {hardware['numpy']} on {', '.join(hardware['blas'])}")
    if missing:
        print(f'not installed: {", ".join(missing)}   (pip install ".[peers]")')
    return hardware


def versions(packages: set[str]) -> dict[str, str]:
    return {package: metadata.version(package) for package in sorted(packages)}


def write(path: str, benchmark: str, about: dict[str, Any]) -> None:
    """A benchmark's results as JSON, with commit and date."""
    about = {"benchmark": benchmark, "commit": commit(), "date": time.strftime("%Y-%m-%d %H:%M"), **about}
    part = Path(f"{path}.part")
    part.write_text(json.dumps(about, indent=1) + "\n")
    part.replace(path)


# ── Rounds ────────────────────────────────────────────────────────────────────────────────────────


class Rules(NamedTuple):
    """The demands of a benchmark on every case."""

    floor: Callable[[Case, dict[str, float]], float]  # seconds that this machine would need at least, at its best rates
    exact: Callable[[Case], dict[str, Any]] | None  # the result in float64, if there is something to compare with
    peer: str  # the contestant whose speed counts as 1
    options: argparse.Namespace
    folder: Path  # answers go from process to process as files in here


def measure(contestants: list[Contestant], case: Case, rules: Rules) -> list[dict[str, Any]]:
    """One row for each contestant: times, memory and, if there is something exact to compare with, the error."""
    rows = prepare_all(contestants, case, rules)
    times, work = take_turns(contestants, rules.options)
    rates_seen = times.pop(FLOOR)
    best = {key: max(rate[key] for rate in rates_seen) for key in rates_seen[0]}
    for c in contestants:
        if c.failed is not None and c.name != FLOOR:
            rows[c.name]["failed"] = c.failed
        elif c.name != FLOOR:
            rows[c.name] |= {
                "times": [time for turn in times[c.name] for time in turn],
                "turns": [statistics.median(turn) for turn in times[c.name]],
                "median": statistics.median(statistics.median(turn) for turn in times[c.name]),
                "quartiles": np.quantile([time for turn in times[c.name] for time in turn], [0.25, 0.75]).tolist(),
                "cpu": statistics.median(cpu for cpu, _ in work[c.name]),
                "faults": statistics.median(faults for _, faults in work[c.name]),
                "floor": rules.floor(case, best),
            }
    usual = rows.get(rules.peer, {})
    for row in rows.values():
        if "median" in usual and "median" in row:
            row["speed"] = 1 / ratio(row, usual)
    return list(rows.values())


def ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    """The time of a row as a fraction of another's: the median over the rounds, in each of which both had a turn."""
    pairs = list(zip(row.get("turns", []), other.get("turns", [])))
    return statistics.median(a / b for a, b in pairs) if pairs else float(row["median"] / other["median"])


def prepare_all(contestants: list[Contestant], case: Case, rules: Rules) -> dict[str, dict[str, Any]]:
    """Each contestant's answer to one call, compared with the exact result; afterwards all are ready to be timed."""
    rows: dict[str, dict[str, Any]] = {}
    truth = rules.exact(case) if rules.exact else None
    path = rules.folder / "answer.npz"
    for c in contestants:
        if c.name == FLOOR:
            continue
        rows[c.name] = {"name": c.name, "case": case["name"]}
        rows[c.name] |= c.ask(rules.options.patience, prepare=case, file=str(path))
        if c.failed is None:
            with np.load(path) as got:
                rows[c.name] |= errors({k: got[k] for k in got.files}, truth)
    return rows


def take_turns(
    contestants: list[Contestant], options: argparse.Namespace
) -> tuple[dict[str, list[Any]], dict[str, list[tuple[float, float]]]]:
    """The times of each contestant's calls, turn by turn (of the floor: the rates); CPU seconds and faults a call."""
    times: dict[str, list[Any]] = {c.name: [] for c in contestants}
    work: dict[str, list[tuple[float, float]]] = {c.name: [] for c in contestants}
    deadline = time.monotonic() + options.seconds
    rounds = 0
    while rounds < options.rounds and (rounds < LEAST_ROUNDS or time.monotonic() <= deadline):
        rounds += 1
        for c in in_any_order(contestants, rounds):
            time.sleep(REST)  # let the threads of the one before fall asleep
            if reply := c.ask(options.patience, run=True):
                times[c.name].append(reply["times"] if "times" in reply else reply["rates"])
                work[c.name].append((reply.get("cpu", 0.0), reply.get("faults", 0.0)))
    return times, work


def in_any_order(contestants: list[Contestant], rounds: int) -> list[Contestant]:
    """The contestants in another order each round, so that nobody always comes after the same one."""
    return random.Random(rounds).sample(contestants, len(contestants))


def errors(got: dict[str, Any], truth: dict[str, Any] | None) -> dict[str, Any]:
    """Relative to what is exact; or, if nothing is, the numbers themselves."""
    if truth is None:
        return {key: float(value) for key, value in got.items() if value.ndim == 0}
    return {"error": max(float(np.linalg.norm(got[k] - truth[k]) / np.linalg.norm(truth[k])) for k in truth)}


# ── The output ────────────────────────────────────────────────────────────────────────────────────


def table(rows: list[dict[str, Any]], peer: str, unit: str, per_run: float) -> str:
    """A case, one line a contestant."""
    known = (
        "name",
        "case",
        "failed",
        "memory",
        "times",
        "median",
        "quartiles",
        "cpu",
        "faults",
        "floor",
        "speed",
        "turns",
    )
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


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def read_options(description: str, cases: dict[str, Case], default: list[str], seconds: float) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"of {', '.join(cases)}; default: %(default)s"
    parser.add_argument("--cases", nargs="+", default=default, choices=list(cases), metavar="CASE", help=names)
    parser.add_argument("--peers", action="store_true", help="add every implementation that can be imported")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these contestants only")
    parser.add_argument("--threads", type=int, default=processor.threads())
    parser.add_argument("--seconds", type=float, default=seconds, help="how long to measure a case (at least 3 rounds)")
    parser.add_argument("--rounds", type=int, default=200, help="at most this many rounds a case")
    parser.add_argument("--patience", type=float, default=240, help="seconds after which a contestant is left out")
    parser.add_argument("--json", metavar="PATH")
    parser.add_argument("--plot", metavar="PATH", help="needs matplotlib")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose(
    names: list[str], peers: dict[str, tuple[str, Prepare]], only: list[str] | None
) -> tuple[list[str], list[str]]:
    """The contestants that can run here, and those whose package is not installed."""
    wanted = [name for name in names if not only or name in only]
    missing = [name for name in wanted if name in peers and importlib.util.find_spec(peers[name][0]) is None]
    return [name for name in wanted if name not in missing], missing


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
    options = read_options(description, cases, default, seconds)
    if options.serve:
        package, prepare = peers.get(options.serve) or ("", ours.get(options.serve))
        return serve(prepare, package == "torch", options.threads)
    names, missing = choose([*ours, *(peers if options.peers else defaults)], peers, options.only)
    packages = {name: peers[name][0] for name in names if name in peers}
    peer = next(iter(packages), names[0])
    hardware = announce(options.threads, missing)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        rules = Rules(floor, exact, peer, options, Path(folder))
        contestants = [Contestant(name, options.threads) for name in [*names, FLOOR]]
        for contestant in contestants:
            stack.callback(contestant.leave)
        for name in tqdm(options.cases, leave=False, disable=None):
            rows += (now := measure(contestants, {"name": name, **cases[name]}, rules))
            tqdm.write("\n" + table(now, peer, unit, per_run(cases[name])))
            if options.json:  # what is measured is stored, also if the next case does not end
                about = {"device": hardware, "versions": versions(set(packages.values())), "threads": options.threads}
                about |= {"peer": peer, "cases": {name: cases[name] for name in options.cases}}
                about["complete"] = name == options.cases[-1]
                write(options.json, benchmark, {**about, "rows": rows})
    if options.plot:
        plot(rows, peer, options.plot)
