"""Every change that the paper studied, each in two forms beside what is drawn for it.

The paper's Figures 4 and 5 try crops with cutout, colour distortion, Sobel filtering, noise, blur and rotation. Here
each of them has a function that draws its numbers on the host, its plain form on one view x (S,S,3), and its batched
form on a stack x (3,B,P) of P = S² pixels. Both forms get the same numbers, and agree to 1e-5.

The paper says how crops, colours and blur are drawn. For the other changes it gives no numbers; those here are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from . import plain, transforms
from .colours import (
    GOOGLE,
    JITTER,
    Numbers,
    Random,
    add,
    draw_jitter,
    draw_jitter_v1,
    grey,
    grey_batched,
    jitter,
    jitter_google,
    orders,
)
from .parameters import BLUR_SIGMA, BLURRED, FLIP, GREYED, JITTERED

CUTOUT_SIDE = 0.5  # side of the square that is cut out, a fraction of the view's; DeVries and Taylor's on CIFAR-10
CUTOUT_GREY = 0.5  # what the square is filled with: neither bright nor dark
NOISE_SIGMA = (0.0, 0.1)  # range of the noise's standard deviation, where pixels are in [0,1]
SOBEL_SCALE = 0.25  # factor of the gradient's length: a step from black to white has the value 1


class Change(NamedTuple):
    """A change of views: how likely it is, what is drawn for it, and its two forms."""

    probability: float
    draw: Callable[[Random, int, int, float], Numbers]  # rng, count, size, strength -> an entry for each view
    plain: Callable[[Any, Array, Any], Array]  # xp, x (S,S,3), the numbers of this view -> (S,S,3)
    batched: Callable[[Any, Array, Any], Array]  # xp, x (3,B,P), the numbers of these views -> (3,B,P)


def nothing(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw nothing: the change has no numbers."""
    return {}


def _square(x: Array) -> Array:
    """See planes as squares: (3,B,P) -> (3,B,S,S)."""
    side = round(x.shape[2] ** 0.5)
    return x.reshape(3, x.shape[1], side, side)


# ── Geometry ──────────────────────────────────────────────────────────────────────────────────────


def flip(xp: Any, x: Array, n: Any) -> Array:
    """Mirror left to right."""
    return x[:, ::-1]


def flip_batched(xp: Any, x: Array, n: Any) -> Array:
    """Mirror left to right."""
    return _square(x)[..., ::-1].reshape(x.shape)


