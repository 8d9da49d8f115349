"""Doodles: a data set that is drawn, not downloaded; sixteen things in five styles.

    images, labels, style_index = draw_doodles(6000, seed=0)        # uint8 (6000,32,32,3), int64, int64

A drawing is made in four steps: `things` lists the parts of a thing, with proportions that vary; `place`, below, puts
them somewhere in the image; `styles` turns them into layers of paint; and `raster` makes pixels of the layers.

The purpose of the data set decides what varies. Contrastive learning takes the easiest way to tell images apart, so the
easy ways are closed. The ground is plain: on a textured ground, the network would learn the texture, not the thing. The
things move: if all were centred, raw pixels would tell them apart. Colours are drawn without regard to the class. Only
shape is left. One style is kept out of training, to ask whether shape was learned or only a look.

Every random number is a fixed function of the seed and the image's index. So a drawing depends neither on how many are
made, nor on their size, nor on the styles asked for: those choose its style, but not its shape, place and colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..dataset import DataError, Dataset
from .raster import paint, unit_circle
from .styles import STYLE_FUNCTIONS, choose_tones
from .things import GROUND, THINGS, Part, Vary

CLASS_NAMES: tuple[str, ...] = tuple(thing.__name__.replace("_", " ") for thing in THINGS)
STYLES: tuple[str, ...] = tuple(STYLE_FUNCTIONS)
UNSEEN_STYLE = "hatched"
TRAINING_STYLES: tuple[str, ...] = tuple(style for style in STYLES if style != UNSEEN_STYLE)

MARGIN = 0.06  # empty border, a fraction of the image's side; room for the outer half of a line, or for a shadow
SMALLEST = 8  # smallest side, pixels; below, nothing can be recognised

# name of the split -> number of images, seed, styles
SPLITS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "train": (5000, 0, TRAINING_STYLES),
    "test": (1000, 1, TRAINING_STYLES),
    "unseen": (1000, 2, (UNSEEN_STYLE,)),
}


def load_doodles(split: str, size: int, limit: int | None) -> Dataset:
    """Draw the images of a split, or the first `limit` of them.

    Raises: DataError if there is no such split; ValueError if size is below 8.
    """
    if split not in SPLITS:
        raise DataError(f"doodles: no split {split!r}; there are: {', '.join(SPLITS)}")
    count, seed, styles = SPLITS[split]
    images, labels, _ = draw_doodles(min(count, limit or count), seed=seed, styles=styles, size=size)
    return Dataset(images, labels, CLASS_NAMES)


def draw_doodles(
    count: int, *, seed: int, styles: tuple[str, ...] = TRAINING_STYLES, size: int = 32
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Draw `count` images of `size`×`size` pixels, each in one of the styles.

    Returns images uint8 (N,size,size,3), labels int64 (N,) into CLASS_NAMES, and style_index int64 (N,) into STYLES.
    Every class occurs equally often (to within one). The same seed gives the same pixels on every platform.

    Raises: ValueError if count or seed is negative, size is below 8, or a style is unknown.
    """
    if count < 0 or seed < 0:
        raise ValueError(f"count and seed must not be negative, got count={count} and seed={seed}")
    if size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels, got {size}")
    if not styles or not set(styles) <= set(STYLES):
        raise ValueError(f"styles must be some of {', '.join(STYLES)}, got {styles!r}")

    labels = class_labels(count, seed)
    images = np.empty((count, size, size, 3), np.uint8)
    style_index = np.empty(count, np.int64)
    for i, label in enumerate(labels):
        vary = Vary(seed, i)
        style = styles[vary.index(len(styles))]
        images[i], style_index[i] = draw(label, style, size, vary), STYLES.index(style)
    return images, labels, style_index


def draw(label: int, style: str, size: int, vary: Vary) -> NDArray[np.uint8]:
    """Make one drawing.   -> (size,size,3)"""
    tones = choose_tones(vary)
    parts = place(THINGS[label](vary), vary)
    return paint(STYLE_FUNCTIONS[style](parts, tones, vary), tones[GROUND], size)


def place(parts: list[Part], vary: Vary) -> list[Part]:
    """Put a thing somewhere in the image: from about [−1,1]² into [0,1]².

    It is stretched, slanted and rotated a little (by up to 0.06 turns, 22°), and mirrored or not. The longer side of
    the result becomes 45 to 75 % of the image's side, and it lies anywhere that it fits.
    """
    x, y = np.concatenate([part.path for part in parts]).T
    x = x * vary(0.8, 1.2) * (1 - 2 * vary.index(2)) + y * vary(-0.2, 0.2)
    ((c, s),) = unit_circle(np.array([vary(-0.06, 0.06)]))
    x, y = c * x - s * y, s * x + c * y

    wide, tall = np.ptp(x), np.ptp(y)
    scale = vary(0.45, 0.75) / max(wide, tall)
    x = (x - x.min()) * scale + vary(MARGIN, 1 - MARGIN - wide * scale)
    y = (y - y.min()) * scale + vary(MARGIN, 1 - MARGIN - tall * scale)
    ends = np.cumsum([len(part.path) for part in parts])
    paths = np.split(np.stack([x, y], axis=1), ends[:-1])
    return [Part(path, part.tone, part.width * scale) for path, part in zip(paths, parts)]


def class_labels(count: int, seed: int) -> NDArray[np.int64]:
    """Draw labels: each block of 16 holds every class once, in random order.   -> (count,)"""
    n = len(THINGS)
    blocks = range(-(-count // n))
    bits = [np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0, block))).random_raw(n) for block in blocks]
    return np.argsort(np.array(bits, np.uint64).reshape(-1, n), axis=1).reshape(-1)[:count].astype(np.int64)
