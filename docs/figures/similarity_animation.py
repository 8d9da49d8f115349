"""Draw the cosines of a fixed batch while the small encoder learns: an animation of chapter 5, beside this file.

    MINISIMCLR_THREADS=1 python docs/figures/similarity_animation.py      # about a minute of CPU time

A real run, the demo's with fewer epochs. The batch is 48 test images, three of each class, which training never sees.
Each appears in two views next to each other, so that positives are 2×2 squares and classes 6×6 squares on the diagonal.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import minisimclr as ms
from minisimclr.cli.demo import DEMO
from minisimclr.processor import blas_at_one_thread
from minisimclr.training.batches import epoch_order
from minisimclr.training.config import ORDER, VIEWS, build_model, build_optimizer

HERE = Path(__file__).resolve().parent
CONFIG = dataclasses.replace(DEMO, epochs=6, method="conv=winograd")
PER_CLASS, FRAMES, CELL, COLOURS = 3, 28, 5, 17
LEFT, TOP, RIGHT, BOTTOM = 92, 46, 64, 26  # margins of the matrix, pixels
INK, SOFT, LINE = "#333a45", "#6e7781", "#c9ced6"
STOPS = {-1.0: "#542788", -0.5: "#998ec3", 0.0: "#f7f7f7", 0.5: "#f1a340", 1.0: "#7f3b08"}


def fixed_batch() -> tuple[Any, list[str]]:
    """Two views of each chosen image, float32 (2N,32,32,3), view after view; and the names of the classes."""
    test = ms.load_dataset("doodles", split="test")
    chosen = np.concatenate([np.flatnonzero(test.labels == c)[:PER_CLASS] for c in range(len(test.class_names))])
    a, b = ms.two_views(
        test.images[chosen], np.random.default_rng(0), CONFIG.size, CONFIG.strength, CONFIG.blur, CONFIG.min_area
    )
    return np.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), list(test.class_names)


def training(batch: Any) -> list[tuple[int, float, Any]]:
    """The run: (step, its loss, cosines of the batch's embeddings) at some thirty steps, more of them early."""
    images = ms.load_dataset(CONFIG.data).images
    per_epoch = len(images) // CONFIG.batch
    total = CONFIG.epochs * per_epoch
    shown = set(np.round(np.linspace(0, np.sqrt(total), FRAMES) ** 2).astype(int).tolist())
    model = build_model(CONFIG)
    optimizer = build_optimizer(CONFIG, model)
    frames, loss_value = [], float("nan")
    for step in range(total + 1):
        if step in shown:
            z = ms.embed(model, np.round(255 * batch).astype(np.uint8))[1]
            u = z / np.linalg.norm(z, axis=1, keepdims=True)
            frames.append((step, loss_value, u @ u.T))
        if step == total:
            break
        order = epoch_order(len(images), CONFIG.batch, CONFIG.rng(ORDER, step // per_epoch))
        views = ms.two_views(
            images[order[step % per_epoch]],
            CONFIG.rng(VIEWS, step),
            CONFIG.size,
            CONFIG.strength,
            CONFIG.blur,
            CONFIG.min_area,
        )
        loss, _, _ = model.loss(*views, CONFIG.temperature)
        loss.backward()
        optimizer.step(ms.warmup_cosine(step, total, round(CONFIG.warmup * total), CONFIG.lr * CONFIG.batch / 256))
        optimizer.zero_grad()
        loss_value = float(loss.item())
    return frames


def colours() -> Any:
    """The colours of the scale from −1 to 1, uint8 (COLOURS,3)."""
    rgb = np.array([[int(stop[k : k + 2], 16) for k in (1, 3, 5)] for stop in STOPS.values()])
    at = np.linspace(-1, 1, COLOURS)
    return np.stack([np.interp(at, list(STOPS), rgb[:, k]) for k in range(3)], axis=1).round().astype(np.uint8)


def draw(step: int, total: int, loss: float, cosines: Any, names: list[str]) -> Image.Image:
    scale = colours()
    side = CELL * len(cosines)
    picture = Image.new("RGB", (LEFT + side + RIGHT, TOP + side + BOTTOM), "white")
    pen = ImageDraw.Draw(picture)
    small, large = (ImageFont.load_default(size) for size in (12, 15))
    index = np.clip(np.round((cosines + 1) / 2 * (COLOURS - 1)), 0, COLOURS - 1).astype(int)
    matrix = Image.fromarray(scale[index]).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(matrix, (LEFT, TOP))
    pen.text((LEFT, 14), f"step {step}", INK, large)
    known = "" if np.isnan(loss) else f"loss {loss:.2f}"
    pen.text((LEFT + side, 14), known, SOFT, large, anchor="ra")
    for k, name in enumerate(names):
        pen.text((LEFT - 8, TOP + side * (k + 0.5) / len(names)), name, SOFT, small, anchor="rm")
    # The colour scale, and how far the run is.
    x, tall = LEFT + side + 16, side
    for k, colour in enumerate(scale[::-1]):
        upper, lower = (TOP + tall * edge // COLOURS for edge in (k, k + 1))
        pen.rectangle((x, upper, x + 12, lower - 1), tuple(colour.tolist()))
    for value, text in ((1, "1"), (0.5, "0.5"), (0, "0"), (-0.5, "-0.5"), (-1, "-1")):
        pen.text((x + 18, TOP + tall * (1 - value) / 2), text, SOFT, small, anchor={1: "lt", -1: "lb"}.get(value, "lm"))
    y = TOP + side + 13
    pen.line((LEFT, y, LEFT + side, y), LINE, 3)
    pen.line((LEFT, y, LEFT + side * step / total, y), INK, 3)
    return picture


def main() -> None:
    batch, names = fixed_batch()
    with blas_at_one_thread():
        frames = training(batch)
    total = frames[-1][0]
    pictures = [draw(step, total, loss, cosines, names) for step, loss, cosines in frames]
    pictures[-1].save(HERE / "ntxent_similarity_last.png", optimize=True)  # for readers on paper
    palette = pictures[-1].quantize(48)
    shown = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    shown[0].save(
        HERE / "ntxent_similarity.gif",
        save_all=True,
        append_images=shown[1:],
        loop=0,
        optimize=True,
        duration=[900, *[140] * (len(shown) - 2), 4000],
    )
    classes = np.arange(len(batch)) // (2 * PER_CLASS)
    images = np.arange(len(batch)) // 2
    same, alike = images[:, None] == images, classes[:, None] == classes
    itself = np.eye(len(batch), dtype=bool)
    for step, loss, cosines in (frames[0], frames[len(frames) // 2], frames[-1]):
        positive, kin, other = (cosines[mask].mean() for mask in (same & ~itself, alike & ~same, ~alike))
        print(
            f"step {step}: loss {loss:.2f}; mean cosine of the two views {positive:.2f}, of others of the class "
            f"{kin:.2f}, of other classes {other:.2f}"
        )


if __name__ == "__main__":
    main()
