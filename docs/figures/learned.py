"""Draw what a run has learned, for chapters 6 and 10, beside this file (needs matplotlib: the extra `plot`).

    minisimclr demo --out runs/demo && python docs/figures/learned.py runs/demo

similarity.png: cosines of test images before and after training. map.png: test images laid out by the first two
principal components of their h. h_against_z.png: how much of an image is found again in h and in z.
"""

from __future__ import annotations

import sys

import numpy as np
import style
from matplotlib import pyplot as plt
from scipy.optimize import linear_sum_assignment

import minisimclr as ms
from minisimclr.evaluation.knn import unit_rows
from minisimclr.report.findings import centred_cosines, principal, spread
from minisimclr.training.config import build_model

GRID, PER_CLASS = (11, 22), 12  # rows and columns of the map; images of a class in the matrices
QUESTIONS = {  # what a linear classifier is asked about an image, each of four classes of equal size
    "which thing it is": None,
    "how bright it is": lambda images: images.mean(axis=(1, 2, 3)),
    "how red it is": lambda images: images[..., 0].mean(axis=(1, 2)) - images[..., 2].mean(axis=(1, 2)),
    "how large it is": lambda images: (images.std(axis=3) > 24).mean(axis=(1, 2)),
}


def similarity(run: ms.Run, test: ms.Dataset) -> None:
    rows = np.concatenate([np.flatnonzero(test.labels == c)[:PER_CLASS] for c in range(len(test.class_names))])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    models = {"before training": build_model(run.config), "after training": run.model}
    for ax, (title, model) in zip(axes, models.items()):
        shown = ax.imshow(centred_cosines(ms.embed(model, test.images[rows])[0]), cmap="PuOr_r", vmin=-1, vmax=1,
                          interpolation="nearest")  # fmt: skip
        ax.set(title=title, xticks=[])
        ax.set_yticks(np.arange(len(test.class_names)) * PER_CLASS + PER_CLASS / 2 - 0.5, test.class_names, fontsize=8)
        ax.tick_params(length=0)
    figure.colorbar(shown, ax=axes, shrink=0.8, ticks=[-1, 0, 1], label="cosine of centred h")
    figure.savefig(style.HERE / "similarity.png", bbox_inches="tight")


def embedding_map(run: ms.Run, test: ms.Dataset) -> None:
    """Each image takes a cell of a grid, so that none hides another: the cells that are nearest to their places."""
    rows, columns = GRID
    chosen = spread(test.labels, rows * columns)
    places = principal(unit_rows(np, ms.embed(run.model, test.images[chosen])[0]))
    places = places.argsort(axis=0).argsort(axis=0) / (len(chosen) - 1)  # ranks, in [0,1]
    cells = np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(1, 0, rows)), axis=-1).reshape(-1, 2)
    images, taken = linear_sum_assignment(((places[:, None] - cells) ** 2).sum(axis=2))
    grid = np.zeros((len(cells), *test.images.shape[1:]), np.uint8)
    grid[taken] = test.images[chosen[images]]
    side = grid.shape[1]
    sheet = grid.reshape(rows, columns, side, side, 3).swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    figure, ax = plt.subplots(figsize=(10, 10 * rows / columns + 0.3), layout="constrained")
    style.picture(ax, sheet)
    ax.set(xlabel="first principal component of h", ylabel="second")
    figure.savefig(style.HERE / "map.png", dpi=120)


def h_against_z(run: ms.Run, train: ms.Dataset, test: ms.Dataset) -> None:
    seen, new = (ms.embed(run.model, data.images) for data in (train, test))
    figure, ax = plt.subplots(figsize=(7.6, 2.9), layout="constrained")
    for k, (question, measure) in enumerate(QUESTIONS.items()):
        labels = [train.labels, test.labels]
        if measure is not None:
            values = [measure(data.images.astype(float)) for data in (train, test)]
            edges = np.quantile(values[0], [0.25, 0.5, 0.75])
            labels = [np.searchsorted(edges, part).astype(np.int64) for part in values]
        for j, (name, colour) in enumerate((("h", style.GREEN), ("z", style.AMBER))):
            share = 100 * ms.linear_probe(seen[j], labels[0], new[j], labels[1])
            ax.barh(k + 0.36 * j - 0.18, share, 0.34, color=colour, label=name if k == 0 else None)
            ax.text(share + 1, k + 0.36 * j - 0.18, f"{share:.0f}", va="center", fontsize=9)
            print(f"{question}, {name}: {share:.1f} %")
    ax.set_yticks(range(len(QUESTIONS)), QUESTIONS)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 100), xlabel="accuracy of a linear classifier, percent", title="What is left of an image in h and z"
    )
    ax.legend(loc="lower right")
    figure.savefig(style.HERE / "h_against_z.png")


def main(folder: str) -> None:
    run = ms.load_run(folder)
    train, test = (ms.load_dataset(run.config.data, split, size=run.config.size) for split in ("train", "test"))
    similarity(run, test)
    embedding_map(run, test)
    h_against_z(run, train, test)


if __name__ == "__main__":
    main(sys.argv[1])
