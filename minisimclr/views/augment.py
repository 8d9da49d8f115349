"""Two random views of every image, and their fast form: a whole batch at a time.

A view is made in the order of the paper (appendix A), each step with torchvision's definition:

    crop, flip, resize  →  colour jitter  →  greyscale  →  blur

What is random is drawn first, for the whole batch (`parameters.py`). The pixels then follow from the images and these
parameters, so the views depend neither on how a batch is cut into groups nor on the device, except for rounding.

The plain form (`plain.py`) makes one view after the other. It lacks speed: NumPy starts a hundred small operations for
each view, and starting them takes longer than computing. Two ideas make the batched form 8 times as fast (256 views
of 32×32 on one thread: 0.05 ms a view, not 0.4). Its positions are float32. So the two forms agree to 1e-5 for images
of up to 40 pixels a side, and to 1e-4 (a fortieth of the step between two bytes) at 256 or with the strongest colours.

Cropping, flipping and resizing act on rows and on columns separately, and each is linear. So together they are one
small banded matrix a side, and the view of an image X is

    A_h · X · A_wᵀ

two matrix products for a whole stack of images. A blur is one more such pair. And though each view has its own order of
colour changes, there are only 24 orders: views of the same order are changed together.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module
from ..processor import parallel, pieces
from ..values import by_default, generator, numbers, one_of, truth
from . import named, plain
from .parameters import CROP_AREA, Side, ViewParameters, draw_parameters
from .transforms import (
    brightness,
    check_images,
    contrast,
    gaussian_blur,
    grey_of,
    hue,
    interleaved,
    resample,
    resize_matrices,
    saturation,
)

METHODS = ("plain", "batched", "auto")
GROUP_PIXELS = 2**15  # pixels of the images that are changed together on a CPU; a few copies of them fit its cache
Drawn: TypeAlias = ViewParameters | named.Drawn  # what is random about V views: the paper's, or changes by name
JITTER = (brightness, contrast, saturation, hue)  # the changes, by their numbers in `ViewParameters.order`


@by_default
def two_views(
    images: Array,
    rng: np.random.Generator,
    size: int = 32,
    strength: float = 0.5,
    blur: bool = False,
    min_area: float = CROP_AREA,
    method: str = "auto",
    within: tuple[int, int] | None = None,
    names: str = "auto",
) -> tuple[Array, Array]:
    """Make two independent random views of each image; a[i] and b[i] are a positive pair.

    `strength` scales the colour jitter (the paper: 1 on ImageNet, 0.5 on CIFAR-10), and 0 turns all colour distortion
    off, greyscale included. `blur` belongs to ImageNet. A crop covers at least the fraction `min_area` of the image:
    small things in a corner want more than the paper's 0.08. Random numbers come from `rng` alone. `method` is plain
    (one view at a time, the form to read), batched (many at a time), or auto, which is batched.
    `within` = (first, count) says that the images are those from number `first` on of a batch of `count`: their views
    are then the ones that they have in that batch, up to rounding. `names` are those of other changes, in order, as in
    "crop,flip,colour,cutout": named.py.

    >>> images = np.zeros((8, 24, 24, 3), np.uint8)
    >>> a, b = two_views(images, np.random.default_rng(0), size=16)
    >>> a.shape, a.dtype
    ((8, 16, 16, 3), dtype('float32'))

    Shapes: images uint8 (N,H,W,3) -> a, b float32 (N,size,size,3) in [0,1], on the device of the images
    Raises: TypeError if the images are not uint8; ValueError for a wrong shape or option.
    Source: appendix A of the paper.
    """
    count, height, width = check_images(images, size)
    rng, size, blur = generator(rng), int(size), truth("blur", blur)
    strength, min_area = numbers(strength=strength, min_area=min_area)
    first, total = within or (0, count)
    source = np.tile(np.arange(count), 2)  # (2N,) view i shows images[source[i]]
    rows = np.concatenate([np.arange(first, first + count) + k * total for k in (0, 1)])  # (2N,) views a, views b
    drawn = draw_views(rng, names, total, height, width, size, strength, blur, min_area)[rows]
    # Both views in one call: its groups of images are then twice as large.
    views = make_views(array_module(images), images, source, drawn, size, method)  # (2N,size,size,3)
    return views[:count], views[count:]


def draw_views(
    rng: np.random.Generator,
    names: str,
    count: int,
    height: Side,
    width: Side,
    size: int,
    strength: float,
    blur: bool,
    min_area: float,
) -> Drawn:
    """Draw what is random about two views of each of `count` images: first of all views a, then of all views b."""
    papers, blurred = named.is_papers(names)
    if papers:
        a, b = (draw_parameters(rng, count, height, width, strength, blur or blurred, min_area) for _ in "ab")
        return a + b
    height, width = (np.tile(np.broadcast_to(side, count), 2) for side in (height, width))  # (2N,)
    return named.draw(rng, named.recipe_of(names, blur), 2 * count, height, width, size, strength, min_area)


def make_views(
    xp: Any, images: Array, source: NDArray[np.int64], parameters: Drawn, size: int, method: str = "auto"
) -> Array:
    """Make the views that the parameters describe; view i shows images[source[i]].

    Shapes: images uint8 (N,H,W,3), or a list of uint8 (H,W,3) on the host; source (V,), V parameters
            -> float32 (V,size,size,3) in [0,1]
    Raises: ValueError for an unknown method.
    """
    method = one_of("method", method, METHODS)
    views = xp.empty((len(source), size, size, 3), dtype=xp.float32)
    # Choose between the forms. Both write the views of all parameters, in the same order.
    if method == "plain":
        for i, k in enumerate(source):
            image, p = xp.asarray(images[k]), parameters[i]  # (H,W,3), and what was drawn for this view
            view = plain.view(xp, image, p, size) if isinstance(p, ViewParameters) else named.view(xp, image, p, size)
            views[i] = view  # (size,size,3)
    else:
        _batched(xp, views, images, source, parameters)
    return views


# ── The batched form ──────────────────────────────────────────────────────────────────────────────


def _batched(xp: Any, views: Array, images: Array, source: NDArray[np.int64], parameters: Drawn) -> None:
    """Write view i of images[source[i]] into views[i], group by group; on a CPU the threads share the groups."""
    size = views.shape[1]

    def make_group(group: NDArray[np.int64]) -> None:
        p = parameters[group]  # B of the V views
        x = _crops(xp, images, source[group], p, size)  # (3,B,P): each colour a plane of P = size² pixels
        x = _changed(xp, x, p) if isinstance(p, ViewParameters) else named.changed(xp, x, p)  # (3,B,P)
        views[xp.asarray(group)] = interleaved(xp, x, size)  # (B,size,size,3)

    groups = _groups(xp, parameters, size)
    if xp is np:
        parallel(make_group, groups)
    else:  # a GPU works through its queue alone; Python only has to fill it
        for group in groups:
            make_group(group)


def _changed(xp: Any, x: Array, p: ViewParameters) -> Array:
    """Make the paper's changes of colour, and the blur: float32 (3,B,P) in [0,1]."""
    if p.jitter[0]:  # all views of a group have the same order of changes, or none
        for change in p.order[0]:
            x = JITTER[change](xp, x, xp.asarray(p.factor[:, change]))  # (3,B,P), a factor for each image
    if p.grey.any():
        i = xp.asarray(np.flatnonzero(p.grey))  # indices, because Python would wait for a GPU to count a mask
        x[:, i] = grey_of(xp, x[:, i])
    if p.blur.any():
        i = xp.asarray(np.flatnonzero(p.blur))
        x[:, i] = gaussian_blur(xp, x[:, i], xp.asarray(p.sigma[p.blur]))
    return x


