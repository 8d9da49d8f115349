"""Profile of a training step: its time by phase, and by operation.

    python benchmarks/step_profile.py                                   # ResNet-18 with the CIFAR stem, 128 views
    python benchmarks/step_profile.py "small, 512 views" --threads 1
    python benchmarks/step_profile.py --json out.json --plot out.png    # every case

Every operation is timed from outside, in its forward and in its backward pass; one that calls others counts only
what it does itself. "Busy" is the CPU time of all threads as a fraction of the elapsed time of all cores: where it is
low, threads wait. The medians of several steps are shown. Timing itself costs less than a hundredth of a step.
The floors are those of chapter 13: the multiply–adds of all convolutions at this machine's best rate of the matrix
product, and five of the eight passes, those of batch norm, at its rate of copying.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena
from train_step import CASES, DECAY, LR, MOMENTUM, TEMPERATURE, model_of, work

from minisimclr import ntxent, ops, processor, two_views
from minisimclr.engine import autograd
from minisimclr.training.optim import SGD

PHASES = ("views", "forward", "loss", "backward", "update")
SHOWN = 12  # operations in the table; the others are added up
DRAWN = 0.02  # share of a step from which an operation has a bar of its own
PART_OF = {"moments": "batch_norm"}  # operations that are drawn as a part of another one
OF_BATCH_NORM = 5 / 8  # of the passes that train_step.py counts


class Spent(NamedTuple):
    """Elapsed and CPU seconds."""

    wall: float
    cpu: float


class Stopwatch:
    """Adds up the time of named pieces of work. A piece inside another one is taken from the outer one."""

    def __init__(self) -> None:
        self.total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.inside: list[list[float]] = []  # of each piece that is running: what the pieces inside it took

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        self.inside.append([0.0, 0.0])
        began = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            took = time.perf_counter() - began[0], time.process_time() - began[1]
            inner = self.inside.pop()
            for k in (0, 1):
                self.total[name][k] += took[k] - inner[k]
                if self.inside:
                    self.inside[-1][k] += took[k]

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*inputs: Any, **settings: Any) -> Any:
            with self.timing(name):
                return function(*inputs, **settings)

        return timed

    def pull(self, node: Any, gradient: Any) -> list[Any]:
        """Run the vjp of a node, as `autograd.pull` does, with the parts of the gradient that it leaves for later."""
        with self.timing(f"{node.name} backward"):
            return list(pull(node, gradient))


pull = autograd.pull


@contextlib.contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Time every operation that the layers call, forward and backward."""
    with contextlib.ExitStack() as stack:
        for name in ops.__all__:
            if callable(op := getattr(ops, name)) and not isinstance(op, type):
                stack.enter_context(mock.patch.object(ops, name, watch.wrapped(name, op)))
        at_once = watch.wrapped("nt_xent", ntxent.nt_xent_at_once)
        stack.enter_context(mock.patch.object(ntxent, "nt_xent_at_once", at_once))
        stack.enter_context(mock.patch.object(autograd, "pull", watch.pull))
        yield


# ── One case ──────────────────────────────────────────────────────────────────────────────────────


def profile(case: dict[str, Any], method: str, steps: int) -> tuple[dict[str, Spent], dict[str, Spent]]:
    """Return the medians over the steps, of each phase and of each operation."""
    model = model_of(case, method)
    optimizer = SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    side, batch = case["size"], case["views"] // 2
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    phases, operations = [], []
    with processor.blas_at_one_thread():
        for step in range(steps + 1):  # the first one warms up
            phase, watch = Stopwatch(), Stopwatch()
            with phase.timing("views"):
                a, b = two_views(images, np.random.default_rng(step), side)
            with watched(watch):
                with phase.timing("forward"):
                    _, z = model(np.concatenate([a, b]), train=True)
                    za, zb = z[:batch], z[batch:]
                with phase.timing("loss"):
                    loss = model.objective(za, zb, TEMPERATURE)
                with phase.timing("backward"):
                    loss.backward()
            with phase.timing("update"):
                optimizer.step()
                optimizer.zero_grad()
            phases.append(phase.total)
            operations.append(watch.total)
    return median(phases[1:]), median(operations[1:])


def median(steps: list[dict[str, list[float]]]) -> dict[str, Spent]:
    """Return the median of each name over the steps."""
    names = dict.fromkeys(name for step in steps for name in step)
    return {
        name: Spent(*(statistics.median(step.get(name, [0.0, 0.0])[k] for step in steps) for k in (0, 1)))
        for name in names
    }


# ── Table and figure ──────────────────────────────────────────────────────────────────────────────


def table(title: str, phases: dict[str, Spent], operations: dict[str, Spent], threads: int) -> str:
    """Write both as lines of text: milliseconds, the share of the step, and how busy the cores were."""
    step = sum(phases[name].wall for name in PHASES)
    lines = [f"{title}: {1e3 * step:,.0f} ms a step", f"  {'':28}{'ms':>9}{'share':>8}{'busy':>7}"]

    def line(name: str, spent: Spent) -> str:
        busy = spent.cpu / (threads * spent.wall) if spent.wall else 0
        return f"  {name:28}{1e3 * spent.wall:9.1f}{spent.wall / step:8.1%}{busy:7.0%}"

    lines += [line(name, phases[name]) for name in PHASES]
    ranked = sorted(operations.items(), key=lambda item: -item[1].wall)
    lines += ["", *(line(name, spent) for name, spent in ranked[:SHOWN])]
    if rest := [spent for _, spent in ranked[SHOWN:]]:
        lines.append(line(f"{len(rest)} others", Spent(*(sum(spent[k] for spent in rest) for k in (0, 1)))))
    return "\n".join(lines)


