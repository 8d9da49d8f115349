"""Two random views of every image: what a SimCLR network learns to see as one thing.

A view is made in the order of the paper (appendix A), each step with torchvision's definition:

    crop, flip, resize  →  colour jitter  →  greyscale  →  blur

What is random is drawn first, for the whole batch (`draw_parameters`); what follows is a plain
function of the images and their parameters (`apply_view`), the same on NumPy and CuPy. So, but for
rounding, the views do not depend on how a batch is cut into groups, nor on the device.

Two ideas make it short and fast. Cropping, flipping and resizing act on rows and on columns apart,
and each is linear; so together they are one small banded matrix a side, and the view of an image X is

    A_h · X · A_wᵀ

two matrix products for a whole stack of images. A blur is one more such pair. And though each view
has its own order of colour changes, there are only 24: views of the same order are changed together.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module
from ..processor import parallel, pieces
from .transforms import brightness, contrast, gaussian_blur, grey_of, hue, resample, resize_matrices, saturation

CROP_AREA = 0.08  # smallest fraction of the image that a crop covers; uniform up to 1
CROP_ASPECT = (3 / 4, 4 / 3)  # its width / height, uniform in the logarithm: 3:4 as often as 4:3
CROP_TRIES = 10
FLIP, JITTERED, GREYED, BLURRED = 0.5, 0.8, 0.2, 0.5  # probabilities
JITTER_SPREAD = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue; at strength 1
MAX_STRENGTH = 2.5  # where the hue turns by up to ±1/2: the whole circle
BLUR_SIGMA = (0.1, 2.0)  # pixels of the view
GROUP_PIXELS = 2**15  # of all images that are changed together on a CPU
JITTER = (brightness, contrast, saturation, hue)


def two_views(
    images: Array,
    rng: np.random.Generator,
    size: int = 32,
    strength: float = 0.5,
    blur: bool = False,
    min_area: float = CROP_AREA,
    *,
    method: str = "auto",
) -> tuple[Array, Array]:
    """Two independent random views of each image; a[i] and b[i] are a positive pair.

    images uint8 (N,H,W,3) -> float32 (N,size,size,3) in [0,1], twice, on the device of the images.
    `strength` scales the colour jitter (the paper: 1 on ImageNet, 0.5 on CIFAR-10) and 0 turns all
    colour distortion off, greyscale included. `blur` belongs to ImageNet. A crop covers at least the
    fraction `min_area` of the image: small things in a corner want more than the paper's 0.08. Random numbers come from
    `rng` alone. Raises TypeError if the images are not uint8, ValueError for a wrong shape or option.
    """
    count, height, width = _check(images, size)
    a, b = (draw_parameters(rng, count, height, width, strength, blur, min_area) for _ in "ab")
    views = _views(images, np.tile(np.arange(count), 2), a + b, size)
    return views[:count], views[count:]


def one_view(
    images: Array,
    rng: np.random.Generator,
    size: int = 32,
    strength: float = 0.5,
    blur: bool = False,
    min_area: float = CROP_AREA,
) -> Array:
    """A random view of each image: as `two_views`, once."""
    count, height, width = _check(images, size)
    return apply_view(images, draw_parameters(rng, count, height, width, strength, blur, min_area), size)


# ── What is random ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ViewParameters:
    """All that is random about N views, on the host; entry i belongs to image i."""

    top: NDArray[np.int64]  # (N,) the crop, in pixels of the image
    left: NDArray[np.int64]  # (N,)
    height: NDArray[np.int64]  # (N,)
    width: NDArray[np.int64]  # (N,)
    flip: NDArray[np.bool_]  # (N,) mirrored left to right?
    jitter: NDArray[np.bool_]  # (N,) colours changed at all?
    order: NDArray[np.int64]  # (N,4) which of JITTER comes first, second, third, last
    factor: NDArray[np.float32]  # (N,4) one for each of JITTER
    grey: NDArray[np.bool_]  # (N,)
    blur: NDArray[np.bool_]  # (N,)
    sigma: NDArray[np.float32]  # (N,) of the blur

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> ViewParameters:
        """The parameters of some of the images."""
        return ViewParameters(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __add__(self, other: ViewParameters) -> ViewParameters:
        """Those of `self`, and then those of `other`."""
        return ViewParameters(
            *(np.concatenate([getattr(p, field.name) for p in (self, other)]) for field in fields(self))
        )


def draw_parameters(
    rng: np.random.Generator,
    count: int,
    height: int,
    width: int,
    strength: float = 0.5,
    blur: bool = False,
    min_area: float = CROP_AREA,
) -> ViewParameters:
    """Draw the parameters of `count` views of images of height×width pixels.

    The same numbers are drawn whatever `strength` and `blur` are: from the same state of `rng`, runs
    that differ in them see the same crops.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"strength must be from 0 to {MAX_STRENGTH}, not {strength!r}")
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area!r}")
    top, left, crop_height, crop_width = _draw_crops(rng, count, height, width, min_area)
    flip, jitter, grey, blurred = (rng.random(count) < p for p in (FLIP, JITTERED, GREYED, BLURRED))
    spread = strength * np.array(JITTER_SPREAD)
    neutral = np.array([1, 1, 1, 0])  # the first three multiply, the hue is added to
    low, high = np.maximum(neutral - spread, [0, 0, 0, -np.inf]), neutral + spread
    return ViewParameters(
        top,
        left,
        crop_height,
        crop_width,
        flip,
        jitter=jitter & (strength > 0),
        order=rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1),
        factor=rng.uniform(low, high, (count, 4)).astype(np.float32),
        grey=grey & (strength > 0),
        blur=blurred & blur,
        sigma=rng.uniform(*BLUR_SIGMA, count).astype(np.float32),
    )


