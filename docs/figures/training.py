"""Draw the figure of chapter 9 beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/training.py

The loss of the CIFAR-10 run in docs/results between its chance level and its floor, and how often an anchor finds its
positive.
"""

from __future__ import annotations

import json

import numpy as np
import style
from matplotlib import pyplot as plt
from style import HERE, INK

RUN = HERE.parent / "results" / "cifar10-jpeg-small"
LOSS, TOP1 = style.GREEN, style.BLUE

style.curves()


def smooth(values: list[float], width: int = 9) -> np.ndarray:
    """A running mean, over fewer values at the ends."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def main() -> None:
    config = json.loads((RUN / "config.json").read_text())
    lines = [json.loads(line) for line in (RUN / "metrics-every-50-steps.jsonl").read_text().splitlines()]
    epochs = [line["step"] / line["steps"] * config["epochs"] for line in lines]
    n, tau = config["batch"], config["temperature"]
    floor = np.log1p((2 * n - 2) * np.exp(-(1 + 1 / (n - 1)) / tau))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    for axes, name, colour in ((left, "loss", LOSS), (right, "top1", TOP1)):
        values = [line[name] for line in lines]
        axes.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.4)
        axes.plot(epochs, smooth(values), color=colour)
        axes.set(xlabel="epoch", xlim=(0, config["epochs"]))
    for height, text in ((lines[0]["chance"], "chance, log(2N − 1)"), (floor, "floor: no input can do better")):
        left.axhline(height, color=INK, linewidth=1, linestyle=":")
        left.text(29.8, height + 0.09, text, ha="right", color=INK, fontsize=9)
    left.set(title=f"NT-Xent, N = {n}, τ = {tau}", ylim=(0, 6.9))
    right.set(title=f"anchors that find their positive among {2 * n - 1}", ylim=(0, 1))
    figure.savefig(HERE / "training.png")


if __name__ == "__main__":
    main()
