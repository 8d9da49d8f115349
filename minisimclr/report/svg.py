"""Curves and maps as SVG, to stand within a page whose style sheet says how they look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 480, 250  # of a curve, units of the drawing; two fit beside each other, one fills a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40  # margins for the labels, same units
POINTS = 400  # number of points of a curve, at most: it has about one for each pixel
MAP, MARGIN = 600, 12  # side of a map, and what is left free around its dots; page.js has the same numbers
MATRIX, ROW_NAMES = 400, 84  # side of a matrix, and the room for names at its left


class Level(NamedTuple):
    """A horizontal line with a label: the loss at chance, for example."""

    value: float
    label: str


def curve(
    name: str,
    steps: Sequence[float],
    values: Sequence[float],
    *,
    levels: Sequence[Level] = (),
    percent: bool = False,
    exact: bool = False,
) -> str:
    """Draw values against steps, pale, and their running mean, dark. Two levels have the band to expect between them.

    exact  True draws the values themselves dark: numbers without noise, which a mean would change
    """
    low, high = _span([*values, *(level.value for level in levels)])
    last = max(steps)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = []
    if len(levels) == 2:
        top, bottom = sorted(y(level.value) for level in levels)
        parts.append(
            f'<rect class="band" x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" y="{top:.1f}" height="{bottom - top:.1f}"/>'
        )
    for tick in ticks(low, high, 5):
        text = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in ticks(0, last, 5):
        anchor = "end" if x(tick) > WIDTH - 24 else "middle"
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 22}" text-anchor="{anchor}">{tick:,.0f}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
    )
    raw, mean = thinned(steps, values)
    for kind, points in (("mean", raw),) if exact else (("raw", raw), ("mean", mean)):
        drawn = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path class="{kind}" d="M{drawn}{"h.1" if len(points) == 1 else ""}"/>')
    for level in levels:
        parts.append(f'<path class="level" d="M{LEFT} {y(level.value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="note" x="{WIDTH - RIGHT - 4}" y="{y(level.value) - 5:.1f}" text-anchor="end">'
            f"{escape(level.label)}</text>"
        )
    said = f"{name}: first {values[0]:.3g}, last {values[-1]:.3g}"
    return _svg("curve", WIDTH, HEIGHT, said, parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    high = high if high > low else low + 1  # one value, 0: an axis all the same
    return (low * 1.05, high + 0.05 * (high - low))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Choose about this many round numbers between low and high."""
    raw = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


Points = list[tuple[float, float]]


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[Points, Points]:
    """Return the points of the pale line and of the dark one, POINTS or fewer each.

    Of many steps the pale line takes the lowest and the highest in turn, so that no spike is lost. A point of the dark
    line is the mean of its neighbourhood, a twentieth of the run on either side and at most 25 steps.
    """
    all_steps, all_values = np.asarray(steps, float), np.asarray(values, float)
    order = np.argsort(all_steps, kind="stable")
    all_steps, all_values = all_steps[order], all_values[order]
    half = min(25, len(all_values) // 20)
    parts = np.array_split(np.arange(len(all_values)), min(len(all_values), POINTS))
    raw, mean = [], []
    for k, part in enumerate(parts):
        found = all_values[part]
        place = part[found.argmin() if k % 2 else found.argmax()]
        raw.append((float(all_steps[place]), float(all_values[place])))
        middle = part[len(part) // 2]
        around = all_values[max(0, middle - max(half, len(part))) : middle + max(half, len(part)) + 1]
        mean.append((float(all_steps[middle]), float(around.mean() if half else all_values[middle])))
    return raw, mean


def dots(places: NDArray[np.float64], labels: Sequence[int]) -> str:
    """Draw a dot for each image of a map, in the colour of its class, and the ring that marks one of them.

    Shapes: places (M,2) in [0,1]
    """
    side = MAP - 2 * MARGIN
    parts = [
        f'<circle class="dot" cx="{MARGIN + side * x:.1f}" cy="{MARGIN + side * (1 - y):.1f}" r="6" '
        f'style="--hue:{hue(label)}"/>'
        for (x, y), label in zip(places, labels)
    ]
    return _svg("map", MAP, MAP, "", [*parts, '<circle class="cursor" r="11" hidden=""/>'])


def matrix(uri: str, said: str, names: Sequence[tuple[float, str]]) -> str:
    """Draw an image of a matrix, with names beside its rows.

    names  (place, name) each: the place runs from 0, the top, to 1
    """
    left = ROW_NAMES if names else 0
    parts = [f'<image href="{uri}" x="{left}" y="0" width="{MATRIX}" height="{MATRIX}"/>']
    for place, name in names:
        y = MATRIX * place + 4
        parts.append(f'<text class="tick" x="{left - 8}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
    return _svg("matrix", left + MATRIX, MATRIX, said, parts)


def hue(label: int) -> int:
    """Return the hue of a class, degrees: by the golden angle, so that it is far from the hues before it."""
    return round(label * 137.508 + 150) % 360


def _svg(kind: str, width: float, height: float, said: str, parts: Sequence[str]) -> str:
    role = f' role="img" aria-label="{escape(said)}"' if said else ""
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}"{role}>{"".join(parts)}</svg>'
