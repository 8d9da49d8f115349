"""Weak and strong scaling of a step that processes share through MPI, and a model of the cost for many machines.

    python benchmarks/distributed.py                     # 1 and 2 ranks of one thread each; needs the extra `mpi`
    python benchmarks/distributed.py --ranks 1 2 4 8     # on a machine with more cores
    python benchmarks/distributed.py --predict           # the model alone: 8, 64 and 512 machines; needs no MPI
    python benchmarks/distributed.py --json out.json --plot out.png

Strong scaling: one batch, shared among the ranks. Weak scaling: as many images for each rank, whatever their number.
Each measurement is an `mpiexec` of its own; they take turns, round after round. A rank says how long a step took it,
how much processor time that was, how long it waited for messages, and what it sent. On a busy machine the times are
worthless, because two processes get twice the share of the cores that one gets. The processor time is then what counts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

from minisimclr.collective import ALONE, add_up, share
from minisimclr.ntxent import contrastive_accuracy_on_device
from minisimclr.processor import blas_at_one_thread, keep_freed_memory, set_threads
from minisimclr.training.config import Config, build_model, build_optimizer

STRONG, WEAK = 64, 32  # images of the shared batch, and images for each rank
STEPS, WARM_UP = 6, 2  # steps of a measurement, and steps before it that are not counted

# ── One rank ──────────────────────────────────────────────────────────────────────────────────────


class Counted:
    """Ranks that count: seconds in collectives, bytes that this rank gave, and calls."""

    def __init__(self, ranks: Any) -> None:
        self.ranks, self.rank, self.size = ranks, ranks.rank, ranks.size
        self.seconds, self.bytes, self.calls = 0.0, 0, 0

    def _counted(self, name: str, array: Any) -> Any:
        began = time.perf_counter()
        result = getattr(self.ranks, name)(array)
        self.seconds += time.perf_counter() - began
        self.bytes += array.nbytes
        self.calls += 1
        return result

    def all_gather(self, array: Any) -> Any:
        return self._counted("all_gather", array)

    def all_reduce(self, array: Any) -> Any:
        return self._counted("all_reduce", array)


def work(ranks: Any, batch: int, encoder: str) -> dict[str, float]:
    """Time the steps of this rank."""
    counted = Counted(ranks)
    config = Config(encoder=encoder, batch=batch)
    model = build_model(config, ranks=counted)
    optimizer = build_optimizer(config, model)
    part = share(batch, ranks)
    a, b = np.random.default_rng(ranks.rank).random((2, part.stop - part.start, 32, 32, 3), np.float32)
    times, waits, cpu = [], [], []
    keep_freed_memory()
    with blas_at_one_thread():
        for step in range(WARM_UP + STEPS):
            ranks.all_gather(np.zeros(1))  # all begin together
            counted.seconds, counted.bytes, counted.calls = 0.0, 0, 0
            began, busy = time.perf_counter(), time.process_time()
            loss, za, zb = model.loss(a, b, config.temperature)
            optimizer.backward(loss, lambda gradients: add_up(counted, gradients))
            contrastive_accuracy_on_device(za, zb, counted)
            optimizer.step(0.01)
            optimizer.zero_grad()
            if step >= WARM_UP:
                times.append(time.perf_counter() - began)
                waits.append(counted.seconds)
                cpu.append(time.process_time() - busy)
    began = time.perf_counter()
    for _ in range(50):
        ranks.all_gather(np.zeros(1))
    latency = (time.perf_counter() - began) / 50
    return {
        "seconds": statistics.median(times),
        "processor": statistics.median(cpu),
        "waiting": statistics.median(waits),
        "bytes": counted.bytes,
        "calls": counted.calls,
        "latency": latency,
    }


def worker(options: argparse.Namespace) -> None:
    set_threads(1)
    if options.worker == 1:
        print(json.dumps(work(ALONE, options.batch, options.encoder)))
        return
    from minisimclr.training.distributed import mpi_ranks

    with mpi_ranks() as ranks:
        found = work(ranks, options.batch, options.encoder)
        if ranks.rank == 0:
            print(json.dumps(found))


# ── Turns ─────────────────────────────────────────────────────────────────────────────────────────


def measured(ranks: int, batch: int, encoder: str) -> dict[str, float]:
    """Start the ranks, and return what rank 0 says."""
    mpiexec = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(ranks)]
    command += ["--batch", str(batch), "--encoder", encoder]
    if ranks > 1:
        if mpiexec is None:
            raise SystemExit("needs mpiexec: pip install mpi4py mpich")
        command = [mpiexec, "-n", str(ranks), *command]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def scaling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure both kinds of scaling, in turns, and return a row for each."""
    cases = {
        (kind, ranks): STRONG if kind == "strong" else WEAK * ranks
        for kind in ("strong", "weak")
        for ranks in options.ranks
    }
    found: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for (kind, ranks), batch in cases.items():
            found[kind, ranks].append(measured(ranks, batch, options.encoder))
    rows = []
    for (kind, ranks), batch in cases.items():
        # The fastest round is the one that other work on the machine disturbed least.
        best = min(found[kind, ranks], key=lambda row: row["seconds"])
        row = {
            "kind": kind,
            "ranks": ranks,
            "batch": batch,
            "rounds": [r["seconds"] for r in found[kind, ranks]],
            **best,
        }
        for name, by in (("speedup", "seconds"), ("speedup_by_processor", "processor")):
            lowest = [min(r[by] for r in found[kind, n]) for n in (options.ranks[0], ranks)]
            row[name] = lowest[0] / lowest[1] * (1 if kind == "strong" else ranks / options.ranks[0])
        rows.append(row)
    return rows


