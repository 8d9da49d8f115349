"""Draw the figure of chapter 8 beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/schedule.py

Left, the learning rate of a run; right, the share of its length by which each layer moves in one step of SGD and of
LARS, computed from the gradient of a small network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from matplotlib import pyplot as plt
from style import FAINT, HERE, INK

import minisimclr as ms
from minisimclr.data.doodles import draw_doodles

LARS, SGD = style.GREEN, style.RED

style.curves()


def rates(axes: Any, total: int = 1000, warmup: int = 100) -> None:
    steps = np.arange(total + 1)
    axes.plot(steps, [ms.warmup_cosine(int(t), total, warmup, 1.0) for t in steps], color=LARS)
    axes.axvline(warmup, color=FAINT, linewidth=1, linestyle=":")
    axes.text(warmup + 12, 0.03, "W", color=INK)
    axes.annotate("half of the peak\nin the middle of the fall", ((total + warmup) / 2, 0.5), (620, 0.66), color=INK,
                  fontsize=9, arrowprops={"arrowstyle": "-", "color": FAINT})  # fmt: skip
    axes.set(
        xlabel="step t",
        ylabel="learning rate / peak",
        xlim=(0, total),
        ylim=(0, 1.04),
        title=f"warmup_cosine, T = {total}, W = {warmup}",
    )


def moves(axes: Any) -> None:
    """The length of the first step over that of the weights, for each matrix and kernel of a small network."""
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(rng=rng)
    model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    a, b = ms.two_views(draw_doodles(128, seed=0)[0], rng, min_area=0.3)
    model.loss(a, b, temperature=0.1)[0].backward()
    layers = [(name, p) for name, p in model.named_parameters() if p.ndim > 1]
    before = [p.data.copy() for _, p in layers]
    gradients = [p.grad for _, p in layers]
    for name, optimizer, colour in (
        ("SGD, lr 0.1", ms.SGD(model.parameters(), lr=0.1), SGD),
        ("LARS, lr 4.8, trust 0.001", ms.LARS(model.parameters(), lr=4.8, weight_decay=0.0), LARS),
    ):
        for (_, p), old, gradient in zip(layers, before, gradients):
            p.data = old.copy()
            p.grad = gradient
        optimizer.step()
        share = [np.linalg.norm(p.data - old) / np.linalg.norm(old) for (_, p), old in zip(layers, before)]
        axes.semilogy(range(len(layers)), share, "o-", color=colour, label=name, markersize=4, linewidth=1)
    short = [name.replace("encoder.", "").replace(".weight", "").replace("downsample.0", "down") for name, _ in layers]
    axes.set_xticks(range(len(layers)), short, rotation=90, fontsize=8)
    axes.set(title="|step| / |weights| of each layer, first step", ylim=(1e-4, 1))
    axes.legend(fontsize=9)


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7))
    rates(left)
    moves(right)
    figure.savefig(HERE / "schedule.png")


if __name__ == "__main__":
    main()
