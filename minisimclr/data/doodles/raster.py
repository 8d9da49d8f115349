"""From curves to polygons, and from polygons to pixels, the same on every computer.

One primitive does all the drawing: a set of closed polygons, filled where the winding number is not zero. A curve is a
polygon with many corners (`arc`, `smooth`); a line is one thin polygon per segment and a round one per corner
(`stroke`). Layers of polygons are painted over each other on a grid of 4×4 samples per pixel, which are then averaged.

No pixel may depend on the platform, so the geometry uses only + − × / and √, which IEEE 754 rounds alike everywhere
(the sines of the C libraries, the sums of BLAS and `arange` with a fractional step differ in their last bits), and
filling uses only integers.

Lengths are fractions of the image's side, x to the right and y down; angles are in turns (0 right, ¼ down).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (V,2), the corners of one polygon or line; (P,V,2), P polygons of V corners
Edges = NDArray[np.float64]  # (E,4), one directed side x0 y0 x1 y1 per row; the order of the rows is free
Colour = tuple[int, int, int]

SAMPLES = 4  # samples per pixel and axis; they give 17 levels from ground to ink
STEPS = 16  # fixed-point positions per sample; a corner is off by a 128th of a pixel at most


# ── Curves ────────────────────────────────────────────────────────────────────────────────────────


def sine(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """sin(2π·turns) by + and × alone, within 4e-6: the Taylor polynomial of sin(πx/2) on x ∈ [−1,1]."""
    x = 1 - abs(4 * ((turns + 0.25) % 1.0) - 2)  # the triangle wave with the zeros and peaks of the sine
    y = x * x
    return x * (1.5707963268 - y * (0.6459640975 - y * (0.0796926263 - y * (0.0046817541 - y * 0.0001604412))))


def unit_circle(turns: NDArray[np.float64]) -> Points:
    """The point of the unit circle at each angle.   (V,) -> (V,2)"""
    return np.stack([sine(turns + 0.25), sine(turns)], axis=-1)


CIRCLE = unit_circle(np.arange(32) / 32)
PEN = unit_circle(np.arange(12) / 12)  # the round tip of every line


def arc(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 1.0) -> Points:
    """Draw an ellipse, or the part of it between two angles.   -> (V,2)"""
    whole = (start, stop) == (0.0, 1.0)
    circle = CIRCLE if whole else unit_circle(start + (stop - start) * np.arange(17) / 16)
    points: Points = circle * (rx, ry) + (cx, cy)
    return points


def smooth(*corners: tuple[float, float], closed: bool = True) -> Points:
    """Round off a polygon: its quadratic B-spline, six points per corner.   N corners -> (6N,2), or (6N+1,2) if open

    Between the midpoints of two sides runs a Bézier curve, which their common corner pulls towards itself.
    Name a corner twice to keep it sharp: the curve then passes through it, as the midpoint of a side of length 0.
    """
    c = np.array(corners)
    if not closed:
        c = np.concatenate([c[:1], c, c[-1:]])  # sharp ends
    before, after = np.concatenate([c[-1:], c[:-1]]), np.concatenate([c[1:], c[:1]])
    curve = (before + c)[:, None] * FROM + c[:, None] * PULL + (c + after)[:, None] * TO  # (N,6,2)
    return curve.reshape(-1, 2) if closed else np.concatenate([curve[1:-1].reshape(-1, 2), c[-1:]])


T = (np.arange(6) / 6)[:, None]
FROM, PULL, TO = (1 - T) * (1 - T) / 2, 2 * T * (1 - T), T * T / 2  # Bézier weights; half, as ends are means of two


# ── Polygons ──────────────────────────────────────────────────────────────────────────────────────


def sides(polygons: Points) -> Edges:
    """The sides of one or more polygons.   (…,V,2) -> (E,4)"""
    edges = np.empty((*polygons.shape[:-1], 4))
    edges[..., :2] = polygons
    edges[..., :-1, 2:] = polygons[..., 1:, :]
    edges[..., -1, 2:] = polygons[..., 0, :]
    return edges.reshape(-1, 4)


def stroke(path: Points, width: float, *, closed: bool) -> Edges:
    """A line of the given width with round corners and ends.   (V,2) -> (E,4)"""
    after = np.concatenate([path[1:], path[:1]])
    along = after - path
    length = np.sqrt(along[:, :1] * along[:, :1] + along[:, 1:] * along[:, 1:])
    along = along / np.maximum(length, 1e-9)  # two corners in one place have no direction
    before = np.concatenate([along[-1:], along[:-1]])
    sharp = along[:, :1] * before[:, :1] + along[:, 1:] * before[:, 1:] < 0.9  # turns by more than 26°
    if not closed:
        sharp[[0, -1]] = True

    # One quad per segment. Where the line bends gently, neighbours share an edge; a sharp corner gets the round pen.
    bend = (before + along) / 2
    to_side = np.array([-width / 2, width / 2])  # (dx, dy) ↦ (−dy, dx)·width/2, by reversing and scaling
    leaving = np.where(sharp, along, bend)[:, ::-1] * to_side
    arriving = np.where(sharp, before, bend)[:, ::-1] * to_side
    arriving = np.concatenate([arriving[1:], arriving[:1]])
    quads = np.stack([path - leaving, after - arriving, after + arriving, path + leaving], axis=1)  # wound like PEN
    tips = path[sharp[:, 0]][:, None] + PEN * (width / 2)
    return np.concatenate([sides(quads if closed else quads[:-1]), sides(tips)])


# ── Pixels ────────────────────────────────────────────────────────────────────────────────────────


class Layer(NamedTuple):
    """One coat of paint."""

    edges: Edges
    colour: Colour
    clipped: bool = False  # paint only where the layer before was painted too


def cover(layers: list[Edges], side: int) -> NDArray[np.bool_]:
    """Mark the samples that lie inside each layer: L×(E,4) -> (L,side,side).

    Every side of a polygon marks, on each row of samples that it crosses, the first sample to its right with +1 (going
    down) or −1 (going up). The running sum along the row is then the winding number, and inside is where it is not 0.
    """
    layer = np.repeat(np.arange(len(layers)), [len(edges) for edges in layers])
    fixed = np.rint(np.concatenate(layers) * (side * STEPS)).astype(np.int64)
    x0, y0, x1, y1 = fixed.T

    # A row's samples lie at y = STEPS·row + STEPS/2; half-open ranges count a corner on a row exactly once.
    row0, row1 = np.clip((fixed[:, 1::2].T + (STEPS // 2 - 1)) // STEPS, 0, side)
    first, rows = np.minimum(row0, row1), abs(row1 - row0)
    edge = np.repeat(np.arange(len(fixed)), rows)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - first, rows)

    # x = x0 + (y − y0)(x1 − x0)/(y1 − y0); the first sample at or right of it by one integer ceiling.
    x0, y0, dx, dy = x0[edge], y0[edge], (x1 - x0)[edge], (y1 - y0)[edge]
    x = (x0 - STEPS // 2) * dy + (STEPS * row + STEPS // 2 - y0) * dx
    column = np.clip(-(-x // (STEPS * dy)), 0, side)

    marks = np.zeros(len(layers) * side * (side + 1), np.int8)  # no layer lies 128 deep
    np.add.at(marks, (layer[edge] * side + row) * (side + 1) + column, np.sign(dy).astype(np.int8))
    winding = np.cumsum(marks.reshape(len(layers), side, side + 1)[..., :-1], axis=-1, dtype=np.int8)
    inside: NDArray[np.bool_] = winding != 0
    return inside


def paint(layers: list[Layer], ground: Colour, size: int) -> NDArray[np.uint8]:
    """Paint the layers in order over the ground.   -> (size,size,3)

    Each sample shows the last layer that covers it; a pixel is the rounded mean of its samples. So neighbours that
    share a border leave no seam, which averaging layer by layer would.
    """
    side = size * SAMPLES
    masks = cover([layer.edges for layer in layers], side)
    seen = np.zeros((side, side), np.intp)
    for i, layer in enumerate(layers):
        if layer.clipped:
            masks[i] &= masks[i - 1]
        np.copyto(seen, i + 1, where=masks[i])
    colours = np.array([ground, *(layer.colour for layer in layers)], np.uint16)
    rows = colours[seen].reshape(size, SAMPLES, side * 3).sum(axis=1, dtype=np.uint16)
    total = rows.reshape(size, size, SAMPLES, 3).sum(axis=2, dtype=np.uint16)
    image: NDArray[np.uint8] = ((total + SAMPLES * SAMPLES // 2) // (SAMPLES * SAMPLES)).astype(np.uint8)
    return image
