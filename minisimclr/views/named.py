"""Views by name, in the order in which they are written: "crop,flip,colour,cutout".

    auto                         crop,flip,jitter,grey: the paper's appendix A, by the fast form of augment.py
    google, google-v1            crop-google,flip,jitter-google,grey, and the same with the brightness of v1
    crop, crop-google, whole     the part of the image that is seen; the first name, or else it is crop
    flip jitter grey blur        as in the paper's appendix A; "colour" is jitter,grey
    cutout rotate sobel noise    the other changes of the paper's Figures 4 and 5

A number behind a name is its probability: "sobel:1" for every view, "blur:0.1" for one in ten. What is drawn for a name
does not depend on the other names. So runs that differ in one of them see the same crops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array
from ..values import shown, text
from . import plain
from .changes import CHANGES
from .colours import Numbers
from .parameters import CROP_ASPECT
from .parameters import _draw_crops as draw_crops

Boxes: TypeAlias = "tuple[NDArray[np.int64], ...]"  # top, left, height, width, (N,) each

PRESETS = {
    "auto": "crop,flip,jitter,grey",
    "google": "crop-google,flip,jitter-google,grey",
    "google-v1": "crop-google,flip,jitter-google-v1,grey",
}
PAPER = [("crop", 1.0), ("flip", 0.5), ("jitter", 0.8), ("grey", 0.2)]  # what augment.py makes, and then the blur
TRIES = 100  # draws of a crop before the whole image is taken; TensorFlow's
COVERED = 0.1  # smallest area of a crop of Google's: its `min_object_covered`, with the whole image as the object


@dataclass(frozen=True)
class Recipe:
    """The steps that make a view: the law of its crop, then changes in order, each with its probability."""

    crop: str
    changes: tuple[tuple[str, float], ...]


def recipe_of(names: str, blur: bool = False) -> Recipe:
    """Read names of changes, or a preset; `blur` adds the blur at the end, unless it is named.

    >>> recipe_of("crop,flip,blur:0.1").changes
    (('flip', 0.5), ('blur', 0.1))

    Raises: ValueError for a name that does not exist or stands twice, a crop that is not first, and a probability
            that is not in [0,1].
    """
    names = PRESETS.get(text("views", names), names).replace("colour", "jitter,grey")
    parts = [part.strip().partition(":") for part in names.split(",")]
    crop = parts.pop(0)[0] if parts[0][0] in CROPS and not parts[0][1] else "crop"
    changes = []
    for name, _, chosen in parts:
        if name in CROPS:
            raise ValueError(f"views must have {name} in the first place, if at all, and without a probability")
        if name not in CHANGES:
            known = ", ".join([*PRESETS, *CROPS, "colour", *CHANGES])
            raise ValueError(f"views must be some of {known}; not {shown(name)}")
        try:
            p = float(chosen) if chosen else CHANGES[name].probability
        except ValueError:
            p = math.nan
        if not 0 <= p <= 1:
            raise ValueError(f"views must have probabilities from 0 to 1, not {shown(f'{name}:{chosen}')}")
        changes.append((name, p))
    if len({name for name, _ in changes}) < len(changes):
        raise ValueError("views must not name a change twice")
    if blur and "blur" not in dict(changes):
        changes.append(("blur", CHANGES["blur"].probability))
    return Recipe(crop, tuple(changes))


def is_papers(names: str) -> tuple[bool, bool]:
    """Return if names mean what augment.py makes; and if they ask for its blur."""
    recipe = recipe_of(names)
    steps = [(recipe.crop, 1.0), *recipe.changes]
    return steps in (PAPER, [*PAPER, ("blur", 0.5)]), ("blur", 0.5) in steps


# ── What is random ────────────────────────────────────────────────────────────────────────────────


def crops_of_google(rng: np.random.Generator, count: int, height: Any, width: Any, min_area: float) -> Boxes:
    """Draw crops by TensorFlow's sample_distorted_bounding_box: aspect and *height* are uniform, not the area.

    So small crops are likelier: the mean area is 42 % of a square image, and 48 % by the paper's law. Offsets leave out
    their upper end, as they do there.
    """
    shape = count, TRIES
    height, width = np.broadcast_to(height, count)[:, None], np.broadcast_to(width, count)[:, None]  # (N,1) each
    aspect = rng.uniform(*CROP_ASPECT, shape)  # (N,100), uniform: 4:3 more often than 3:4
    least, most = min_area * height * width, 1.0 * height * width
    low, high = np.rint(np.sqrt(least / aspect)), np.rint(np.sqrt(most / aspect))
    high = np.where(np.rint(high * aspect) > width, np.floor((width + 0.5 - 1e-7) / aspect), high)
    high = np.minimum(high, height)
    low = np.minimum(low, high)
    h = low + np.floor(rng.random(shape) * (high - low + 1))
    h += np.rint(h * aspect) * h < least  # rounding may have made it too small …
    h -= np.rint(h * aspect) * h > most  # … or too large
    w = np.rint(h * aspect)
    fits = (w * h >= np.maximum(least, COVERED * height * width)) & (w * h <= most) & (w <= width) & (h <= height)
    first = np.arange(count), fits.argmax(axis=1)
    fitting = fits.any(axis=1)
    h = np.where(fitting, h[first], height[:, 0]).astype(np.int64)  # (N,); else the whole image
    w = np.where(fitting, w[first], width[:, 0]).astype(np.int64)
    top = rng.integers(0, np.maximum(height[:, 0] - h, 1))
    return top, rng.integers(0, np.maximum(width[:, 0] - w, 1)), h, w


def whole_images(rng: np.random.Generator, count: int, height: Any, width: Any, min_area: float) -> Boxes:
    """Take the whole image; nothing is drawn."""
    none = np.zeros(count, np.int64)
    return none, none, none + height, none + width


CROPS: dict[str, Callable[..., Boxes]] = {"crop": draw_crops, "crop-google": crops_of_google, "whole": whole_images}


@dataclass(frozen=True)
class Drawn:
    """The numbers of N views: the boxes of their crops, and for each change which views it meets, and its numbers."""

    top: NDArray[np.int64]  # (N,) as in ViewParameters
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    steps: tuple[tuple[str, NDArray[np.bool_], Numbers], ...]
    flip: ClassVar[None] = None  # it is one of the changes

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> Drawn:
        """Select the numbers of some views, or of one view without the leading axis."""
        steps = tuple((name, on[rows], {key: x[rows] for key, x in n.items()}) for name, on, n in self.steps)
        return Drawn(self.top[rows], self.left[rows], self.height[rows], self.width[rows], steps)


def draw(
    rng: np.random.Generator,
    recipe: Recipe,
    count: int,
    height: Any,
    width: Any,
    size: int,
    strength: float,
    min_area: float,
) -> Drawn:
    """Draw the numbers of `count` views. Each change draws from a generator of its own, seeded by `rng`."""
    seed = int(rng.integers(2**63))
    children = {name: np.random.default_rng([seed, k]) for k, name in enumerate(("crop", *CHANGES))}
    top, left, box_height, box_width = CROPS[recipe.crop](children["crop"], count, height, width, min_area)
    steps = []
    for name, probability in recipe.changes:
        child = children[name]
        on = child.random(count) < probability
        steps.append((name, on, CHANGES[name].draw(child, count, size, strength)))
    return Drawn(top, left, box_height, box_width, tuple(steps))


# ── The pixels ────────────────────────────────────────────────────────────────────────────────────


def view(xp: Any, image: Array, drawn: Drawn, size: int) -> Array:
    """Make one view, `drawn[i]` of the drawn ones, one change after the other: uint8 (H,W,3) -> float (size,size,3)."""
    x = image[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width] / 255  # (h,w,3) in [0,1]
    x = plain.resize(xp, x, size)
    x = plain.resize(xp, x.swapaxes(0, 1), size).swapaxes(0, 1)  # (size,size,3)
    for name, on, numbers in drawn.steps:
        if on:
            x = CHANGES[name].plain(xp, x, numbers)
    return x


def changed(xp: Any, x: Array, drawn: Drawn) -> Array:
    """Make the changes of several views, one change after the other, in place: float32 (3,B,P) in [0,1]."""
    for name, on, numbers in drawn.steps:
        rows = np.flatnonzero(on)
        if len(rows):
            i = xp.asarray(rows)
            x[:, i] = CHANGES[name].batched(xp, x[:, i], {key: value[rows] for key, value in numbers.items()})
    return x
