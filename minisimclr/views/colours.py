"""Changes of colour by name: torchvision's jitter, and those of Google's TensorFlow code.

Google's code (`data_util.py`) differs in three of the four changes: its contrast moves each channel away from its own
mean, its saturation is that of HSV, and the brightness of v1 is added. As in `changes.py`, each change has a plain
form on one view x (S,S,3) and a batched form on a stack x (3,B,P), and both get the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array
from . import plain, transforms
from .parameters import BRIGHTNESS, CONTRAST, HUE, JITTER_SPREAD

Numbers: TypeAlias = "dict[str, NDArray[Any]]"  # what was drawn: an entry for each view
Random: TypeAlias = "np.random.Generator"


def draw_jitter(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw the order of the four changes and their factors, as `parameters.py` does."""
    spread, neutral = strength * np.array(JITTER_SPREAD), np.array([1, 1, 1, 0])
    low = np.maximum(neutral - spread, [0, 0, 0, -np.inf])
    factor = rng.uniform(low, neutral + spread, (count, 4)).astype(np.float32)
    return {"order": rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1), "factor": factor}


def draw_jitter_v1(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw the same, but for a brightness that is added: from −0.8·strength to 0.8·strength."""
    numbers = draw_jitter(rng, count, size, strength)
    most = strength * JITTER_SPREAD[0]
    numbers["factor"][:, 0] = rng.uniform(-most, most, count)
    return numbers


def jitter(xp: Any, x: Array, n: Any) -> Array:
    """Make the four colour changes, torchvision's, in the order that was drawn."""
    for change in n["order"]:
        x = plain.jitter(xp, x, int(change), float(n["factor"][change]))
    return x


def google(xp: Any, x: Array, change: int, factor: float, adds: bool) -> Array:
    """Make one of TensorFlow's four colour changes."""
    if change == BRIGHTNESS:
        return xp.clip(x + factor if adds else x * factor, 0, 1)
    if change == CONTRAST:
        mean = x.mean(axis=(0, 1))  # (3,): each channel has its own
        return xp.clip((x - mean) * factor + mean, 0, 1)
    if change == HUE:
        return plain.hue(xp, x, factor)
    value = x.max(axis=2, keepdims=True)  # (S,S,1)
    chroma = value - x.min(axis=2, keepdims=True)
    # The saturation is chroma/value and at most 1, so it grows by at most value/chroma.
    growth = xp.minimum(factor, xp.where(chroma > 0, value / xp.where(chroma > 0, chroma, 1), 1))
    return value - (value - x) * growth


def jitter_google(xp: Any, x: Array, n: Any, adds: bool = False) -> Array:
    """Make the four colour changes of Google's code in the order that was drawn; `adds`: brightness of v1."""
    for change in n["order"]:
        x = google(xp, x, int(change), float(n["factor"][change]), adds)
    return x


def add(xp: Any, x: Array, amount: Array) -> Array:
    """Change the brightness as v1 does: add a number to each view."""
    x += amount[:, None]
    return xp.clip(x, 0, 1, out=x)


def contrast_by_channel(xp: Any, x: Array, factor: Array) -> Array:
    """Move each channel away from its own mean."""
    mean = x.mean(axis=2, keepdims=True)  # (3,B,1)
    return xp.clip((x - mean) * factor[:, None] + mean, 0, 1)


def saturation_hsv(xp: Any, x: Array, factor: Array) -> Array:
    """Multiply the saturation of HSV, which is at most 1."""
    value, low = x.max(axis=0), x.min(axis=0)  # (B,P)
    grey = value == low
    growth = xp.where(grey, 1, value / xp.where(grey, 1, value - low))
    return value - (value - x) * xp.minimum(factor[:, None], growth)


def orders(functions: tuple[Any, ...]) -> Callable[[Any, Array, Any], Array]:
    """Return the batched form of a jitter: the views that have one order are changed together."""

    def batched(xp: Any, x: Array, n: Any) -> Array:
        code = n["order"] @ 4 ** np.arange(4)  # (B,), a number for each order
        y = x.copy()
        for one in np.unique(code):
            rows = np.flatnonzero(code == one)
            i, part = xp.asarray(rows), x[:, xp.asarray(rows)]  # a copy: the changes write to it
            for change in n["order"][rows[0]]:
                part = functions[change](xp, part, xp.asarray(n["factor"][rows, change]))
            y[:, i] = part
        return y

    return batched


def grey(xp: Any, x: Array, n: Any) -> Array:
    """Take the colours away."""
    return xp.stack([plain.grey(x)] * 3, axis=2)


def grey_batched(xp: Any, x: Array, n: Any) -> Array:
    """Take the colours away."""
    return xp.broadcast_to(transforms.grey_of(xp, x), x.shape)


# By the number of the change
GOOGLE = (transforms.brightness, contrast_by_channel, saturation_hsv, transforms.hue)
JITTER = (transforms.brightness, transforms.contrast, transforms.saturation, transforms.hue)
