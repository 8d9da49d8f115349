"""Draw two graphs with `ms.draw`, as SVG beside this file.

    python docs/figures/graphs.py

graph_layer.svg: a layer of a network and its loss, for chapter 1. graph_nt_xent.svg: NT-Xent composed from operations,
for chapter 5. The engine recorded what is drawn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import minisimclr as ms

HERE = Path(__file__).resolve().parent
SEED = 0


def layer(rng: np.random.Generator) -> str:
    """Mean squares of ReLU(xW + b) − t, of four rows."""
    w, b = (ms.Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((3, 2), (2,)))
    y = ms.ops.relu(rng.standard_normal((4, 3)) @ w + b)
    return ms.draw(((y - rng.standard_normal((4, 2))) ** 2).mean(), W=w, b=b, y=y)


def nt_xent(rng: np.random.Generator) -> str:
    """The loss of two images, whose embeddings have three dimensions."""
    za, zb = (ms.Tensor(rng.standard_normal((2, 3)), requires_grad=True) for _ in range(2))
    return ms.draw(ms.nt_xent(za, zb, 0.5, method="composed"), za=za, zb=zb)


if __name__ == "__main__":
    for name, picture in (("layer", layer), ("nt_xent", nt_xent)):
        (HERE / f"graph_{name}.svg").write_text(picture(np.random.default_rng(SEED)) + "\n", encoding="utf-8")
