"""Draw the figure of chapter 3 beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/convolution.py

Above, where the numbers that one kernel tap reads lie in memory, counted from the array's own strides; below, what
benchmarks/results/conv.json has measured.
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib
import numpy as np
import style
from matplotlib import pyplot as plt
from style import FAINT, HERE, INK, PAPER

RESULTS = HERE.parent.parent / "benchmarks" / "results" / "conv.json"
COLOURS = {
    "slabs": style.GREEN,
    "winograd": style.AMBER,
    "torch channels-last": style.BLUE,
    "torch contiguous": style.GREY,
}
LAYOUTS = {"(N, C, H, W)": (2, 3, 0, 1), "(N, H, W, C)": (2, 0, 1, 3), "(H, W, N, C)": (0, 1, 2, 3)}


def strips(axes: Any) -> None:
    """A batch of 4 maps of 6×6 pixels and 3 channels: what tap (0, 0) reads for the outputs of row 3."""
    H, W, N, C = 6, 6, 4, 3
    asked = np.zeros((H, W, N, C), bool)
    asked[2, :-1] = True  # r + i − 1 = 2, columns s − 1 = 0…4: output 0 meets nothing
    for row, (name, order) in enumerate(LAYOUTS.items()):
        memory = asked.transpose(order).ravel()
        axes.imshow(
            memory[None],
            extent=(0, memory.size, 2.55 - row, 2.05 - row + 1),
            aspect="auto",
            cmap=matplotlib.colors.ListedColormap([PAPER, COLOURS["slabs"]]),
            interpolation="nearest",
        )
        runs = int(np.count_nonzero(np.diff(memory.astype(int), prepend=0) == 1))
        axes.text(-6, 2.8 - row, name, ha="right", va="center", family="monospace")
        axes.text(memory.size + 6, 2.8 - row, f"{runs} piece{'s' * (runs > 1)}", va="center")
    axes.set(
        xlim=(0, H * W * N * C),
        ylim=(0.4, 3.2),
        title="What one tap of the kernel reads for one row of outputs, "
        "in the order of memory (4 maps of 6×6, 3 channels)",
    )
    axes.axis("off")


def bars(axes: Any) -> None:
    result = json.loads(RESULTS.read_text().replace('"direct"', '"slabs"'))  # its former name
    cases = [case for case in result["cases"] if "ch, " in case][:4]
    for k, (name, colour) in enumerate(COLOURS.items()):
        rows = {row["case"]: row for row in result["rows"] if row["name"] == name}
        best = [
            min(r["median"] for r in result["rows"] if r["case"] == case and r["name"].startswith("torch"))
            for case in cases
        ]
        speed = [b / rows[case]["median"] for case, b in zip(cases, best)]
        label = {"slabs": "nine products (slabs)", "winograd": "Winograd"}.get(name, name.replace("torch", "PyTorch,"))
        drawn = axes.bar(np.arange(len(cases)) + 0.2 * (k - 1.5), speed, width=0.18, color=colour, label=label)
        axes.bar_label(drawn, [f"{s:.2f}" for s in speed], fontsize=8, color=INK, padding=1)
    axes.axhline(1, color=FAINT, linewidth=1, zorder=0)
    axes.set_xticks(range(len(cases)), [case.replace("x", "×") for case in cases])
    axes.set(
        title=f"Speed of 3×3 convolutions, forward + backward, 128 maps, "
        f"{result['threads']} thread{'s' * (result['threads'] > 1)} (PyTorch's better layout = 1)",
        yticks=[],
    )
    axes.spines["left"].set_visible(False)
    axes.legend(ncols=4, loc="upper left", fontsize=9, bbox_to_anchor=(0, 0.98))
    axes.set_ylim(0, 1.25 * max(p.get_height() for p in axes.patches))


def main() -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5.6), height_ratios=(1, 1.7), layout="constrained")
    strips(above)
    bars(below)
    figure.savefig(HERE / "convolution.png")


if __name__ == "__main__":
    main()
