"""Growth of the cost of each part of the program with each of its sizes.

    python benchmarks/growth.py                          # about five minutes on one core
    python benchmarks/growth.py --parts step views       # of: step, NT-Xent, views, kNN, linear probe
    python benchmarks/growth.py --json out.json --plot out.png

One size of a part is varied at a time, the others stay as they are. Time is the CPU time of one thread, the least of
several calls. Memory is what a step keeps for its backward pass (`saved_bytes`), and of the other parts the most that a
call holds at a time beyond its inputs. The exponents are fitted on all sizes by least squares in the logarithms. Beside
them stand those that one expects where products and maps are all that counts. Last, each part runs on one thread and on
two, and the gain is that in time on the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.engine.ledger import saved_bytes
from minisimclr.evaluation import knn_accuracy, linear_probe
from minisimclr.ntxent import tiled
from minisimclr.resnet import BasicBlock, ResNet
from minisimclr.simclr import ProjectionHead, SimCLR
from minisimclr.training.optim import SGD
from minisimclr.views import two_views

REPEATS = 3
Sizes = dict[str, int]
Call = Callable[[], Any]


class Varied(NamedTuple):
    """A size: what it is, the values that it takes, and the exponents of time and memory that one expects."""

    about: str
    values: tuple[int, ...]
    time: float
    memory: float


class Part(NamedTuple):
    """A part of the program: what makes a call of it, the sizes of a usual call, and those that are varied."""

    prepare: Callable[..., Call]
    usual: Sizes
    varied: dict[str, Varied]


# ── The parts ─────────────────────────────────────────────────────────────────────────────────────


def step(views: int, channels: int, blocks: int, side: int) -> Call:
    """A whole step of a small network: a stem of stride 1 and three stages. The call returns its loss."""
    rng = np.random.default_rng(0)
    encoder = ResNet(BasicBlock, (blocks,) * 3, base=channels, stem="cifar", rng=rng)
    model = SimCLR(encoder, ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    optimizer = SGD(model.parameters(), 0.05)
    a, b = rng.random((2, views // 2, side, side, 3), np.float32)

    def call() -> Any:
        loss, _, _ = model.loss(a, b, 0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    call.kept = lambda: sum(saved_bytes(model.loss(a, b, 0.1)[0]).values())  # type: ignore[attr-defined]
    return call


def loss(images: int, d: int) -> Call:
    """NT-Xent with its gradient, in tiles, E computed again: the form for any number of images."""
    za, zb = np.random.default_rng(0).standard_normal((2, images, d), np.float32)
    return lambda: tiled.value_and_grad(za, zb, 0.1, keep_bytes=0)


def views(images: int, side: int) -> Call:
    """Two views of every image, as large as the image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, side, side, 3), np.uint8)
    return lambda: two_views(pixels, np.random.default_rng(1), side, 0.5)


def features(images: int, d: int) -> tuple[Any, Any]:
    """Features of ten classes, which overlap."""
    rng = np.random.default_rng([images, d])
    labels = rng.integers(0, 10, images)
    centres = np.random.default_rng(d).standard_normal((10, d))
    return (centres[labels] + 3 * rng.standard_normal((images, d))).astype(np.float32), labels


def neighbours(known: int, asked: int, d: int) -> Call:
    bank, query = features(known, d), features(asked, d)
    return lambda: knn_accuracy(*bank, *query)


def probe(images: int, d: int) -> Call:
    known, new = features(images, d), features(1000, d)
    return lambda: linear_probe(*known, *new)


PARTS = {
    "step": Part(step, {"views": 64, "channels": 32, "blocks": 1, "side": 32}, {
        "views": Varied("views in a batch", (32, 64, 128, 256, 512), 1, 1),
        "channels": Varied("channels of the first stage", (16, 32, 64, 128, 256), 2, 1),
        "blocks": Varied("blocks in a stage", (1, 2, 4, 8), 1, 1),
        "side": Varied("side of the images, pixels", (16, 32, 64, 128), 2, 2),
    }),
    "NT-Xent": Part(loss, {"images": 2048, "d": 128}, {
        "images": Varied("images in a batch, N", (1024, 2048, 4096, 8192), 2, 1),
        "d": Varied("dimensions of z", (64, 128, 256, 512), 1, 1),
    }),
    "views": Part(views, {"images": 256, "side": 32}, {
        "images": Varied("images", (128, 256, 512, 1024, 2048), 1, 1),
        "side": Varied("side, pixels", (32, 64, 128, 256), 2, 2),
    }),
    "kNN": Part(neighbours, {"known": 10_000, "asked": 1000, "d": 128}, {
        "known": Varied("images that are known", (5_000, 10_000, 20_000, 40_000), 1, 1),
        "asked": Varied("images that are asked", (500, 1000, 2000, 4000), 1, 0),  # 100 of them at a time
        "d": Varied("dimensions of h", (64, 128, 256, 512), 1, 1),
    }),
    "linear probe": Part(probe, {"images": 4000, "d": 128}, {
        "images": Varied("images", (2000, 4000, 8000, 16_000), 1, 1),
        "d": Varied("dimensions of h", (32, 64, 128, 256), 1, 1),
    }),
}  # fmt: skip