# ── The model of the cost ─────────────────────────────────────────────────────────────────────────

# The paper's network and batch: ResNet-50 with the head of two layers, 4,096 images of 224×224.
PARAMETERS = 23_508_032 + 2048 * 2048 + 2048 * 128 + 2 * 2048 + 128
NORMS, CHANNELS = 53 + 2, 26_560 + 2048 + 128  # batch norms, and the sum of their channels
IMAGES, DIMENSIONS = 4096, 128
OPERATIONS = IMAGES * 2 * 3 * 2 * 4.1e9  # two views; a backward pass is two forward passes; a multiply–add is two
MACHINES = {"GPU": 20e12, "two cores": 1e11}  # operations in a second that a machine keeps up: assumed
BANDWIDTH, LATENCY = 1.25e9, 1e-4  # bytes in a second, 10 Gbit/s; seconds of a round of messages: assumed


def predicted(ranks: int) -> dict[str, Any]:
    """Foretell what a step of the paper's size costs each of so many machines: bytes received, rounds, seconds."""
    others = ranks - 1
    received = {
        "gradients": 2 * 4 * PARAMETERS * others / ranks,  # the parts of its slice, then the slices of the others
        "embeddings": 2 * 2 * IMAGES * DIMENSIONS * 4 * others / ranks,  # for the loss and for top-1
        "statistics": 3 * 8 * CHANNELS * (others + min(others, 2)),  # three float64 a channel: all, then their sums
    }
    calls = 2 * NORMS + 2 + 5 + 3 + 1  # norms; gradients; loss; top-1; has a signal come?
    seconds = sum(received.values()) / BANDWIDTH + calls * math.ceil(math.log2(ranks)) * LATENCY
    computing = {name: OPERATIONS / rate / ranks for name, rate in MACHINES.items()}
    efficiency = {name: alone / (alone + seconds) for name, alone in computing.items()}
    return {
        "ranks": ranks,
        "received": received,
        "calls": calls,
        "messages": seconds,
        "computing": computing,
        "efficiency": efficiency,
    }


def show_predicted() -> None:
    print("| machines | gradients | embeddings | statistics | messages | GPU: computing | share | two cores | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for ranks in (8, 64, 512):
        row = predicted(ranks)
        cells = [f"{row['received'][name] / 1e6:,.0f} MB" for name in ("gradients", "embeddings", "statistics")]
        cells.append(f"{row['messages']:.2f} s")
        for name in MACHINES:
            cells += [f"{row['computing'][name]:,.2f} s", f"{100 * row['efficiency'][name]:.0f} %"]
        print(f"| {ranks} | {' | '.join(cells)} |")


# ── Output ────────────────────────────────────────────────────────────────────────────────────────


def show(rows: list[dict[str, Any]]) -> None:
    print("| scaling | ranks | images | s/step | processor, s | speed-up | by processor time | sent | calls |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['kind']} | {row['ranks']} | {row['batch']} | {row['seconds']:.3f} | {row['processor']:.3f} | "
            f"{row['speedup']:.2f} | {row['speedup_by_processor']:.2f} | {row['bytes'] / 1e6:.2f} MB | {row['calls']} |"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    most = max(row["ranks"] for row in rows)
    axis.plot([1, most], [1, most], color="#c9ced6", label="as many times as fast")
    for kind, colour in (("strong", "#2f6fb0"), ("weak", "#d0743c")):
        own = [row for row in rows if row["kind"] == kind]
        for name, style in (("speedup", "o-"), ("speedup_by_processor", "o--")):
            label = f"{kind}, by {'time' if name == 'speedup' else 'processor time'}"
            axis.plot([r["ranks"] for r in own], [r[name] for r in own], style, color=colour, label=label)
    axis.set_xticks(sorted({row["ranks"] for row in rows}))
    axis.set_xlabel("ranks, one thread each")
    axis.set_ylabel("images a second, relative to one")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoder", default="small")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=STRONG, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    if options.predict:
        show_predicted()
        return
    rows = scaling(options)
    show(rows)
    if options.json:
        about = {"encoder": options.encoder, "images": "32×32", "threads": 1, "numpy": np.__version__}
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
