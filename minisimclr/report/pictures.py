"""Three pictures of a run, as PNG files; its page shows the same, and more.

views.png       images and their two random views, which the network is asked to see as one thing
neighbours.png  test images and their eight nearest training images; those of another class are framed
similarity.png  cosine similarities of test images, sorted by class, before and after training; where the weights before
                are not known, random ones
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data import squares_of
from ..training.run import Run
from ..training.trained import views_in_training
from .findings import Findings
from .thumbs import as_png

INK, SOFT, RED = "#24292f", "#6e7781", "#d1242f"
GAP = 6  # space between the cells of a sheet, pixels
CELL = 64  # side of an image on a sheet, pixels; twice that of a doodle
LEGEND = "A number stands for a class whose name this font cannot write; report.html has the names."


def draw_all(findings: Findings) -> dict[str, bytes]:
    """Draw the pictures and return them as PNG files, by name."""
    return {
        "views.png": as_png(views_sheet(findings.run, squares_of(findings.train))),
        "neighbours.png": as_png(neighbours_sheet(findings)),
        "similarity.png": as_png(similarity_matrices(findings)),
    }


def rows_of_views(run: Run, images: Any, count: int) -> NDArray[np.uint8]:
    """Return a row of images, and two rows of their views, as the network sees them: (3,count,S,S,3)."""
    config = run.config
    chosen = images[np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)]
    rng = np.random.default_rng(config.seed)
    a, b = views_in_training(config, chosen, rng)
    return np.stack([chosen, *((255 * view).round().astype(np.uint8) for view in (a, b))])


def views_sheet(run: Run, images: Any, count: int = 12) -> Image.Image:
    """Show a row of images, and below each its two views, as the network sees them."""
    rows = rows_of_views(run, images, count)
    sheet, draw = _sheet(rows.shape[1], 3, left=84)
    for r, (name, row) in enumerate(zip(("image", "view a", "view b"), rows)):
        y = GAP + r * (CELL + GAP)
        draw.text((74, y + CELL // 2), name, INK, _font(16), anchor="rm")
        for c, picture in enumerate(row):
            sheet.paste(_enlarged(picture, CELL), (84 + c * (CELL + GAP), y))
    return sheet


def neighbours_sheet(findings: Findings, rows: int = 12) -> Image.Image:
    """Show an image of each class and the training images of most similar h; wrong classes are framed red."""
    labels = findings.test.labels[findings.shown]  # (M,)
    places = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    if not findings.labelled:
        places = list(range(len(labels)))
    places, k = places[:rows], findings.nearest.shape[1]
    left, apart = 124, 18
    names = [findings.test.class_names[labels[place]] if findings.labelled else "" for place in places]
    sheet, draw = _sheet(k + 1, len(places), left=left, extra=apart, top=26, bottom=_legend_height(names))
    draw.text((left + CELL // 2, 20), "query", SOFT, _font(14), anchor="ms")
    note = f"its {k} nearest training images by h{'; framed: another class' if findings.labelled else ''}"
    draw.text((left + CELL + GAP + apart, 20), note, SOFT, _font(14), anchor="ls")
    for r, (place, name) in enumerate(zip(places, names)):
        y = 26 + GAP + r * (CELL + GAP)
        label = labels[place]
        draw.text((left - 10, y + CELL // 2), written(name, int(label)), INK, _font(16), anchor="rm")
        sheet.paste(_enlarged(squares_of(findings.test)[findings.shown[place]], CELL), (left, y))
        for c, neighbour in enumerate(findings.nearest[place]):
            x = left + apart + (c + 1) * (CELL + GAP)
            sheet.paste(_enlarged(squares_of(findings.train)[neighbour], CELL), (x, y))
            if findings.train.labels[neighbour] != label:
                draw.rectangle([x - 2, y - 2, x + CELL + 1, y + CELL + 1], outline=RED, width=3)
    _draw_legend(sheet, names)
    return sheet


def similarity_matrices(findings: Findings) -> Image.Image:
    """Show the cosines of the centred h of test images, sorted by class, as titled: before and after training."""
    side, left, top = 400, 110, 44
    labels = findings.test.labels[findings.rows]
    names = {int(label): findings.test.class_names[label] for label in np.unique(labels)} if findings.labelled else {}
    legend = _legend_height(names.values())
    sheet = Image.new("RGB", (left + 2 * side + 40 + 90, top + side + 20 + legend), "white")
    draw = ImageDraw.Draw(sheet)
    for panel, (title, cosines) in enumerate(findings.similarity.items()):
        x = left + panel * (side + 40)
        sheet.paste(Image.fromarray(diverging(cosines)).resize((side, side), Image.Resampling.NEAREST), (x, top))
        draw.text((x + side // 2, top - 14), title, INK, _font(16), anchor="ms")
    for label, name in names.items():
        place = np.flatnonzero(labels == label)
        y = top + side * (place[0] + place[-1] + 1) / (2 * len(labels))
        draw.text((left - 10, y), written(name, label), INK, _font(14), anchor="rm")
    x = left + 2 * side + 60
    scale = np.linspace(1, -1, side)[:, None].repeat(14, axis=1)
    sheet.paste(Image.fromarray(diverging(scale)), (x, top))
    for value in (1, 0, -1):
        draw.text((x + 20, top + side * (1 - value) / 2), f"{value:+d}" if value else "0", SOFT, _font(14), anchor="lm")
    _draw_legend(sheet, names.values())
    return sheet


# ── Sheets ────────────────────────────────────────────────────────────────────────────────────────


def _sheet(
    columns: int, rows: int, *, left: int, extra: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make a white sheet for rows and columns of cells."""
    size = (left + extra + columns * (CELL + GAP), top + GAP + rows * (CELL + GAP) + bottom)
    sheet = Image.new("RGB", size, "white")
    return sheet, ImageDraw.Draw(sheet)


def _enlarged(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


def diverging(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour the numbers −1 … 0 … 1 orange … white … blue: (H,W) -> uint8 (H,W,3)."""
    stops = np.array([[180, 88, 6], [253, 184, 99], [255, 255, 255], [120, 170, 225], [16, 52, 120]], float)
    place = (np.clip(values, -1, 1) + 1) * 2
    return np.stack([np.interp(place, range(5), stops[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────


def written(name: str, number: int) -> str:
    """Return the name of a class, shortened, or its number if the font would draw boxes for its letters."""
    if not can_write(name):
        return str(number + 1)
    return name if len(name) <= 14 else name[:13] + "…"


@functools.lru_cache(maxsize=4096)
def can_write(name: str) -> bool:
    """Return True if the font has a glyph of its own for each letter; one that it lacks looks like U+10FFFF."""
    font = _font(14)
    box = bytes(font.getmask("\U0010ffff"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != box for letter in name)


def _legend_height(names: Any) -> int:
    return 0 if all(map(can_write, names)) else 28


def _draw_legend(sheet: Image.Image, names: Any) -> None:
    if _legend_height(names):
        ImageDraw.Draw(sheet).text((10, sheet.height - 10), LEGEND, SOFT, _font(13), anchor="ls")


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
