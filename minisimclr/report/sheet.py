"""Sheets of images: pictures with their neighbours, and a grid; both as PNG files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

INK, SOFT = "#24292f", "#6e7781"
GAP = 6  # space between cells, pixels
CELL = 64  # side of an image on a sheet, pixels; twice that of a doodle
LINE = 16  # height of a line of text below an image, pixels


def sheet(pictures: NDArray[np.uint8], found: NDArray[np.uint8], similarities: NDArray[Any]) -> bytes:
    """Draw each picture, and right of it what was found, with a similarity below each.

    Shapes: pictures (Q,H,W,3), found (Q,k,H,W,3), similarities (Q,k) -> a PNG file
    """
    rows, k = similarities.shape
    apart = 18  # between the picture and its neighbours
    high = CELL + LINE + GAP
    canvas = Image.new("RGB", (GAP + apart + (k + 1) * (CELL + GAP), GAP + rows * high), "white")
    draw = ImageDraw.Draw(canvas)
    font: Any = ImageFont.load_default(12)
    for r in range(rows):
        y = GAP + r * high
        canvas.paste(_cell(pictures[r]), (GAP, y))
        draw.rectangle([GAP - 2, y - 2, GAP + CELL + 1, y + CELL + 1], outline=INK, width=2)
        for c in range(k):
            x = GAP + apart + (c + 1) * (CELL + GAP)
            canvas.paste(_cell(found[r, c]), (x, y))
            draw.text((x + CELL // 2, y + CELL + 1), f"{similarities[r, c]:.3f}", SOFT, font, anchor="ma")
    return _as_png(canvas)


def grid(images: NDArray[np.uint8], columns: int = 8) -> bytes:
    """Draw images in rows. Shapes: images (N,H,W,3) -> a PNG file"""
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (CELL + GAP)), "white")
    for index, image in enumerate(images):
        canvas.paste(_cell(image), (GAP + index % columns * (CELL + GAP), GAP + index // columns * (CELL + GAP)))
    return _as_png(canvas)


def _cell(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((CELL, CELL), Image.Resampling.NEAREST)


def _as_png(canvas: Image.Image) -> bytes:
    out = io.BytesIO()
    canvas.save(out, "PNG")
    return out.getvalue()
