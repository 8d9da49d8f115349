"""Draw what was measured elsewhere, beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/measured.py

ntxent_rungs.png: the error of each rung, from the table of chapter 5, which a test measures again.
train_step.png: the time of a training step, from benchmarks/results/, for chapter 9.
scaling.png: the processor time of a step that two processes share, from there too, for chapter 14.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import style
from matplotlib import pyplot as plt

RUNGS = {"composed": style.BLUE, "plain": style.AMBER, "exact": style.GREEN, "tiled": style.PURPLE}
MACHINES = {"AVX2": "train_step_quiet_avx2.json", "AVX-512": "train_step_quiet_avx512.json"}
STEPS = {
    "slabs": ("slabs", style.BLUE),
    "auto": ("auto: Winograd", style.GREEN),
    "torch channels-last": ("PyTorch, channels last", style.GREY),
    "torch c.-l., memory kept": ("PyTorch, memory kept", style.GREY),
}


def errors() -> tuple[list[str], Any]:
    """The rows of the table on errors, and its numbers: (rows, rung, loss and gradient)."""
    page = (style.HERE.parent / "05_nt_xent.md").read_text(encoding="utf-8")
    lines = page.split("<!-- errors of the rungs")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| [a-z]", line)]
    cells = [row for row in cells if "e-" in row[2]]
    values = np.array([[float(cell) for cell in row[2:]] for row in cells]).reshape(len(cells), len(RUNGS), 2)
    return [f"{name}, τ = {tau}" for name, tau, *_ in cells], values


def rungs() -> None:
    """A mark for each rung in each situation; NaN stands at the right edge."""
    names, values = errors()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    for column, (ax, title) in enumerate(zip(axes, ("error of the loss", "error of the gradient"))):
        for k, (rung, colour) in enumerate(RUNGS.items()):
            place = np.arange(len(names)) + 0.18 * (k - 1.5)
            shown = np.nan_to_num(values[:, k, column], nan=1.0)
            ax.hlines(place, 1e-8, shown, color=colour, linewidth=2.5, alpha=0.35)
            ax.semilogx(shown, place, "o", color=colour, markersize=5, label=rung)
        ax.set_yticks(range(len(names)), names)
        ax.set(title=title, xlim=(1e-8, 2.2))
        ax.set_xticks([1e-7, 1e-5, 1e-3, 1e-1, 1], ["$10^{-7}$", "$10^{-5}$", "$10^{-3}$", "$10^{-1}$", "NaN"])
        ax.minorticks_off()
        ax.grid(axis="y", visible=False)
    axes[0].invert_yaxis()
    axes[1].legend(loc="upper right", fontsize=9)
    figure.savefig(style.HERE / "ntxent_rungs.png")


def train_step() -> None:
    """A bar for each contestant and machine, with the quartiles as whiskers."""
    figure, axes = plt.subplots(1, len(MACHINES), figsize=(10, 2.7))
    for ax, (machine, file) in zip(axes, MACHINES.items()):
        results = json.loads((style.HERE.parent.parent / "benchmarks" / "results" / file).read_text())
        case = next(iter(results["cases"]))
        older = {"direct": "slabs"}  # a form's name in older results
        rows = {older.get(row["name"], row["name"]): row for row in results["rows"] if row["case"] == case}
        for k, (name, (label, colour)) in enumerate(STEPS.items()):
            row = rows[name]
            spread = [[row["median"] - row["quartiles"][0]], [row["quartiles"][1] - row["median"]]]
            ax.barh(label, row["median"], color=colour, height=0.62, xerr=spread, error_kw={"ecolor": style.INK})
            ax.text(0.02, k, f"{row['median']:.2f} s", color="white", va="center", fontsize=9)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set(title=f"{case}, {results['threads']} threads, {machine}", xlabel="seconds a step, median and quartiles")
    figure.savefig(style.HERE / "train_step.png")


def scaling() -> None:
    """A bar for each kind of scaling and number of ranks."""
    results = json.loads((style.HERE.parent.parent / "benchmarks" / "results" / "distributed.json").read_text())
    titles = {"strong": "strong: 64 images, shared", "weak": "weak: 32 images for each rank"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.9), sharex=True)
    for ax, (kind, title) in zip(axes, titles.items()):
        for row in (row for row in results["rows"] if row["kind"] == kind):
            ranks = f"{row['ranks']} rank{'s' * (row['ranks'] > 1)}"
            drawn = ax.barh(ranks, row["processor"], color=(style.BLUE, style.GREEN)[row["ranks"] > 1], height=0.62)
            ax.bar_label(drawn, [f"{row['processor']:.3f} s"], padding=4, fontsize=9)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set(title=title, xlabel="processor time of a rank, seconds a step", xlim=(0, 0.27))
    figure.savefig(style.HERE / "scaling.png")


if __name__ == "__main__":
    style.curves()
    rungs()
    train_step()
    scaling()
