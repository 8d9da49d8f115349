"""The plain form of a view: one image, one step after the other, as in appendix A.

    crop → resize → flip → colour jitter → greyscale → blur

Each step has torchvision's definition. Every fast form of a view must equal this one, for the same parameters.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array
from .parameters import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewParameters


def view(xp: Any, image: Array, p: ViewParameters, size: int) -> Array:
    """Make the view of one image that the parameters of one view describe: uint8 (H,W,3) -> float (size,size,3)."""
    x = image[p.top : p.top + p.height, p.left : p.left + p.width] / 255  # (h,w,3) in [0,1]
    x = resize(xp, x, size)  # (size,w,3): the rows first
    x = resize(xp, x.swapaxes(0, 1), size).swapaxes(0, 1)  # (size,size,3): then the columns
    if p.flip:
        x = x[:, ::-1]  # left becomes right; never upside down, because photos are not
    if p.jitter:
        for change in p.order:  # each view has its own order: contrast then hue is not hue then contrast
            x = jitter(xp, x, change, p.factor[change])
    if p.grey:
        x = xp.stack([grey(x)] * 3, axis=2)  # (size,size,3)
    if p.blur:
        for _ in range(2):  # down the columns, then along the rows: a Gaussian is a product of two
            x = blur(xp, x, float(p.sigma)).swapaxes(0, 1)
    return x


def resize(xp: Any, x: Array, size: int) -> Array:
    """Resize the first axis to `size`, bilinear and antialiased as in Pillow and torch: (L,…,3) -> (size,…,3).

    Each output row is the mean of the input rows about the place where its centre lies, weighted by a triangle. The
    triangle reaches one input row to each side, or one *output* row if that is longer: no input row is then skipped.
    """
    reach = max(len(x) / size, 1)
    centre = (xp.arange(size) + 0.5) * (len(x) / size)  # (size,) in input rows
    weights = xp.maximum(1 - abs(xp.arange(len(x)) + 0.5 - centre[:, None]) / reach, 0)  # (size,L)
    weights /= weights.sum(axis=1, keepdims=True)  # at the border a part of the triangle finds no row
    return (weights @ x.reshape(len(x), -1)).reshape(size, *x.shape[1:])  # (size,…,3)


def grey(x: Array) -> Array:
    """Return the brightness that the eye sees: (H,W,3) -> (H,W)."""
    return 0.2989 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def jitter(xp: Any, x: Array, change: int, factor: float) -> Array:
    """Make one of the four colour changes: blend with black, the mean grey or each pixel's grey; or turn the hue."""
    if change == HUE:
        return hue(xp, x, factor)
    own = grey(x)[:, :, None]  # (H,W,1), the grey of each pixel
    other = {BRIGHTNESS: 0, CONTRAST: own.mean(), SATURATION: own}[change]
    return xp.clip(factor * x + (1 - factor) * other, 0, 1)


def hue(xp: Any, x: Array, turn: float) -> Array:
    """Turn the circle of colours by `turn` (1 is once around): RGB to HSV, add to H, and back."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]  # (H,W) each
    value, low = x.max(axis=2), x.min(axis=2)  # (H,W)
    chroma = value - low
    c = xp.where(chroma > 0, chroma, 1)  # a grey has no hue; any number will do, as its chroma is 0
    # H in sixths of the circle: 0 red, 2 green, 4 blue; the two smaller channels say which way it leans.
    h = xp.where(value == r, (g - b) / c, xp.where(value == g, 2 + (b - r) / c, 4 + (r - g) / c))
    # Back to RGB: a channel falls from `value` by the chroma where H is more than a sixth away from its own colour.
    away = [h + 6 * turn - own for own in (0, 2, 4)]  # 3 × (H,W)
    away = [abs(d - 6 * xp.rint(d / 6)) for d in away]  # 0…3: the shorter way round the circle
    return xp.stack([value - chroma * xp.clip(d - 1, 0, 1) for d in away], axis=2)  # (H,W,3)


def blur(xp: Any, x: Array, sigma: float) -> Array:
    """Blur along the first axis with a Gaussian as long as a tenth of it, made odd: (S,S,3) -> (S,S,3)."""
    radius = len(x) // 10 // 2
    weights = xp.exp(-((xp.arange(-radius, radius + 1) / sigma) ** 2) / 2)  # (2·radius+1,)
    wide = xp.pad(x, ((radius, radius), (0, 0), (0, 0)), mode="reflect")  # (S+2·radius,S,3)
    return sum(weight * wide[k : k + len(x)] for k, weight in enumerate(weights)) / weights.sum()  # (S,S,3)
