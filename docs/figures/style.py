"""The style of all figures that matplotlib draws: ink, colours and sizes.

A figure has white paper of its own, so that it is legible on a light page, on a dark one and in print. The six colours
differ in lightness, too, so that a printer without colour tells them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
INK, SOFT, FAINT, PAPER = "#333a45", "#6e7781", "#c9ced6", "#eceff3"
GREEN, RED, BLUE, AMBER, PURPLE, GREY = "#0b6e4f", "#d1495b", "#3a6ea5", "#e09f3e", "#7a5195", "#8c8c8c"

plt.rcParams.update({
    "font.size": 10, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "axes.titlelocation": "left", "axes.axisbelow": True, "grid.color": PAPER, "savefig.dpi": 160,
    "legend.frameon": False, "lines.linewidth": 1.8,
})  # fmt: skip


def curves() -> None:
    """Draw a faint grid from now on, and let matplotlib find the margins: for figures of curves."""
    plt.rcParams.update({"axes.grid": True, "figure.constrained_layout.use": True})


def picture(axes: Any, pixels: Any, edge: str = FAINT, **options: Any) -> None:
    """Show pixels as squares, in a frame."""
    axes.imshow(pixels, interpolation="nearest", **options)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(color=edge, linewidth=1.5, visible=True)
