"""Draw the figure of chapter 6 on receptive fields beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/receptive_field.py

How much the middle pixel of each map depends on each pixel of the image: the engine's gradient, its absolute values
averaged over images and channels; and the square of equation (6.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import style
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import minisimclr as ms

SIDE, COUNT, SEED = 64, 24, 0  # of the images, pixels; their number
FIELDS = {"stem": (3, 2), "stage 1": (11, 2), "stage 2": (23, 4), "stage 3": (47, 8)}  # side and step by (6.2)


def sensitivity(encoder: ms.ResNet, stages: int, rng: np.random.Generator) -> Any:
    """Mean |∂(middle pixel)/∂(pixel of the image)|, (SIDE,SIDE), after some of the stages; the largest is 1."""
    images = ms.Tensor(rng.random((SIDE, SIDE, COUNT, 3)), requires_grad=True)  # (H,W,N,3)
    x = encoder.bn1(encoder.conv1(images), train=False, relu=True)
    for stage in range(stages):
        x = getattr(encoder, f"layer{stage + 1}")(x, train=False)
    seed = np.zeros(x.shape)
    seed[x.shape[0] // 2, x.shape[1] // 2] = rng.standard_normal(x.shape[2:])  # all channels, in a random mixture
    x.backward(seed)
    assert images.grad is not None
    found = np.abs(images.grad).mean(axis=(2, 3))
    return found / found.max()


def main() -> None:
    rng = np.random.default_rng(SEED)
    encoder = ms.resnet_small(rng=rng).astype(np.float64)
    figure, axes = plt.subplots(1, len(FIELDS), figsize=(10, 2.9), layout="constrained")
    for stages, (ax, (name, (side, step))) in enumerate(zip(axes, FIELDS.items())):
        found = sensitivity(encoder, stages, rng)
        rows = np.flatnonzero(found.sum(axis=1))
        assert rows[-1] - rows[0] + 1 <= side, "the engine sees more than (6.2) allows"
        style.picture(ax, found**0.5, cmap="Greens", vmin=0, vmax=1)  # the root, so that faint edges are seen
        corner = (SIDE // 2 // step) * step - (side - 1) // 2 - 0.5  # the middle pixel of a map is centred there
        ax.add_patch(Rectangle((corner, corner), side, side, fill=False, color=style.RED, linewidth=1.4))
        ax.set_title(f"{name}: {side} of {SIDE} pixels")
    figure.savefig(style.HERE / "receptive_field.png")


if __name__ == "__main__":
    main()
