"""The sixteen things of the doodles: from random proportions to coloured parts.

Each thing fills about [−1,1]², x to the right and y down, and lists its parts in the order of painting. A proportion
that may vary is drawn once, at the top; each range is as wide as it can be while the thing stays recognizable.
Corners named twice in `smooth` are sharp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .raster import Points, arc, smooth, unit_circle


class Vary:
    """The random numbers of one drawing, one after the other: vary(low, high) lies in [low, high).

    They are made here from the raw bits of PCG64, which NumPy guarantees for ever; what its Generator makes of the bits
    may change between releases. A different (seed, key) gives unrelated numbers.
    """

    def __init__(self, seed: int, *key: int) -> None:
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)).random_raw(64)  # more than any drawing uses
        self._units = iter(((bits >> np.uint64(11)) * 2.0**-53).tolist())  # the top 53 bits, in [0,1)

    def __call__(self, low: float, high: float) -> float:
        unit: float = next(self._units)
        return low + (high - low) * unit

    def index(self, n: int) -> int:
        """Draw one of 0 … n−1."""
        return int(self(0, n))


MAIN, SECOND, LIGHT, INK, GROUND = range(5)  # the tone of a part; `styles` turns tones into colours


class Part(NamedTuple):
    """A piece of a thing: the area inside a path or, with a width, the line along it."""

    path: Points
    tone: int
    width: float = 0.0


def polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def apple(vary: Vary) -> list[Part]:
    wide, low, dent = vary(0.75, 1.0), vary(0.9, 1.1), vary(-0.55, -0.35)
    lean, leaf = vary(-0.15, 0.05), vary(0.6, 0.8)
    body = smooth(
        (0, dent),
        (0, dent),
        (wide * 0.5, -0.85),
        (wide * 1.1, -0.6),
        (wide, 0.3),
        (0.55, low),
        (0, low - 0.3),
        (-0.55, low),
        (-wide, 0.3),
        (-wide * 1.1, -0.6),
        (-wide * 0.5, -0.85),
    )
    return [
        Part(body, MAIN),
        Part(smooth((0, dent), (0, -0.7), (lean, -1.05), closed=False), INK, 0.12),
        Part(smooth((0.05, -0.7), (0.05, -0.7), (0.15, -1.2), (leaf, -1.15), (leaf, -1.15), (0.5, -0.65)), SECOND),
    ]


def balloon(vary: Vary) -> list[Part]:
    wide, top, neck, mouth = vary(0.65, 0.8), vary(-1.05, -0.85), vary(0.4, 0.55), vary(0.16, 0.22)
    basket, stripe = vary(0.75, 0.85), vary(0.35, 0.5)

    def envelope(share: float) -> Points:  # share: a fraction of the balloon's width
        m, w = mouth * share, wide * share
        right = [(w * 1.15, top), (w, 0.05), (m, neck), (m, neck)]
        return smooth(*[(-x, y) for x, y in reversed(right)], *right)

    return [
        Part(polygon((-mouth, neck), (-mouth * 0.9, basket)), INK, 0.05),
        Part(polygon((mouth, neck), (mouth * 0.9, basket)), INK, 0.05),
        Part(envelope(1), MAIN),
        Part(envelope(stripe), LIGHT),
        Part(box(-mouth, basket, mouth, basket + 0.25), SECOND),
    ]


def butterfly(vary: Vary) -> list[Part]:
    wide, high, low, waist = vary(0.9, 1.1), vary(0.7, 1.0), vary(0.6, 0.9), vary(0.05, 0.2)
    parts = []
    for w in (-wide, wide):  # the left half, then the right
        hind = smooth((0, waist), (0, waist), (w * 0.3, low * 1.1), (w * 0.8, low), (w * 0.75, 0.1))
        fore = smooth((0, 0.1), (0, 0.1), (w * 0.2, -high), (w, -high * 1.15), (w * 1.1, 0), (w * 0.5, 0.25))
        parts += [
            Part(hind, SECOND),
            Part(fore, MAIN),
            Part(arc(w * 0.6, -high * 0.5, 0.16, 0.16), LIGHT),
            Part(smooth((0, -0.4), (w * 0.08, -0.8), (w * 0.3, -1), closed=False), INK, 0.06),
        ]
    return [*parts, Part(arc(0, 0.1, 0.1, 0.6), INK)]


def car(vary: Vary) -> list[Part]:
    roof, hood, tail, post = vary(-0.7, -0.5), vary(0.35, 0.5), vary(-0.85, -0.6), vary(-0.2, -0.05)
    wheel, back, front = vary(0.2, 0.27), vary(-0.62, -0.5), vary(0.5, 0.62)
    rear_window = polygon((tail + 0.17, 0), (tail + 0.32, roof + 0.12), (post - 0.06, roof + 0.12), (post - 0.06, 0))
    windscreen = polygon((post + 0.06, 0), (post + 0.06, roof + 0.12), (hood - 0.42, roof + 0.12), (hood - 0.17, 0))
    body = smooth((-1, 0.35), (-1, 0.35), (-1, -0.08), (-0.8, -0.1), (0.4, -0.1), (1, -0.05), (1, 0.35), (1, 0.35))
    parts = [
        Part(polygon((tail, 0), (tail + 0.25, roof), (hood - 0.35, roof), (hood, 0)), MAIN),
        Part(rear_window, LIGHT),
        Part(windscreen, LIGHT),
        Part(body, MAIN),
    ]
    for x in (back, front):
        parts += [Part(arc(x, 0.35, wheel, wheel), INK), Part(arc(x, 0.35, wheel * 0.4, wheel * 0.4), LIGHT)]
    return parts


def cat(vary: Vary) -> list[Part]:
    wide, chin, ear, tip = vary(0.85, 1.0), vary(0.7, 0.85), vary(-1.05, -0.85), vary(0.6, 0.8)
    apart, eye = vary(0.33, 0.42), vary(0.1, 0.14)
    head = smooth(
        (-tip, ear),
        (-tip, ear),
        (-0.3, -0.55),
        (0.3, -0.55),
        (tip, ear),
        (tip, ear),
        (wide, -0.3),
        (wide, 0.4),
        (0.5, chin),
        (-0.5, chin),
        (-wide, 0.4),
        (-wide, -0.3),
    )
    parts = [Part(head, MAIN), Part(arc(0, 0.42, 0.45, 0.28), LIGHT)]
    for side in (-1, 1):
        parts += [
            Part(arc(side * apart, -0.08, eye, eye * 1.3), INK),
            Part(polygon((side * 0.55, 0.3), (side * 1.15, 0.2)), INK, 0.05),
            Part(polygon((side * 0.55, 0.45), (side * 1.15, 0.52)), INK, 0.05),
        ]
    return [*parts, Part(polygon((-0.14, 0.25), (0.14, 0.25), (0, 0.42)), INK)]


def cup(vary: Vary) -> list[Part]:
    top, foot, height, lip = vary(0.6, 0.75), vary(0.35, 0.6), vary(0.6, 0.85), vary(0.12, 0.18)
    ear_wide, ear_high = vary(0.3, 0.42), vary(0.25, 0.33)
    body = smooth(
        (-top, -0.3),
        (-top, -0.3),
        (-foot - 0.1, height),
        (-foot, height),
        (foot, height),
        (foot + 0.1, height),
        (top, -0.3),
        (top, -0.3),
    )
    return [
        Part(arc(top - 0.05, 0.12, ear_wide, ear_high, -0.25, 0.25), MAIN, 0.16),
        Part(body, MAIN),
        Part(arc(0, -0.3, top, lip), SECOND),
        Part(smooth((-0.22, -0.55), (-0.07, -0.7), (-0.37, -0.9), (-0.22, -1.05), closed=False), INK, 0.07),
        Part(smooth((0.22, -0.55), (0.37, -0.7), (0.07, -0.9), (0.22, -1.05), closed=False), INK, 0.07),
    ]


def fish(vary: Vary) -> list[Part]:
    deep, tail, fin, nose = vary(0.42, 0.66), vary(0.45, 0.7), vary(0.2, 0.4), vary(0.9, 1.05)
    body = smooth((nose, 0), (0.6, -deep), (-0.2, -deep), (-0.85, 0), (-0.2, deep), (0.6, deep))
    fork = smooth((-0.4, 0), (-0.4, 0), (-1.1, -tail), (-1.1, -tail), (-0.85, 0), (-1.1, tail), (-1.1, tail))
    return [
        Part(fork, SECOND),
        Part(polygon((0.4, -deep * 0.6), (-0.2, -deep * 0.7 - fin), (-0.35, -deep * 0.5)), SECOND),
        Part(body, MAIN),
        Part(smooth((0.15, -deep * 0.55), (0, 0), (0.15, deep * 0.55), closed=False), LIGHT, 0.07),
        Part(arc(0.48, -deep * 0.2, 0.09, 0.09), INK),
    ]


def flower(vary: Vary) -> list[Part]:
    petals, long, middle = 5 + vary.index(3), vary(0.75, 0.95), vary(0.17, 0.24)
    sway, leaf = vary(-0.15, 0.15), vary(0.35, 0.55)
    corners = []
    for i in range(petals):
        spokes = unit_circle((i + np.array([0.0, 0.25, 0.75])) / petals).tolist()  # between two petals, and this one's
        for (x, y), radius in zip([spokes[0], *spokes], (0.3, 0.3, long, long)):
            corners.append((x * radius, y * radius - 0.4))
    return [
        Part(smooth((0, -0.4), (sway, 0.3), (0, 1), closed=False), SECOND, 0.1),
        Part(smooth((0, 0.85), (0, 0.85), (leaf * 0.3, 0.35), (leaf, 0.3), (leaf, 0.3), (leaf, 0.7)), SECOND),
        Part(smooth(*corners), MAIN),
        Part(arc(0, -0.4, middle, middle), LIGHT),
    ]


def house(vary: Vary) -> list[Part]:
    wall, foot, peak, eaves = vary(0.55, 0.8), vary(0.7, 1.0), vary(-1, -0.75), vary(0.12, 0.25)
    chimney, door, lintel, pane = vary(0.3, 0.4), vary(0.15, 0.2), vary(0.2, 0.3), vary(0.28, 0.36)
    return [
        Part(box(chimney, -0.95, chimney + 0.22, -0.2), INK),
        Part(box(-wall, -0.15, wall, foot), MAIN),
        Part(polygon((-wall - eaves, -0.1), (0, peak), (wall + eaves, -0.1)), SECOND),
        Part(box(-0.33 - door, lintel, -0.33 + door, foot), INK),
        Part(box(0.1, lintel, 0.1 + pane, lintel + pane), LIGHT),
    ]


def ice_cream(vary: Vary) -> list[Part]:
    scoop, tip, rim, drip = vary(0.48, 0.6), vary(0.95, 1.15), vary(0.42, 0.5), vary(0.1, 0.25)
    front = smooth(
        (-scoop, -0.75),
        (scoop, -0.75),
        (scoop * 1.25, 0.05),
        (scoop * 0.6, 0.1),
        (0.2, 0),
        (0, drip),
        (-0.2, 0),
        (-scoop * 0.6, 0.1),
        (-scoop * 1.25, 0.05),
    )
    return [
        Part(polygon((-rim, -0.05), (rim, -0.05), (0, tip)), SECOND),
        Part(polygon((-rim * 0.3, 0), (rim * 0.35, tip * 0.6)), INK, 0.05),
        Part(polygon((rim * 0.3, 0), (-rim * 0.35, tip * 0.6)), INK, 0.05),
        Part(arc(0, -0.65, scoop * 0.8, scoop * 0.8), LIGHT),
        Part(front, MAIN),
        Part(arc(0.05, -1.12, 0.13, 0.13), INK),
    ]


def key(vary: Vary) -> list[Part]:
    bow, hole, half = vary(0.36, 0.48), vary(0.42, 0.55), vary(0.08, 0.11)
    bit, tooth, gap = half + vary(0.22, 0.34), vary(0.13, 0.18), vary(0.1, 0.15)
    a, b, c = 1 - tooth, 1 - tooth - gap, 1 - tooth - gap - tooth  # the inner edges of the two teeth
    shaft = polygon(
        (-0.3, -half),
        (1, -half),
        (1, bit),
        (a, bit),
        (a, half),
        (b, half),
        (b, bit * 0.85),
        (c, bit * 0.85),
        (c, half),
        (-0.3, half),
    )
    return [Part(shaft, MAIN), Part(arc(-0.55, 0, bow, bow), MAIN), Part(arc(-0.55, 0, bow * hole, bow * hole), GROUND)]


def mushroom(vary: Vary) -> list[Part]:
    cap, top, stem, foot, spot = vary(0.85, 1.0), vary(-1.15, -0.85), vary(0.2, 0.3), vary(0.3, 0.42), vary(0.12, 0.17)
    lean = vary(-0.1, 0.1)
    stalk = smooth((-stem, 0), (-stem, 0.5), (-foot, 0.9), (-foot, 1), (foot, 1), (foot, 0.9), (stem, 0.5), (stem, 0))
    dome = smooth(
        (-cap, 0.15),
        (-cap, 0.15),
        (-cap, -0.4),
        (-cap * 0.6, top),
        (cap * 0.6, top),
        (cap, -0.4),
        (cap, 0.15),
        (cap, 0.15),
        (0, -0.02),
    )
    return [
        Part(stalk, SECOND),
        Part(dome, MAIN),
        Part(arc(lean, top * 0.6, spot, spot), LIGHT),
        Part(arc(-0.48 * cap, -0.15, spot * 0.9, spot * 0.9), LIGHT),
        Part(arc(0.48 * cap, -0.18, spot, spot), LIGHT),
    ]


def rocket(vary: Vary) -> list[Part]:
    belly, fin, flame, port = vary(0.32, 0.42), vary(0.65, 0.8), vary(0.95, 1.15), vary(0.13, 0.17)
    body = smooth(
        (-0.25, 0.6),
        (-0.25, 0.6),
        (-belly * 1.4, 0),
        (-belly, -0.6),
        (0, -1.1),
        (0, -1.1),
        (belly, -0.6),
        (belly * 1.4, 0),
        (0.25, 0.6),
        (0.25, 0.6),
    )
    fire = smooth((-0.2, 0.5), (-0.2, 0.5), (-0.2, 0.8), (0, flame), (0, flame), (0.2, 0.8), (0.2, 0.5), (0.2, 0.5))
    return [
        Part(fire, LIGHT),
        Part(polygon((-belly * 0.8, 0), (-fin, 0.5), (-fin, 0.8), (-0.2, 0.55)), SECOND),
        Part(polygon((belly * 0.8, 0), (fin, 0.5), (fin, 0.8), (0.2, 0.55)), SECOND),
        Part(body, MAIN),
        Part(arc(0, -0.25, port, port), LIGHT),
    ]


def sailboat(vary: Vary) -> list[Part]:
    bow, stern, keel = vary(0.85, 1.0), vary(-0.95, -0.75), vary(0.75, 0.9)
    mast, top, boom = vary(-0.15, 0.1), vary(-1.05, -0.9), vary(0.2, 0.3)
    main, jib, jib_top = vary(0.65, 0.85), vary(-0.75, -0.6), vary(-0.7, -0.4)
    hull = smooth(
        (stern, 0.4),
        (stern, 0.4),
        (stern + 0.1, keel),
        (stern + 0.35, keel),
        (bow - 0.55, keel),
        (bow - 0.2, keel),
        (bow, 0.4),
        (bow, 0.4),
    )
    return [
        Part(polygon((mast, top), (mast, 0.45)), INK, 0.08),
        Part(polygon((mast + 0.1, top + 0.1), (mast + 0.1, boom), (main, boom)), MAIN),
        Part(polygon((mast - 0.13, jib_top), (mast - 0.13, boom), (jib, boom)), LIGHT),
        Part(hull, SECOND),
    ]


def tree(vary: Vary) -> list[Part]:
    trunk, low, wide, taper = vary(0.1, 0.16), vary(0.55, 0.75), vary(0.6, 0.85), vary(0.66, 0.8)
    parts = [Part(box(-trunk, 0.4, trunk, 1), SECOND)]
    tall = (1 + low) / 2
    for _ in range(3):  # tiers, each over the upper half of the one before
        parts.append(Part(polygon((-wide, low), (0, low - tall), (wide, low)), MAIN))
        low, wide = low - tall / 2, wide * taper
    return parts


def umbrella(vary: Vary) -> list[Part]:
    wide, top, rim, hook = vary(0.9, 1.05), vary(-0.95, -0.7), vary(0.0, 0.15), vary(0.15, 0.22)
    w = wide / 3  # the rim hangs in three scallops
    dome = smooth(
        (-wide, rim),
        (-wide, rim),
        (-wide, top * 0.75),
        (-w, top),
        (w, top),
        (wide, top * 0.75),
        (wide, rim),
        (wide, rim),
        (2 * w, rim - 0.25),
        (w, rim),
        (w, rim),
        (0, rim - 0.25),
        (-w, rim),
        (-w, rim),
        (-2 * w, rim - 0.25),
    )
    middle = smooth((-w, rim), (-w, rim), (-w, top), (0, top), (w, top), (w, rim), (w, rim), (0, rim - 0.25))
    return [
        Part(polygon((0, top - 0.12), (0, 0.8)), INK, 0.09),
        Part(arc(hook, 0.8, hook, hook, 0, 0.5), INK, 0.09),
        Part(dome, MAIN),
        Part(middle, SECOND),
    ]


THINGS: tuple[Callable[[Vary], list[Part]], ...] = (
    apple,
    balloon,
    butterfly,
    car,
    cat,
    cup,
    fish,
    flower,
    house,
    ice_cream,
    key,
    mushroom,
    rocket,
    sailboat,
    tree,
    umbrella,
)