def _groups(xp: Any, p: Drawn, size: int) -> list[NDArray[np.int64]]:
    """Group the views whose colours change in the same order: each change is then one call for all of them.

    A group is cut where it is too large for a few copies of it to fit a processor's cache.
    """
    code = np.zeros(len(p.top), np.int64)  # (V,) a number for each order; 0: no change, or all in the same order
    if isinstance(p, ViewParameters):
        code = np.where(p.jitter, 1 + p.order @ 4 ** np.arange(4), 0)
    by_code = np.argsort(code, kind="stable")  # (V,) the views, sorted so that those of one code are neighbours
    same = np.split(by_code, np.flatnonzero(np.diff(code[by_code])) + 1)  # one array for each code
    most = max(1, GROUP_PIXELS // size**2)  # images in a group
    return [group[part] for group in same for part in pieces(xp, len(group), most)]


def _crops(xp: Any, images: Array, source: NDArray[np.int64], p: Drawn, size: int) -> Array:
    """Crop, flip and resize: images[source] -> float32 (3,B,size²)."""
    # Only the part of the images that some crop sees is copied; positions count from its corner.
    if isinstance(images, list):  # photos of several sizes: each crop lies in a corner of what is copied
        y, x = p.top, p.left
        crops = [images[k][y[i] : y[i] + p.height[i], x[i] : x[i] + p.width[i]] for i, k in enumerate(source)]
        part = xp.asarray(crops[0][None] if len(crops) == 1 else _stacked(crops))  # (B,H,W,3)
    else:
        y, x = p.top.min(), p.left.min()
        part = images[xp.asarray(source), y : (p.top + p.height).max(), x : (p.left + p.width).max()]  # (B,H,W,3)
    A_h = resize_matrices(xp, p.top - y, p.height, part.shape[1], size)  # (B,size,H)
    A_w = resize_matrices(xp, p.left - x, p.width, part.shape[2], size, p.flip)  # (B,size,W)
    return resample(xp, part, A_h, A_w)  # (3,B,size²)


def _stacked(crops: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack crops of several sizes, each in the upper left corner of its place; the rest is zero and not seen."""
    height, width = (max(crop.shape[axis] for crop in crops) for axis in (0, 1))
    part = np.zeros((len(crops), height, width, 3), np.uint8)
    for i, crop in enumerate(crops):
        part[i, : crop.shape[0], : crop.shape[1]] = crop
    return part
