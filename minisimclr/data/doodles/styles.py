"""The paint of a doodle: its colours, and the styles that make layers of its parts.

Parts come here already in place, in fractions of the image's side; so lines and hatching have the same weight on a
small thing as on a large one, about one pixel at 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .raster import Colour, Edges, Layer, sides, stroke, unit_circle
from .things import GROUND, INK, MAIN, SECOND, Part, Vary

Tones = tuple[Colour, ...]  # a colour for each of MAIN, SECOND, LIGHT, INK and GROUND

# ── Colours ───────────────────────────────────────────────────────────────────────────────────────

PALETTE: Tones = (
    (214, 64, 52),
    (236, 120, 44),
    (242, 176, 52),
    (122, 158, 58),
    (46, 134, 100),
    (30, 146, 160),
    (44, 108, 178),
    (72, 76, 158),
    (132, 78, 156),
    (204, 74, 128),
    (232, 126, 138),
    (150, 98, 66),
)
DARK, WHITE = (36, 34, 52), (255, 255, 255)


def mix(a: Colour, b: Colour, percent: int) -> Colour:
    """Mix colour a with `percent` of colour b, in integers."""
    red, green, blue = ((p * (100 - percent) + q * percent + 50) // 100 for p, q in zip(a, b))
    return red, green, blue


def choose_tones(vary: Vary) -> Tones:
    """Choose two colours of the palette, two made of them, and a ground that is nearly white.

    The class has no influence, and the light and the dark vary in strength, so that colours tell nothing about shape.
    """
    n = len(PALETTE)
    i = vary.index(n)
    main, second = PALETTE[i], PALETTE[(i + 1 + vary.index(n - 1)) % n]  # never the same
    light, ink = mix(second, WHITE, 40 + vary.index(35)), mix(main, DARK, 55 + vary.index(40))
    ground = mix(WHITE, PALETTE[vary.index(n)], vary.index(7))
    return main, second, light, ink, ground


# ── Styles ────────────────────────────────────────────────────────────────────────────────────────


def filled(parts: list[Part], tones: Tones, vary: Vary) -> list[Layer]:
    """Flat areas of colour."""
    return [Layer(area(part), tones[part.tone]) for part in parts]


def shadowed(parts: list[Part], tones: Tones, vary: Vary) -> list[Layer]:
    """Flat areas of colour above their grey shadow, as if cut from paper."""
    lift, grey = vary(0.035, 0.06), mix(tones[GROUND], DARK, 26)
    return [Layer(area(part) + lift, grey) for part in parts] + filled(parts, tones, vary)


def inked(parts: list[Part], tones: Tones, vary: Vary) -> list[Layer]:
    """Areas of colour, each with a dark outline, as in a comic."""
    pen = vary(0.03, 0.04)
    return [layer for part in parts for layer in outlined_area(part, tones[part.tone], tones[INK], pen)]


def outlined(parts: list[Part], tones: Tones, vary: Vary) -> list[Layer]:
    """Lines alone, in one colour."""
    pen, line = vary(0.035, 0.05), mix(tones[MAIN], DARK, 35)
    inside = (tones[GROUND], line)  # a part that is dark in the other styles is filled with the line's colour
    return [layer for part in parts for layer in outlined_area(part, inside[part.tone == INK], line, pen)]


def hatched(parts: list[Part], tones: Tones, vary: Vary) -> list[Layer]:
    """Outlines shaded with parallel lines, as in an etching; the second tone is hatched across the first."""
    pen, line = vary(0.026, 0.034), mix(tones[MAIN], DARK, 50)
    angle, gap = vary(0.08, 0.17), vary(0.075, 0.095)
    hatches = {MAIN: hatching(angle, gap, pen * 0.8), SECOND: hatching(angle + 0.25, gap, pen * 0.8)}
    layers = []
    for part in parts:
        inside, *contour = outlined_area(part, line if part.tone == INK else tones[GROUND], line, pen)
        shading = [Layer(hatches[part.tone], line, clipped=True)] if part.tone in hatches else []
        layers += [inside, *shading, *contour]
    return layers


def area(part: Part) -> Edges:
    """The area that a part covers; a line is at least a pixel wide at 32 pixels."""
    return stroke(part.path, max(part.width, 0.035), closed=False) if part.width else sides(part.path)


def outlined_area(part: Part, inside: Colour, line: Colour, pen: float) -> list[Layer]:
    """A part with its outline; a part that is itself a line has an inside only if it is wide enough."""
    if not part.width:
        return [Layer(sides(part.path), inside), Layer(stroke(part.path, pen, closed=True), line)]
    if part.width < 2 * pen:
        return [Layer(stroke(part.path, pen, closed=False), line)]
    outer, inner = (stroke(part.path, part.width + grow, closed=False) for grow in (pen / 2, -pen / 2))
    return [Layer(outer, line), Layer(inner, inside)]


def hatching(angle: float, gap: float, width: float) -> Edges:
    """Parallel lines over the whole image."""
    ((c, s),) = unit_circle(np.array([angle]))
    along, across = np.array([c, s]) * 0.75, np.array([-s, c])  # from the middle, 0.75 reaches beyond every corner
    middle = (np.arange(20) * gap - 0.75)[:, None] * across + 0.5  # 20 reach across at the smallest gap, 0.075
    half = across * (width / 2)
    quads = [middle - along - half, middle + along - half, middle + along + half, middle - along + half]
    return sides(np.stack(quads, axis=1))


Style = Callable[[list[Part], Tones, Vary], list[Layer]]
STYLE_FUNCTIONS: dict[str, Style] = {style.__name__: style for style in (filled, outlined, shadowed, inked, hatched)}
