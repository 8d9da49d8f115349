"""Draw the two figures of chapter 0 beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/in_an_hour.py      # about a minute of CPU time

views.png shows doodles and two random views of each. four_steps.png follows two images through SimCLR, with numbers
of a small encoder that was trained for 120 steps: what is drawn was computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, Rectangle
from style import FAINT, HERE, INK, SOFT, picture

import minisimclr as ms

POSITIVE = style.GREEN
SEED, STEPS, BATCH = 3, 120, 64


def views() -> None:
    """Eight doodles, and below each of them two views, made as in the demo."""
    images = ms.load_dataset("doodles", split="test", size=64).images[:8]
    a, b = ms.two_views(images, np.random.default_rng(SEED), size=64, strength=0.5, min_area=0.3)
    figure, grid = plt.subplots(3, 8, figsize=(9.2, 3.6), gridspec_kw={"hspace": 0.12, "wspace": 0.08})
    for row, (name, shown) in enumerate({"image": images, "view a": a, "view b": b}.items()):
        for axes, pixels in zip(grid[row], shown):
            picture(axes, pixels, FAINT if row == 0 else POSITIVE)
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, color=INK)
    figure.savefig(HERE / "views.png", bbox_inches="tight")
    plt.close(figure)


def trained() -> ms.SimCLR:
    """The small encoder after a short run."""
    images = ms.load_dataset("doodles").images
    rng = np.random.default_rng(SEED)
    encoder = ms.resnet_small(rng=rng)
    model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    optimizer = ms.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    for step in range(STEPS):
        chosen = rng.choice(len(images), BATCH, replace=False)
        a, b = ms.two_views(images[chosen], rng, size=32, strength=0.5, min_area=0.3)
        loss, _, _ = model.loss(a, b, temperature=0.2)
        loss.backward()
        optimizer.step(ms.warmup_cosine(step, STEPS, 20, 0.1))
        optimizer.zero_grad()
    return model


def strip(axes: Any, vector: Any, columns: int) -> None:
    """A vector as small coloured cells."""
    cells = (vector / abs(vector).max()).reshape(-1, columns)
    axes.imshow(cells, cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def arrow(figure: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    figure.add_artist(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=SOFT, linewidth=1.1))


def four_steps() -> None:
    """Two images, four views, their h, their z, and the cosines that the loss reads."""
    model = trained()
    test = ms.load_dataset("doodles", split="test")
    images = test.images[[1, 6]]
    a, b = ms.two_views(images, np.random.default_rng(4), size=32, strength=0.5, min_area=0.3)
    shown = np.stack([a, b], axis=1).reshape(4, 32, 32, 3)  # image 1: a, b; image 2: a, b
    h, z = ms.embed(model, np.round(255 * shown).astype(np.uint8))
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines = u @ u.T

    figure = plt.figure(figsize=(9.6, 4.5))
    rows = (0.70, 0.52, 0.30, 0.12)
    for k, (title, x) in enumerate(
        {"image": 0.055, "1  two views": 0.21, "2  encoder f": 0.365, "3  head g": 0.525, "4  loss": 0.8125}.items()
    ):
        figure.text(
            x, 0.945, title, ha="center", fontsize=11, color=INK if k else SOFT, weight="bold" if k else "normal"
        )
    notes = {0.21: "random crop, colours", 0.365: "representation h", 0.525: "embedding z", 0.8125: "cosines of all z"}
    for x, note in notes.items():
        figure.text(x, 0.895, note, ha="center", fontsize=9, color=SOFT)
    for k in range(4):
        y = rows[k]
        if k % 2 == 0:
            middle = (rows[k] + rows[k + 1]) / 2
            picture(figure.add_axes((0.005, middle, 0.1, 0.16)), images[k // 2])
        middle = (rows[k // 2 * 2] + rows[k // 2 * 2 + 1]) / 2 + 0.08
        arrow(figure, (0.098, middle), (0.162, y + 0.08))
        picture(figure.add_axes((0.16, y, 0.1, 0.16)), shown[k])
        arrow(figure, (0.263, y + 0.08), (0.312, y + 0.08))
        strip(figure.add_axes((0.315, y + 0.01, 0.1, 0.14)), h[k], 16)
        arrow(figure, (0.418, y + 0.08), (0.472, y + 0.08))
        strip(figure.add_axes((0.475, y + 0.01, 0.1, 0.14)), z[k], 16)
        arrow(figure, (0.578, y + 0.08), (0.618, y + 0.08))

    axes = figure.add_axes((0.64, 0.12, 0.345, 0.735))
    axes.imshow(cosines, cmap="PuOr_r", vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[])
    for i in range(4):
        for j in range(4):
            if i == j:
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color="#e6e8ec"))
                axes.text(j, i, "left out", ha="center", va="center", fontsize=9, color=SOFT)
                continue
            positive = i // 2 == j // 2
            style = {"ha": "center", "va": "center", "color": "white" if abs(cosines[i, j]) > 0.6 else INK}
            value = f"{cosines[i, j]:.2f}".replace("-", "−")
            axes.text(j, i - 0.1, value, fontsize=12, weight="bold" if positive else "normal", **style)
            axes.text(j, i + 0.24, "pulled" if positive else "pushed", fontsize=9, **style)
    figure.text(0.985, 0.05, "each row is an anchor: its positive should beat its negatives",
                ha="right", fontsize=9, color=SOFT)  # fmt: skip
    figure.savefig(HERE / "four_steps.png")
    plt.close(figure)
    print(np.round(cosines, 2))


if __name__ == "__main__":
    views()
    four_steps()
