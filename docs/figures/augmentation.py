"""Draw the figures of chapter 7 beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/augmentation.py

augmentation.png: doodles, each change alone, and two whole views. resampling.png: a crop as two matrix products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from style import HERE

from minisimclr.data.doodles import draw_doodles
from minisimclr.views.parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters, draw_parameters
from minisimclr.views.plain import view
from minisimclr.views.transforms import resize_matrices

SEED, SIDE, STRENGTH, ROWS = 3, 64, 1.0, 5  # the seed of all; pixels; the paper's on ImageNet; drawings
FACTORS = {
    "brightness": (BRIGHTNESS, 1.6),
    "contrast": (CONTRAST, 0.4),
    "saturation": (SATURATION, 0.2),
    "hue": (HUE, 0.2),
}

plt.rcParams.update({"axes.titlesize": 10, "axes.titlelocation": "center", "figure.constrained_layout.use": True,
                     "axes.spines.top": True, "axes.spines.right": True})  # fmt: skip


def nothing(p: ViewParameters) -> ViewParameters:
    """The parameters of views that show the whole image unchanged."""
    off = np.zeros(len(p), bool)
    whole = {"top": 0 * p.top, "left": 0 * p.left, "height": 0 * p.height + SIDE, "width": 0 * p.width + SIDE}
    return replace(p, **whole, flip=off, jitter=off, grey=off, blur=off)


def columns(p: ViewParameters) -> dict[str, ViewParameters]:
    """Each change alone, by its name."""
    still, on = nothing(p), np.ones(len(p), bool)
    crop = {name: getattr(p, name) for name in ("top", "left", "height", "width")}
    found = {"original": still, "crop": replace(still, **crop), "flip": replace(still, flip=on)}
    for name, (change, factor) in FACTORS.items():
        factors = np.tile(np.float32([1, 1, 1, 0]), (len(p), 1))
        factors[:, change] = factor
        found[f"{name}\n{factor:g}"] = replace(still, jitter=on, factor=factors)
    blurred = replace(still, blur=on, sigma=np.full(len(p), 1.5, np.float32))
    return found | {"grey": replace(still, grey=on), "blur\nσ = 1.5": blurred}


def steps() -> None:
    images, _, _ = draw_doodles(ROWS, seed=SEED, size=SIDE)
    rng = np.random.default_rng(SEED)
    first, second = (draw_parameters(rng, ROWS, SIDE, SIDE, STRENGTH, blur=True, min_area=0.3) for _ in "ab")
    shown = columns(first) | {"view a": first, "view b": second}
    figure, axes = plt.subplots(ROWS, len(shown), figsize=(12, 5.6))
    for column, (name, p) in enumerate(shown.items()):
        axes[0, column].set_title(name)
        for row in range(ROWS):
            axes[row, column].imshow(np.clip(view(np, images[row], p[row], SIDE), 0, 1))
            axes[row, column].set(xticks=[], yticks=[])
    figure.savefig(HERE / "augmentation.png")


def resampling() -> None:
    """A crop of rows 10…49 and columns 20…59, mirrored, as A_h · X · A_wᵀ."""
    images, _, _ = draw_doodles(ROWS, seed=SEED, size=SIDE)
    x = images[0].astype(float) / 255
    A_h = resize_matrices(np, np.array([10]), np.array([40]), SIDE, SIDE)[0]
    A_w = resize_matrices(np, np.array([20]), np.array([40]), SIDE, SIDE, np.array([True]))[0]
    made = np.einsum("ih,hwc,jw->ijc", A_h, x, A_w)
    figure, axes = plt.subplots(1, 7, figsize=(12, 3.2), width_ratios=(1, 0.12, 1, 0.12, 1, 0.12, 1))
    parts: list[tuple[str, Any]] = [
        ("A_h: which rows", A_h), ("·", None), ("X: the image", x), ("·", None), ("A_wᵀ: which columns", A_w.T),
        ("=", None), ("the view", np.clip(made, 0, 1)),
    ]  # fmt: skip
    for axis, (name, part) in zip(axes, parts):
        axis.set(xticks=[], yticks=[])
        if part is None:
            axis.axis("off")
            axis.text(0.5, 0.5, name, ha="center", va="center", fontsize=16, transform=axis.transAxes)
            continue
        axis.imshow(part, cmap="Greys", vmin=0, vmax=1)
        axis.set_title(name)
    figure.savefig(HERE / "resampling.png")


if __name__ == "__main__":
    steps()
    resampling()