def floors(case: dict[str, Any], best: dict[str, float]) -> dict[str, float]:
    """Return the seconds that convolutions and batch norms take at least."""
    needed = work(case)
    return {"conv2d": needed["products"] / best["gemm"], "batch_norm": OF_BATCH_NORM * needed["bytes"] / best["copy"]}


def bars(rows: dict[str, Any]) -> dict[str, list[float]]:
    """Return the milliseconds of each operation, [forward, backward]; views and update have no direction."""
    own: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, (wall, _) in rows["operations"].items():
        operation = name.removesuffix(" backward")
        own[PART_OF.get(operation, operation)][name.endswith(" backward")] += 1e3 * wall
    for phase in ("views", "update"):
        own[phase][0] = 1e3 * rows["phases"][phase][0]
    step = 1e3 * sum(wall for wall, _ in rows["phases"].values())
    own["all else"][0] = max(0.0, step - sum(map(sum, own.values())))
    return dict(own)


def drawn(cases: list[dict[str, list[float]]]) -> list[str]:
    """Return the operations that are large in some case, the largest first; the small ones join "all else"."""
    shares = defaultdict(list)
    for own in cases:
        for name, times in own.items():
            shares[name].append(sum(times) / sum(map(sum, own.values())))
    kept = [name for name in shares if name != "all else" and max(shares[name]) >= DRAWN]
    for own in cases:
        for name in own.keys() - kept - {"all else"}:
            own["all else"][0] += sum(own[name])
    return [*sorted(kept, key=lambda name: -sum(shares[name])), "all else"]


def plot(found: dict[str, Any], path: str) -> None:
    """Draw a panel for each case: a bar for each operation, forward and backward, and its floor as a mark."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "figures"))
    import style
    from matplotlib import pyplot as plt

    cases = {case: bars(rows) for case, rows in found.items()}
    names = drawn(list(cases.values()))
    size = (7.6, 0.5 + len(cases) * (0.75 + 0.27 * len(names)))
    figure, axes = plt.subplots(len(cases), 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (case, own) in zip(axes[:, 0], cases.items()):
        step = sum(map(sum, own.values()))
        forward, backward = (np.array([own.get(name, [0.0, 0.0])[k] for name in names]) for k in (0, 1))
        one_way = np.isin(names, ["views", "update", "all else"])
        axis.barh(names, forward, color=np.where(one_way, style.FAINT, style.BLUE), height=0.66)
        axis.barh(names, backward, left=forward, color=style.AMBER, height=0.66)
        floor = np.array([1e3 * found[case].get("floor", {}).get(name, 0.0) for name in names])
        for k, total in enumerate(forward + backward):
            place = max(total, floor[k]) + 0.015 * step
            axis.text(place, k, f"{total:,.0f} ms, {total / step:.0%}", va="center", fontsize=9)
            if floor[k]:
                axis.plot([floor[k]] * 2, [k - 0.45, k + 0.45], color=style.INK, linewidth=2)
        axis.set(title=f"{case}: {step:,.0f} ms", xlim=(0, 1.2 * max(*forward + backward, *floor)))
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_locator(plt.MaxNLocator(5))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.invert_yaxis()
    axes[-1, 0].set_xlabel("milliseconds of a step")
    keys = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (style.BLUE, style.AMBER, style.FAINT)]
    keys.append(plt.Line2D([], [], color=style.INK, marker="|", linestyle="", markersize=11, markeredgewidth=2))
    labels = ["forward", "backward", "neither", "floor: the plain products and passes"]
    figure.legend(keys, labels, loc="outside upper left", ncols=4, fontsize=9)
    figure.savefig(path)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {'; '.join(CASES)}")
    parser.add_argument("--method", default="auto", help="the forms, as Config has them (default: auto)")
    parser.add_argument("--threads", type=int, default=processor.threads())
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plot", help="where to draw them (needs matplotlib)")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {'; '.join(CASES)}")
    processor.set_threads(options.threads)
    processor.keep_freed_memory()  # as `pretrain` does
    usual = list(CASES)[:3] if options.json or options.plot else list(CASES)[:1]
    found, best = {}, arena.rates(options.threads)
    for name in options.cases or usual:
        phases, operations = profile(CASES[name], options.method, options.steps)
        print(table(name, phases, operations, options.threads) + "\n", flush=True)
        best = {key: max(best[key], rate) for key, rate in arena.rates(options.threads).items()}
        found[name] = {"phases": phases, "operations": operations}
    for name, rows in found.items():
        rows["floor"] = floors(CASES[name], best)
    if options.json:
        about = {"device": arena.device(), "threads": options.threads, "method": options.method, "rates": best}
        arena.write(str(options.json), "step_profile", {**about, "cases": found})
    if options.plot:
        plot(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
