"""Growth of the cost of a training step with batch, width, depth and image side.

    python benchmarks/growth.py                          # about three minutes on one core
    python benchmarks/growth.py --json out.json --plot out.png

One thing is varied at a time around the same network: a stem and three stages of one basic block each, 32 channels,
64 views of 32×32, convolution as a sum of products. Time is the CPU time of one thread, the least of several steps.
Memory is what the graph keeps for the backward pass (`saved_bytes`). The exponents are fitted on all sizes by least
squares in the logarithms. Beside them stand those that one expects where products and maps are all that counts: time
grows with the number of multiply–adds, memory with the number of activations.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.engine.ledger import saved_bytes
from minisimclr.resnet import BasicBlock, ResNet
from minisimclr.simclr import ProjectionHead, SimCLR
from minisimclr.training.optim import SGD

USUAL = {"views": 64, "channels": 32, "blocks": 1, "side": 32}
VARIED = {
    "views": (32, 64, 128, 256, 512),
    "channels": (16, 32, 64, 128, 256),
    "blocks": (1, 2, 4, 8),
    "side": (16, 32, 64, 128),
}
EXPECTED = {"views": (1, 1), "channels": (2, 1), "blocks": (1, 1), "side": (2, 2)}  # exponents of time and of memory
ABOUT = {
    "views": "views in a batch",
    "channels": "channels of the first stage",
    "blocks": "blocks in a stage",
    "side": "side of the images, pixels",
}
REPEATS = 4


def step_cost(views: int, channels: int, blocks: int, side: int) -> tuple[float, int]:
    """One step: the CPU time of one thread in seconds, and the bytes that its graph keeps."""
    rng = np.random.default_rng(0)
    encoder = ResNet(BasicBlock, (blocks,) * 3, base=channels, stem="cifar", rng=rng)
    model = SimCLR(encoder, ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    optimizer = SGD(model.parameters(), 0.05)
    a, b = rng.random((2, views // 2, side, side, 3), np.float32)
    times, kept = [], 0
    for _ in range(REPEATS):
        started = time.process_time()
        loss, _, _ = model.loss(a, b, 0.1)
        forward = time.process_time() - started
        kept = sum(saved_bytes(loss).values())  # not timed
        started = time.process_time()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(forward + time.process_time() - started)
    return min(times), kept


def exponent(sizes: list[int], costs: list[float]) -> float:
    """k of the best fit cost ∝ sizeᵏ."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def plot(found: dict[str, dict[str, Any]], path: str) -> None:
    """A column for each thing varied: time above, memory below, and the expected slope dashed."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs" / "figures"))
    import style
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(10, 4.6), sharex="col", sharey="row", layout="constrained")
    for column, (name, rows) in enumerate(found.items()):
        sizes = np.array(rows["sizes"], float)
        for line, (what, scale, colour) in enumerate((("time", 1e3, style.BLUE), ("memory", 2**-20, style.GREEN))):
            axis, costs, wanted = axes[line, column], scale * np.array(rows[what]), rows[f"expected {what}"]
            axis.loglog(sizes, costs[-1] * (sizes / sizes[-1]) ** wanted, "--", color=style.GREY, linewidth=1.2)
            axis.loglog(sizes, costs, "o-", color=colour, markersize=5)
            axis.set_title(f"exponent {rows[f'fitted {what}']:.2f}, expected {wanted}", fontsize=10)
            axis.grid(axis="y", visible=True)
        axes[1, column].set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes[1, column].minorticks_off()
        axes[1, column].set_xlabel(ABOUT[name])
    axes[0, 0].set_ylabel("CPU time of a step, ms")
    axes[1, 0].set_ylabel("kept for backward, MiB")
    for axis in axes[:, 0]:
        axis.yaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--plot", help="where to draw them (needs matplotlib)")
    options = parser.parse_args()
    processor.set_threads(1)
    processor.keep_freed_memory()  # as `pretrain` does
    found: dict[str, dict[str, Any]] = {}
    print(f"{'':32}{'size':>6}{'CPU time':>12}{'kept':>12}   exponents: time, memory (expected)")
    for name, sizes in VARIED.items():
        with processor.blas_at_one_thread():
            costs = [step_cost(**{**USUAL, name: size}) for size in sizes]
        rows: dict[str, Any] = {"sizes": list(sizes), "time": [c[0] for c in costs], "memory": [c[1] for c in costs]}
        for what, wanted in zip(("time", "memory"), EXPECTED[name]):
            rows |= {f"fitted {what}": exponent(rows["sizes"], rows[what]), f"expected {what}": wanted}
        found[name] = rows
        for size, (seconds, kept) in zip(sizes, costs):
            print(
                f"{ABOUT[name] if size == sizes[0] else '':32}{size:6}{1e3 * seconds:9.1f} ms{kept / 2**20:8.1f} MiB",
                end="\n" if size != sizes[-1] else "",
            )
        print(
            f"   {rows['fitted time']:.2f}, {rows['fitted memory']:.2f} ({EXPECTED[name][0]}, {EXPECTED[name][1]})",
            flush=True,
        )
    if options.json:
        arena.write(str(options.json), "growth", {"device": arena.device(), "usual": USUAL, "growth": found})
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