def _draw_crops(
    rng: np.random.Generator, count: int, height: int, width: int, min_area: float
) -> tuple[NDArray[np.int64], ...]:
    """top, left, height, width of `count` crops, int64 (count,) each, by torchvision's RandomResizedCrop:

    ten tries at an area and an aspect; the first crop that fits inside the image is taken; if none
    fits, the largest central one of an allowed aspect.
    """
    tries = (count, CROP_TRIES)
    area = rng.uniform(min_area, 1, tries) * (height * width)
    aspect = np.exp(rng.uniform(np.log(CROP_ASPECT[0]), np.log(CROP_ASPECT[1]), tries))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # (count,10)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.arange(count), fits.argmax(axis=1)
    fitting = fits.any(axis=1)

    central_w = min(width, round(height * CROP_ASPECT[1]))
    central_h = min(height, round(width / CROP_ASPECT[0]))
    w = np.where(fitting, w[first], central_w).astype(np.int64)
    h = np.where(fitting, h[first], central_h).astype(np.int64)
    top = rng.integers(0, height - h + 1)  # both ends included
    left = rng.integers(0, width - w + 1)
    return np.where(fitting, top, (height - h) // 2), np.where(fitting, left, (width - w) // 2), h, w


# ── From parameters to pixels ─────────────────────────────────────────────────────────────────────


def apply_view(images: Array, parameters: ViewParameters, size: int) -> Array:
    """The views that the parameters describe: uint8 (N,H,W,3) -> float32 (N,size,size,3) in [0,1]."""
    count, _, _ = _check(images, size)
    if len(parameters) != count:
        raise ValueError(f"{count} images need {count} parameters, not {len(parameters)}")
    return _views(images, np.arange(count), parameters, size)


def _views(images: Array, of: NDArray[np.int64], parameters: ViewParameters, size: int) -> Array:
    """As `apply_view`, for any number of views: view i is one of images[of[i]]."""
    xp = array_module(images)
    views = xp.empty((len(of), size, size, 3), dtype=xp.float32)

    def make(group: NDArray[np.int64]) -> None:
        p = parameters[group]
        x = _crops(images, of[group], p, size)  # (3,B,P): each colour a plane of P = size² pixels
        if p.jitter[0]:
            for kind in p.order[0]:
                x = JITTER[kind](x, xp.asarray(p.factor[:, kind]))
        if p.grey.any():
            i = xp.asarray(np.flatnonzero(p.grey))
            x[:, i] = grey_of(x[:, i])
        if p.blur.any():
            i = xp.asarray(np.flatnonzero(p.blur))
            x[:, i] = gaussian_blur(x[:, i], xp.asarray(p.sigma[p.blur]))
        views[xp.asarray(group)] = _interleaved(x, size)

    groups = _groups(xp, parameters, size)
    if xp is np:
        parallel(make, groups)
    else:
        for group in groups:
            make(group)
    return views


def _groups(xp: Any, p: ViewParameters, size: int) -> list[NDArray[np.int64]]:
    """The views whose colours change in the same order belong together: each change is one call for all of them.

    A group is as small as is needed for a few copies of it to fit a processor's cache.
    """
    code = np.where(p.jitter, 1 + p.order @ 4 ** np.arange(4), 0)  # a number for each order; 0: no change
    by_code = np.argsort(code, kind="stable")
    same = np.split(by_code, np.flatnonzero(np.diff(code[by_code])) + 1)
    return [group[part] for group in same for part in _pieces(xp, len(group), size)]


def _pieces(xp: Any, count: int, size: int) -> list[slice]:
    return pieces(xp, count, max(1, GROUP_PIXELS // size**2))


def _crops(images: Array, of: NDArray[np.int64], p: ViewParameters, size: int) -> Array:
    """Crop, flip and resize: images[of] -> float32 (3,B,size²)."""
    xp = array_module(images)
    y, x = p.top.min(), p.left.min()  # the part that some crop sees
    part = images[xp.asarray(of), y : (p.top + p.height).max(), x : (p.left + p.width).max()]  # (B,H,W,3)
    A_h = resize_matrices(xp, p.top - y, p.height, part.shape[1], size)  # (B,size,H)
    A_w = resize_matrices(xp, p.left - x, p.width, part.shape[2], size, p.flip)  # (B,size,W)
    return resample(part, A_h, A_w)


def _interleaved(x: Array, size: int) -> Array:
    """Planes (3,B,P) as images (B,size,size,3), clipped to [0,1]: weights may sum to 1 + 1e-7."""
    xp = array_module(x)
    _, B, P = x.shape
    images = xp.empty((B, P, 3), dtype=xp.float32)
    for channel in range(3):  # three times faster than a transposed copy
        images[..., channel] = x[channel]
    return xp.clip(images, 0, 1, out=images).reshape(B, size, size, 3)


# ── Nothing random: images for evaluation ─────────────────────────────────────────────────────────


def to_float(images: Array) -> Array:
    """uint8 (N,H,W,3) -> float32 of the same shape in [0,1]."""
    _check(images)
    return images.astype(np.float32) / np.float32(255)


def centre_view(images: Array, size: int) -> Array:
    """The central square of each image, resized: uint8 (N,H,W,3) -> float32 (N,size,size,3) in [0,1]."""
    count, height, width = _check(images, size)
    if height == width == size:
        return to_float(images)
    xp = array_module(images)
    side = np.array([min(height, width)])  # one matrix serves all images
    A_h = resize_matrices(xp, (height - side) // 2, side, height, size)
    A_w = resize_matrices(xp, (width - side) // 2, side, width, size)
    views = xp.empty((count, size, size, 3), dtype=xp.float32)
    for rows in _pieces(xp, count, size):
        views[rows] = _interleaved(resample(images[rows], A_h, A_w), size)
    return views


def _check(images: Array, size: int = 1) -> tuple[int, int, int]:
    """(N, H, W), or a one-line error."""
    dtype = getattr(images, "dtype", type(images).__name__)
    if dtype != np.uint8:
        raise TypeError(f"images must be a uint8 array, not {dtype}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(f"images must have the shape (N,H,W,3), not {images.shape}")
    if operator.index(size) < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    count, height, width, _ = images.shape
    return count, height, width