# ── Measuring ─────────────────────────────────────────────────────────────────────────────────────


def costs_of(calls: list[Call]) -> list[tuple[float, int]]:
    """Of each call the CPU time of one thread in seconds, the least of several rounds; and the bytes that it holds.

    The calls take turns, so that a slow minute of the machine slows all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS + 1):
        for call, own in zip(calls, times):
            started = time.process_time()
            call()
            own.append(time.process_time() - started)
    return [(min(own[1:]), held_by(call)) for call, own in zip(calls, times)]  # the first round meets new memory


def held_by(call: Call) -> int:
    if hasattr(call, "kept"):
        return int(call.kept())
    tracemalloc.start()
    call()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def gain_of_two_threads(call: Call) -> float:
    """Time on the clock on one thread, of that on two: medians of calls that take turns."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(5):
        for count, own in times.items():
            processor.set_threads(count)
            call()  # wakes the threads up
            started = time.perf_counter()
            call()
            own.append(time.perf_counter() - started)
    processor.set_threads(1)
    return float(np.median(times[1]) / np.median(times[2]))


def exponent(sizes: list[int], costs: list[float]) -> float:
    """k of the best fit cost ∝ sizeᵏ."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def vary(part: Part, name: str) -> dict[str, Any]:
    """The costs of a part at each value of one of its sizes, and the exponents."""
    varied = part.varied[name]
    costs = costs_of([part.prepare(**{**part.usual, name: size}) for size in varied.values])
    rows: dict[str, Any] = {
        "sizes": list(varied.values),
        "time": [seconds for seconds, _ in costs],
        "memory": [held for _, held in costs],
    }
    for what, expected in (("time", varied.time), ("memory", varied.memory)):
        rows |= {f"fitted {what}": exponent(rows["sizes"], rows[what]), f"expected {what}": expected}
    return rows


# ── The output ────────────────────────────────────────────────────────────────────────────────────


def shown(about: str, rows: dict[str, Any]) -> str:
    """A line for each value, the exponents at the end of the last."""
    lines = [
        f"  {about if k == 0 else '':30}{size:8,}{1e3 * seconds:11,.1f} ms{held / 2**20:10,.1f} MiB"
        for k, (size, seconds, held) in enumerate(zip(rows["sizes"], rows["time"], rows["memory"]))
    ]
    fitted, expected = (f"{rows[f'{kind} time']:.2f}, {rows[f'{kind} memory']:.2f}" for kind in ("fitted", "expected"))
    return "\n".join(lines) + f"   {fitted} ({expected.replace('.00', '')})"


def plot(found: dict[str, dict[str, Any]], path: str) -> None:
    """A row for each part, a panel for each of its sizes: time and memory as multiples of the first, log–log."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "figures"))
    import style
    from matplotlib import pyplot as plt

    columns = max(len(own) for own in found.values())
    figure, axes = plt.subplots(
        len(found), columns, figsize=(10, 2.1 * len(found)), layout="constrained", squeeze=False
    )
    for line, (part, own) in zip(axes, found.items()):
        for axis in line[len(own) :]:
            axis.set_axis_off()
        for axis, (name, rows) in zip(line, own.items()):
            sizes = np.array(rows["sizes"], float)
            for what, colour in (("time", style.BLUE), ("memory", style.GREEN)):
                costs, wanted = np.array(rows[what]), rows[f"expected {what}"]
                axis.loglog(sizes, (sizes / sizes[0]) ** wanted, "--", color=style.GREY, linewidth=1.2)
                axis.loglog(sizes, costs / costs[0], "o-", color=colour, markersize=4, label=what)
            axis.set_title(f"time {rows['fitted time']:.2f}, memory {rows['fitted memory']:.2f}", fontsize=9)
            axis.set_xticks(sizes, [f"{size:,.0f}" for size in sizes], fontsize=8)
            axis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.grid(axis="y", visible=True)
            axis.set_xlabel(PARTS[part].varied[name].about, fontsize=9)
        line[0].set_ylabel(f"{part}\ntimes the first", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plot", help="where to draw them (needs matplotlib)")
    options = parser.parse_args()
    processor.set_threads(1)
    processor.keep_freed_memory()  # as `pretrain` does
    found: dict[str, dict[str, Any]] = {}
    gains: dict[str, float] = {}
    with processor.blas_at_one_thread():
        for name in options.parts:
            part, found[name] = PARTS[name], {}
            print(f"{name:32}{'size':>8}{'CPU time':>14}{'memory':>14}   exponents: time, memory (expected)")
            for size, varied in part.varied.items():
                found[name][size] = vary(part, size)
                print(shown(varied.about, found[name][size]), flush=True)
            gains[name] = gain_of_two_threads(part.prepare(**part.usual))
            print(f"  two threads are {gains[name]:.2f} times as fast as one\n", flush=True)
    if options.json:
        usual = {name: PARTS[name].usual for name in found}
        about = {"device": arena.device(), "usual": usual, "growth": found, "gain of two threads": gains}
        arena.write(str(options.json), "growth", about)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
