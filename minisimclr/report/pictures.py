"""Four pictures of a run, drawn with Pillow.

loss.png        the loss beside its chance level, and the share of anchors whose positive is nearest
views.png       images and their two random views, which the network is asked to see as one thing
neighbours.png  test images and their eight nearest training images; those of another class are framed
similarity.png  cosine similarities of test images, sorted by class, before and after training
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..backend import device_of
from ..data import Dataset
from ..evaluation.embed import embed
from ..evaluation.knn import nearest, unit_rows
from ..storage import write_all
from ..training.config import build_model
from ..training.run import Metrics, Run
from ..views import two_views

Pixel: TypeAlias = tuple[float, float]  # (x, y) in a picture, y down
INK, SOFT, GRID, BLUE, PALE, RED = "#24292f", "#6e7781", "#e4e7eb", "#1f5fbf", "#b9d0f0", "#d1242f"
GAP = 6  # space between the cells of a sheet, pixels
CELL = 64  # side of an image on a sheet, pixels; twice that of a doodle


def draw_all(run: Run, train: Dataset, test: Dataset, folder: Path) -> list[Path]:
    """Write the pictures into the folder, all of them or none, and return their paths."""
    contents = {folder / name: content for name, content in drawn(run, train, test).items()}
    write_all(contents)
    return list(contents)


def drawn(run: Run, train: Dataset, test: Dataset) -> dict[str, bytes]:
    """Draw the pictures and return them as PNG files, by name; the curve is left out if there are no metrics."""
    history = [line for line in run.history if _can_be_drawn(line)]
    pictures = {
        **({"loss.png": loss_curve(history)} if history else {}),
        "views.png": views_sheet(run, train.images),
        "neighbours.png": neighbours_sheet(run, train, test),
        "similarity.png": similarity_matrices(run, test),
    }
    return {name: _as_png(picture) for name, picture in pictures.items()}


def _can_be_drawn(line: Metrics) -> bool:
    """Return True for metrics whose numbers are numbers; the file that they come from is untrusted."""
    numbers = [line.get(name) for name in ("loss", "top1", "chance")]
    return all(isinstance(number, (int, float)) and abs(number) < 1e9 for number in numbers)  # NaN is not below


def _as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ── The curve ─────────────────────────────────────────────────────────────────────────────────────


def loss_curve(history: list[Metrics]) -> Image.Image:
    """Draw loss (each step pale, the running mean dark) and contrastive top-1 against steps."""
    image = Image.new("RGB", (960, 560), "white")
    draw = ImageDraw.Draw(image)
    steps = [line["step"] + 1 for line in history]
    chance = history[-1]["chance"]
    losses = [line["loss"] for line in history]
    top = max(chance, *losses) * 1.05
    pixel = _axes(draw, (70, 50, 930, 330), steps[-1], (0.0, top), "NT-Xent loss")
    level = pixel(0, chance)[1]
    for x in range(70, 930, 10):
        draw.line([(x, level), (x + 5, level)], SOFT, 1)
    # The label stands at the right, above the line: at the end of training no curve is there.
    draw.text((928, level - 4), f"chance, log(2N - 1) = {chance:.2f}", SOFT, _font(14), anchor="rs")
    _curve(draw, pixel, steps, losses)
    pixel = _axes(
        draw, (70, 390, 930, 510), steps[-1], (0.0, 1.0), "contrastive top-1: anchors nearest to their positive"
    )
    _curve(draw, pixel, steps, [line["top1"] for line in history])
    draw.text((500, 532), "step", SOFT, _font(14), anchor="ma")
    return image


def _axes(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], steps: int, span: tuple[float, float], title: str
) -> Callable[[float, float], Pixel]:
    """Draw grid, ticks and title, and return the function from (step, value) to a pixel."""
    left, top, right, bottom = box
    low, high = span

    def pixel(step: float, value: float) -> Pixel:
        return (
            left + (right - left) * step / max(steps, 1),
            bottom - (bottom - top) * (value - low) / max(high - low, 1e-9),
        )

    draw.text((left, top - 12), title, INK, _font(16), anchor="ls")
    for value in _ticks(low, high, 4):
        y = pixel(0, value)[1]
        draw.line([(left, y), (right, y)], GRID)
        draw.text((left - 8, y), f"{value:g}", SOFT, _font(14), anchor="rm")
    for step in _ticks(0, steps, 8):
        draw.text((pixel(step, 0)[0], bottom + 6), f"{step:,.0f}", SOFT, _font(14), anchor="ma")
    return pixel


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Choose about this many round numbers between low and high."""
    raw = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _curve(
    draw: ImageDraw.ImageDraw, pixel: Callable[[float, float], Pixel], steps: list[int], values: list[float]
) -> None:
    """Draw the values pale and their running mean dark."""
    half = min(25, len(values) // 20)  # each point of the dark line is the mean of its neighbourhood
    smooth = [float(np.mean(values[max(0, k - half) : k + half + 1])) for k in range(len(values))]
    draw.line([pixel(*point) for point in zip(steps, values)], PALE, 1)
    draw.line([pixel(*point) for point in zip(steps, smooth)], BLUE, 3, joint="curve")


# ── Sheets of images ──────────────────────────────────────────────────────────────────────────────


def views_sheet(run: Run, images: NDArray[np.uint8], count: int = 12) -> Image.Image:
    """Show a row of images, and below each its two views, as the network sees them."""
    config = run.config
    chosen = images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)]
    a, b = two_views(
        chosen, np.random.default_rng(config.seed), config.size, config.strength, config.blur, config.min_area
    )
    rows = [chosen, *((view * 255).round().astype(np.uint8) for view in (a, b))]
    sheet, draw = _sheet(len(chosen), 3, left=84)
    for r, (name, row) in enumerate(zip(("image", "view a", "view b"), rows)):
        y = GAP + r * (CELL + GAP)
        draw.text((74, y + CELL // 2), name, INK, _font(16), anchor="rm")
        for c, picture in enumerate(row):
            sheet.paste(_enlarged(picture, CELL), (84 + c * (CELL + GAP), y))
    return sheet


def neighbours_sheet(run: Run, train: Dataset, test: Dataset, rows: int = 12, k: int = 8) -> Image.Image:
    """Show one test image of each class and its k training images of most similar h; wrong classes are framed red."""
    first = [int(np.flatnonzero(test.labels == label)[0]) for label in np.unique(test.labels)]
    queries = np.array(first[:rows])
    k = min(k, len(train))
    indices, _ = nearest(embed(run.model, train.images)[0], embed(run.model, test.images[queries])[0], k)
    left, apart = 124, 18
    sheet, draw = _sheet(k + 1, len(queries), left=left, extra=apart, top=26)
    draw.text((left + CELL // 2, 20), "query", SOFT, _font(14), anchor="ms")
    draw.text(
        (left + CELL + GAP + apart, 20),
        f"its {k} nearest training images by h; framed: another class",
        SOFT,
        _font(14),
        anchor="ls",
    )
    for r, query in enumerate(queries):
        y = 26 + GAP + r * (CELL + GAP)
        label = test.labels[query]
        draw.text((left - 10, y + CELL // 2), _short(test.class_names[label]), INK, _font(16), anchor="rm")
        sheet.paste(_enlarged(test.images[query], CELL), (left, y))
        for c, neighbour in enumerate(indices[r]):
            x = left + apart + (c + 1) * (CELL + GAP)
            sheet.paste(_enlarged(train.images[neighbour], CELL), (x, y))
            if train.labels[neighbour] != label:
                draw.rectangle([x - 2, y - 2, x + CELL + 1, y + CELL + 1], outline=RED, width=3)
    return sheet


def similarity_matrices(run: Run, test: Dataset, per_class: int = 12) -> Image.Image:
    """Show the cosine similarity of the centred h of test images, sorted by class, before and after training."""
    classes = np.unique(test.labels)[:16]
    chosen = np.concatenate([np.flatnonzero(test.labels == label)[:per_class] for label in classes])
    images, labels = test.images[chosen], test.labels[chosen]
    side, left, top = 400, 110, 44
    sheet = Image.new("RGB", (left + 2 * side + 40 + 90, top + side + 20), "white")
    draw = ImageDraw.Draw(sheet)
    device = device_of(run.model.parameters()[0].data)
    models = {"before training": build_model(run.config.to_evaluate(device)).to(device), "after training": run.model}
    for panel, (title, model) in enumerate(models.items()):
        h = embed(model, images)[0]
        u = unit_rows(np, h - h.mean(axis=0))  # the mean, which all images share, would hide their differences
        x = left + panel * (side + 40)
        sheet.paste(Image.fromarray(_diverging(u @ u.T)).resize((side, side), Image.Resampling.NEAREST), (x, top))
        draw.text((x + side // 2, top - 14), title, INK, _font(16), anchor="ms")
    for label in classes:
        place = np.flatnonzero(labels == label)
        y = top + side * (place[0] + place[-1] + 1) / (2 * len(labels))
        draw.text((left - 10, y), _short(test.class_names[label]), INK, _font(14), anchor="rm")
    x = left + 2 * side + 60
    scale = np.linspace(1, -1, side)[:, None].repeat(14, axis=1)
    sheet.paste(Image.fromarray(_diverging(scale)), (x, top))
    for value in (1, 0, -1):
        draw.text((x + 20, top + side * (1 - value) / 2), f"{value:+d}" if value else "0", SOFT, _font(14), anchor="lm")
    return sheet


def _sheet(
    columns: int, rows: int, *, left: int, extra: int = 0, top: int = 0
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make a white sheet for rows and columns of cells."""
    sheet = Image.new("RGB", (left + extra + columns * (CELL + GAP), top + GAP + rows * (CELL + GAP)), "white")
    return sheet, ImageDraw.Draw(sheet)


def _enlarged(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def _diverging(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour the numbers −1 … 0 … 1 orange … white … blue: (H,W) -> uint8 (H,W,3)."""
    stops = np.array([[180, 88, 6], [253, 184, 99], [255, 255, 255], [120, 170, 225], [16, 52, 120]], float)
    place = (np.clip(values, -1, 1) + 1) * 2
    return np.stack([np.interp(place, range(5), stops[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
