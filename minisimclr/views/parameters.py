"""All that is random about a view, drawn on the host before any pixel is touched.

Both forms that make the pixels, the plain and the batched one, are then functions of an image and these numbers. So
they can be compared view by view, and a GPU shows the same views as a CPU, up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

CROP_AREA = 0.08  # smallest area of a crop, a fraction of the image; the paper's and torchvision's
CROP_ASPECT = (3 / 4, 4 / 3)  # range of a crop's width / height, uniform in the logarithm: 3:4 as often as 4:3
CROP_TRIES = 10  # draws of a crop before the central one is taken; torchvision's
FLIP, JITTERED, GREYED, BLURRED = 0.5, 0.8, 0.2, 0.5  # probability of each change; the paper's, appendix A
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the colour changes, by their numbers in `order` and `factor`
JITTER_SPREAD = (0.8, 0.8, 0.8, 0.2)  # largest change of each at strength 1; the paper's
MAX_STRENGTH = 2.5  # largest strength; with it the hue turns by up to ±1/2, which is the whole circle
BLUR_SIGMA = (0.1, 2.0)  # range of the blur's standard deviation, pixels of the view; the paper's

Side = int | NDArray[np.int64]  # the images' height or width in pixels, one number for all or an array (count,)


@dataclass(frozen=True)
class ViewParameters:
    """The random numbers of N views, on the host; entry i belongs to view i."""

    top: NDArray[np.int64]  # (N,) first row of the crop, pixels of the image
    left: NDArray[np.int64]  # (N,) first column of the crop
    height: NDArray[np.int64]  # (N,) rows of the crop
    width: NDArray[np.int64]  # (N,) columns of the crop
    flip: NDArray[np.bool_]  # (N,) True: mirrored left to right
    jitter: NDArray[np.bool_]  # (N,) True: the four colour changes are made
    order: NDArray[np.int64]  # (N,4) the colour changes in the order in which they are made
    factor: NDArray[np.float32]  # (N,4) of brightness, contrast, saturation; and the turn of the hue
    grey: NDArray[np.bool_]  # (N,) True: greyscale
    blur: NDArray[np.bool_]  # (N,) True: blurred
    sigma: NDArray[np.float32]  # (N,) standard deviation of the blur, pixels of the view

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> ViewParameters:
        """Select the parameters of some views, or of one view without the leading axis."""
        return ViewParameters(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __add__(self, other: ViewParameters) -> ViewParameters:
        """Join the parameters of `self` and, after them, those of `other`."""
        return ViewParameters(
            *(np.concatenate([getattr(p, field.name) for p in (self, other)]) for field in fields(self))
        )


def draw_parameters(
    rng: np.random.Generator,
    count: int,
    height: Side,
    width: Side,
    strength: float = 0.5,
    blur: bool = False,
    min_area: float = CROP_AREA,
) -> ViewParameters:
    """Draw the parameters of `count` views of images of height×width pixels.

    The same numbers are drawn whatever `strength` and `blur` are. So from the same state of `rng`, runs that differ
    in these settings see the same crops.

    Raises: ValueError if strength or min_area is out of its range.
    Source: appendix A of the paper; torchvision's RandomResizedCrop and ColorJitter.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"strength must be from 0 to {MAX_STRENGTH}, not {strength!r}")
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area must be above 0 and at most 1, not {min_area!r}")
    top, left, crop_height, crop_width = _draw_crops(rng, count, height, width, min_area)  # (count,) each
    flip, jitter, grey, blurred = (rng.random(count) < p for p in (FLIP, JITTERED, GREYED, BLURRED))
    spread = strength * np.array(JITTER_SPREAD)
    neutral = np.array([1, 1, 1, 0])  # the first three changes multiply; the hue is a turn that is added
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
    rng: np.random.Generator, count: int, height: Side, width: Side, min_area: float
) -> tuple[NDArray[np.int64], ...]:
    """Draw top, left, height, width of `count` crops, int64 (count,) each, by torchvision's RandomResizedCrop.

    An area and an aspect are drawn ten times, and the first crop that fits inside the image is taken.
    If none fits, the crop is the largest central one of an allowed aspect.
    """
    # We make ten draws for every image, needed or not. So the number of draws does not depend on what was drawn.
    tries = (count, CROP_TRIES)
    height, width = (np.broadcast_to(side, count)[:, None] for side in (height, width))  # (count,1) each
    area = rng.uniform(min_area, 1, tries) * (height * width)
    aspect = np.exp(rng.uniform(np.log(CROP_ASPECT[0]), np.log(CROP_ASPECT[1]), tries))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # (count,10)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)  # (count,10)
    first = np.arange(count), fits.argmax(axis=1)  # an index: of each row, the first crop that fits
    fitting = fits.any(axis=1)  # (count,)

    height, width = height[:, 0], width[:, 0]  # (count,)
    central_w = np.minimum(width, np.rint(height * CROP_ASPECT[1]))
    central_h = np.minimum(height, np.rint(width / CROP_ASPECT[0]))
    w = np.where(fitting, w[first], central_w).astype(np.int64)  # (count,)
    h = np.where(fitting, h[first], central_h).astype(np.int64)
    top = rng.integers(0, height - h + 1)  # `integers` leaves its upper end out; the last offset is height − h
    left = rng.integers(0, width - w + 1)
    return np.where(fitting, top, (height - h) // 2), np.where(fitting, left, (width - w) // 2), h, w
