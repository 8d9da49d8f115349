"""The label-efficiency curve: accuracy against labels, from SimCLR and from scratch."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..evaluation.scores import uncertainty

INK, SOFT, GRID = "#24292f", "#6e7781", "#e4e7eb"
COLOURS = {"simclr": "#1f5fbf", "scratch": "#d1242f"}
NAMES = {"simclr": "fine-tuned from SimCLR", "scratch": "from scratch"}
LEFT, TOP, RIGHT, BOTTOM = 80, 60, 760, 420  # the frame, pixels


def label_curve(points: Iterable[Mapping[str, Any]], split: str, title: str) -> bytes:
    """Draw the accuracies of a split with their uncertainties, and return a PNG file; labels on a logarithmic axis."""
    lines: dict[str, list[tuple[int, float, float]]] = {"simclr": [], "scratch": []}
    for point in points:
        score = point["scores"][split]
        doubt = uncertainty(score["accuracy"], score["images"])
        lines[point["start"]].append((int(point["labels"]), score["accuracy"], doubt))
    counts = sorted({count for line in lines.values() for count, _, _ in line})
    low, high = math.log(counts[0]), math.log(max(counts[-1], counts[0] + 1))
    image = Image.new("RGB", (RIGHT + 40, BOTTOM + 70), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def pixel(count: int, accuracy: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * (math.log(count) - low) / (high - low), BOTTOM - (BOTTOM - TOP) * accuracy

    draw.text((LEFT, TOP - 14), title, INK, ImageFont.load_default(16), anchor="ls")
    for percent in range(0, 101, 20):
        y = pixel(counts[0], percent / 100)[1]
        draw.line([(LEFT, y), (RIGHT, y)], GRID)
        draw.text((LEFT - 8, y), f"{percent} %", SOFT, font, anchor="rm")
    for count in counts:
        draw.text((pixel(count, 0)[0], BOTTOM + 8), f"{count:,}", SOFT, font, anchor="ma")
    draw.text(((LEFT + RIGHT) / 2, BOTTOM + 34), "labels a class", SOFT, font, anchor="ma")
    for place, (start, line) in enumerate(lines.items()):
        line.sort()
        draw.line([pixel(count, p) for count, p, _ in line], COLOURS[start], 3, joint="curve")
        for count, p, doubt in line:
            (x, above), (_, below) = pixel(count, min(1, p + doubt)), pixel(count, max(0, p - doubt))
            draw.line([(x, above), (x, below)], COLOURS[start], 2)
            draw.ellipse([x - 4, pixel(count, p)[1] - 4, x + 4, pixel(count, p)[1] + 4], COLOURS[start])
        if line:
            draw.text((RIGHT, BOTTOM - 30 - 20 * place), NAMES[start], COLOURS[start], font, anchor="rs")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
