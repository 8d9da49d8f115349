"""Draw the curves of the two CIFAR-10 runs in docs/results beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/training.py

The loss between its chance level and its floor, how often an anchor finds its positive, and, where a monitor looked,
kNN on training images that were set aside.
"""

from __future__ import annotations

import json

import numpy as np
import style
from matplotlib import pyplot as plt
from style import HERE, INK

RUNS = {"training": "cifar10-jpeg-small", "training_wide": "cifar10-jpeg-wide"}  # figure -> folder in docs/results
LOSS, TOP1 = style.GREEN, style.BLUE

style.curves()


def smooth(values: list[float], width: int = 9) -> np.ndarray:
    """A running mean, over fewer values at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw(picture: str, folder: str) -> None:
    """Draw the curves of one run."""
    run = HERE.parent / "results" / folder
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics-every-50-steps.jsonl").read_text().splitlines()]
    epochs = [line["step"] / line["steps"] * config["epochs"] for line in lines]
    n, tau = config["batch"], config["temperature"]
    floor = np.log1p((2 * n - 2) * np.exp(-(1 + 1 / (n - 1)) / tau))
    looked = [(epoch, line["knn"]) for epoch, line in zip(epochs, lines) if "knn" in line]
    figure, panels = plt.subplots(1, 3 if looked else 2, figsize=(13 if looked else 10, 3.5))
    for axes, name, colour in ((panels[0], "loss", LOSS), (panels[1], "top1", TOP1)):
        values = [line[name] for line in lines]
        axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(epochs, smooth(values), color=colour)
    for height, text in ((lines[0]["chance"], "chance, log(2N − 1)"), (floor, "floor: no input can do better")):
        panels[0].axhline(height, color=INK, linewidth=1, linestyle=":")
        panels[0].text(0.993 * config["epochs"], height + 0.09, text, ha="right", color=INK, fontsize=9)
    panels[0].set(title=f"NT-Xent, N = {n}, τ = {tau}", ylim=(0, 1.1 * lines[0]["chance"]))
    panels[1].set(title=f"anchors that find their positive among {2 * n - 1}", ylim=(0, 1))
    if looked:
        panels[2].plot(*zip(*looked), "o-", color=TOP1, markersize=4)
        panels[2].set(title="kNN: 200 training images among 1,800", ylim=(0, 1))
    for axes in panels:
        axes.set(xlabel="epoch", xlim=(0, config["epochs"]))
    figure.savefig(HERE / f"{picture}.png")


def main() -> None:
    for picture, folder in RUNS.items():
        draw(picture, folder)


if __name__ == "__main__":
    main()