def draw_turns(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw one of 0, 90, 180 and 270 degrees."""
    return {"turns": rng.integers(0, 4, count)}


def rotate(xp: Any, x: Array, n: Any) -> Array:
    """Turn the view counter-clockwise by a quarter, as often as was drawn."""
    return xp.rot90(x, int(n["turns"]))


def rotate_batched(xp: Any, x: Array, n: Any) -> Array:
    """Turn each view by its quarters: all of one angle at once."""
    y = x.copy()
    for turns in (1, 2, 3):
        i = xp.asarray(np.flatnonzero(n["turns"] == turns))
        y[:, i] = xp.rot90(_square(x[:, i]), turns, axes=(2, 3)).reshape(3, len(i), x.shape[2])
    return y


def draw_cutout(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw the centre of the square, any pixel; a part of the square may lie outside the view."""
    return {"row": rng.integers(0, size, count), "column": rng.integers(0, size, count)}


def cutout(xp: Any, x: Array, n: Any) -> Array:
    """Fill a square with grey."""
    half = round(len(x) * CUTOUT_SIDE) // 2
    top, left = max(int(n["row"]) - half, 0), max(int(n["column"]) - half, 0)
    y = x.copy()
    y[top : int(n["row"]) + half, left : int(n["column"]) + half] = CUTOUT_GREY
    return y


def cutout_batched(xp: Any, x: Array, n: Any) -> Array:
    """Fill a square of each view with grey: where row and column are both near to its centre."""
    square = _square(x)
    size = square.shape[2]
    half, at = round(size * CUTOUT_SIDE) // 2, xp.arange(size)
    near = [(at >= c[:, None] - half) & (at < c[:, None] + half) for c in map(xp.asarray, (n["row"], n["column"]))]
    inside = near[0][:, :, None] & near[1][:, None, :]  # (B,S,S)
    return xp.where(inside, x.dtype.type(CUTOUT_GREY), square).reshape(x.shape)


# ── Neighbouring pixels ───────────────────────────────────────────────────────────────────────────


def draw_blur(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw the standard deviation of the blur, pixels of the view."""
    return {"sigma": rng.uniform(*BLUR_SIGMA, count).astype(np.float32)}


def blur(xp: Any, x: Array, n: Any) -> Array:
    """Blur down the columns, then along the rows."""
    for _ in range(2):
        x = plain.blur(xp, x, float(n["sigma"])).swapaxes(0, 1)
    return x


def blur_batched(xp: Any, x: Array, n: Any) -> Array:
    """Blur each view with its own Gaussian."""
    return transforms.gaussian_blur(xp, x, xp.asarray(n["sigma"]))


def draw_noise(rng: Random, count: int, size: int, strength: float) -> Numbers:
    """Draw the standard deviation of the noise, and the noise itself: 3·S² numbers from N(0,1) for each view."""
    field = rng.standard_normal((count, size, size, 3), np.float32)
    return {"sigma": rng.uniform(*NOISE_SIGMA, count).astype(np.float32), "field": field}


def noise(xp: Any, x: Array, n: Any) -> Array:
    """Add Gaussian noise to every pixel and channel."""
    return xp.clip(x + float(n["sigma"]) * xp.asarray(n["field"]), 0, 1)


def noise_batched(xp: Any, x: Array, n: Any) -> Array:
    """Add Gaussian noise to every pixel and channel."""
    field = xp.asarray(n["field"]).transpose(3, 0, 1, 2).reshape(x.shape)  # (3,B,P)
    return xp.clip(x + xp.asarray(n["sigma"])[:, None] * field, 0, 1)


def sobel(xp: Any, x: Array, n: Any) -> Array:
    """Show the edges: the length of the gradient of the grey, by Sobel's two 3×3 filters; the border repeats."""
    g = xp.pad(plain.grey(x), 1, mode="edge")  # (S+2,S+2)
    smooth_rows = g[:-2] + 2 * g[1:-1] + g[2:]  # (S,S+2): 1 2 1 down the columns
    smooth_columns = g[:, :-2] + 2 * g[:, 1:-1] + g[:, 2:]  # (S+2,S)
    across, down = smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]  # (S,S) each
    length = xp.sqrt(across**2 + down**2) * SOBEL_SCALE
    return xp.stack([xp.clip(length, 0, 1)] * 3, axis=2)


def sobel_batched(xp: Any, x: Array, n: Any) -> Array:
    """Show the edges of each view: each filter is a sum over nine shifted maps."""
    g = xp.pad(_square(grey_batched(xp, x, n))[0], ((0, 0), (1, 1), (1, 1)), mode="edge")  # (B,S+2,S+2)
    size, zero = g.shape[1] - 2, xp.zeros((), x.dtype)
    across, down = zero, zero
    for r, c in np.ndindex(3, 3):
        part = g[:, r : r + size, c : c + size]  # (B,S,S)
        across, down = across + part * (2 - abs(r - 1)) * (c - 1), down + part * (2 - abs(c - 1)) * (r - 1)
    length = xp.clip(xp.sqrt(across**2 + down**2) * SOBEL_SCALE, 0, 1)
    return xp.broadcast_to(length.reshape(x.shape[1:]), x.shape)


# ── The changes by name ───────────────────────────────────────────────────────────────────────────

CHANGES = {
    "flip": Change(FLIP, nothing, flip, flip_batched),
    "jitter": Change(JITTERED, draw_jitter, jitter, orders(JITTER)),
    "grey": Change(GREYED, nothing, grey, grey_batched),
    "blur": Change(BLURRED, draw_blur, blur, blur_batched),
    "cutout": Change(0.5, draw_cutout, cutout, cutout_batched),
    "rotate": Change(1.0, draw_turns, rotate, rotate_batched),  # one of the four turns is none
    "sobel": Change(0.5, nothing, sobel, sobel_batched),
    "noise": Change(0.5, draw_noise, noise, noise_batched),
    "jitter-google": Change(JITTERED, draw_jitter, jitter_google, orders(GOOGLE)),
    "jitter-google-v1": Change(JITTERED, draw_jitter_v1, partial(jitter_google, adds=True), orders((add, *GOOGLE[1:]))),
}
