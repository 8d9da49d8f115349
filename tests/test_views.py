"""The two views: both forms against a slow reference that goes pixel by pixel, and in distribution."""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device
from hypothesis import given
from hypothesis import strategies as st

import minisimclr
from minisimclr.views import augment, parameters, transforms
from minisimclr.views.parameters import ViewParameters, draw_parameters

FORMS = pytest.mark.parametrize("method", ["plain", "batched"])


def there_and_back(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on the device's arrays: arguments are sent there, what it answers is fetched."""

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        return host(function(*on_device(arguments), **options))

    return called


to_float, two_views = map(there_and_back, (minisimclr.to_float, minisimclr.two_views))


def views_of(images: np.ndarray, p: ViewParameters, size: int, method: str = "auto") -> np.ndarray:
    """The view of each image that the parameters describe, computed on the device."""
    return host(augment.make_views(devices.xp(), on_device(images), np.arange(len(images)), p, size, method))


def one_view(images: np.ndarray, rng: np.random.Generator, size: int, **options: Any) -> np.ndarray:
    """A random view of each image."""
    return views_of(images, draw_parameters(rng, *images.shape[:3], **options), size)


def noise(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def unchanged(count: int, height: int, width: int, /, **changes: object) -> ViewParameters:
    """Parameters that change nothing, except for what is named."""
    no, whole = np.zeros(count, bool), np.ones(count, int)
    p = ViewParameters(
        0 * whole,
        0 * whole,
        height * whole,
        width * whole,
        no,
        no,
        np.tile(np.arange(4), (count, 1)),
        np.tile(np.float32([1, 1, 1, 0]), (count, 1)),
        no,
        no,
        np.ones(count, np.float32),
    )
    return dataclasses.replace(p, **{name: np.asarray(value) for name, value in changes.items()})


# ── The reference: one image, one pixel after the other, in float64 ───────────────────────────────


def slow_resize(line: np.ndarray, size: int) -> np.ndarray:
    """Pillow's loop over output pixels, on the first axis: the cropped line (L,…) -> (size,…)."""
    scale = len(line) / size
    support = max(scale, 1.0)
    result = []
    for i in range(size):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(len(line), int(centre + support + 0.5))
        weights = [max(0.0, 1 - abs((j - centre + 0.5) / support)) for j in range(first, last)]
        result.append(sum(w * line[j] for w, j in zip(weights, range(first, last))) / sum(weights))
    return np.array(result)


def slow_grey(x: np.ndarray) -> np.ndarray:
    return 0.2989 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]


def slow_jitter(x: np.ndarray, kind: int, factor: float) -> np.ndarray:
    if kind == 0:
        x = x * factor
    elif kind == 1:
        x = slow_grey(x).mean() + factor * (x - slow_grey(x).mean())
    elif kind == 2:
        x = slow_grey(x)[..., None] + factor * (x - slow_grey(x)[..., None])
    else:
        for pixel in np.ndindex(x.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*x[pixel])
            x[pixel] = colorsys.hsv_to_rgb((h + factor) % 1, s, v)
    return x.clip(0, 1)


def slow_blur(line: np.ndarray, sigma: float) -> np.ndarray:
    """Along the first axis; the border reflects without repeating itself: d c b | a b c d | c b a."""
    n = len(line)
    radius = n // 10 // 2
    kernel = [math.exp(-(t**2) / (2 * sigma**2)) for t in range(-radius, radius + 1)]
    mirrored = [line[i] for i in [*range(radius, 0, -1), *range(n), *range(n - 2, n - 2 - radius, -1)]]
    return np.array([sum(k * mirrored[i + t] for t, k in enumerate(kernel)) / sum(kernel) for i in range(n)])


def slow_view(image: np.ndarray, p: ViewParameters, i: int, size: int) -> np.ndarray:
    x = image.astype(float)[p.top[i] : p.top[i] + p.height[i], p.left[i] : p.left[i] + p.width[i]] / 255
    x = slow_resize(slow_resize(x, size).swapaxes(0, 1), size).swapaxes(0, 1)
    x = x[:, ::-1].copy() if p.flip[i] else x
    if p.jitter[i]:
        for kind in p.order[i]:
            x = slow_jitter(x, kind, float(p.factor[i, kind]))
    if p.grey[i]:
        x = np.repeat(slow_grey(x)[..., None], 3, axis=2)
    if p.blur[i]:
        x = slow_blur(slow_blur(x, p.sigma[i]).swapaxes(0, 1), p.sigma[i]).swapaxes(0, 1)
    return x


@FORMS
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 32), (17, 40, 20), (40, 17, 24), (12, 12, 41), (50, 64, 23), (9, 9, 1), (1, 1, 5), (1, 9, 4), (30, 2, 8)],
)
def test_views_equal_the_slow_reference(height, width, size, method):
    images = noise(12, height, width)
    p = draw_parameters(np.random.default_rng(1), 12, height, width, strength=1.0, blur=True)
    slow = np.array([slow_view(image, p, i, size) for i, image in enumerate(images)])
    np.testing.assert_allclose(views_of(images, p, size, method), slow, atol=1e-5)


@given(
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 40),
    strength=st.floats(0, 1),
    blur=st.booleans(),
    min_area=st.floats(0.02, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_batched_form_agrees_with_the_plain_form(side, size, strength, blur, min_area, seed):
    images = noise(6, *side, seed)
    plainly, batched = (
        two_views(images, np.random.default_rng(seed), size, strength, blur, min_area, method)
        for method in ("plain", "batched")
    )
    for one, other in zip(plainly, batched):
        np.testing.assert_allclose(other, one, atol=1e-5)


@pytest.mark.parametrize(("side", "size", "strength"), [(96, 96, 1.0), (256, 224, 1.0), (32, 32, 2.5)])
def test_the_two_forms_agree_less_closely_on_large_images_and_strong_colours(side, size, strength):
    """The batched form computes positions in float32, and strong colour changes enlarge the difference."""
    images = noise(3, side, side)
    plainly, batched = (
        two_views(images, np.random.default_rng(2), size, strength, True, method=method)
        for method in ("plain", "batched")
    )
    for one, other in zip(plainly, batched):
        np.testing.assert_allclose(other, one, atol=1e-4)  # a fortieth of the step from one byte to the next


def test_auto_is_the_batched_form():
    auto, batched = (two_views(noise(9, 20, 20), np.random.default_rng(1), 16, method=m) for m in ("auto", "batched"))
    np.testing.assert_array_equal(auto, batched)


def test_the_plain_form_enters_no_fast_form(monkeypatch):
    for name in (
        "_batched",
        "_changed",
        "_groups",
        "_crops",
        "resample",
        "resize_matrices",
        "gaussian_blur",
        "interleaved",
        "parallel",
    ):
        monkeypatch.setattr(augment, name, None)
    monkeypatch.setattr(augment, "JITTER", None)
    two_views(noise(9, 20, 20), np.random.default_rng(1), 24, 1.0, True, method="plain")


@FORMS
def test_a_view_of_a_smooth_image_equals_pillow(method):
    """The same filter as Pillow's own, to its rounding to bytes."""
    from PIL import Image

    image = (127 + 120 * np.sin(np.arange(60 * 47 * 3).reshape(60, 47, 3) / 500)).astype(np.uint8)
    whole = views_of(image[None], unchanged(1, 60, 47), 32, method)[0] * 255
    pillow = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    assert abs(whole - pillow).max() <= 1.0


# ── Each step by itself ───────────────────────────────────────────────────────────────────────────


@FORMS
def test_an_uncropped_view_of_the_same_size_is_the_image(method):
    images = noise(3, 16, 16)
    np.testing.assert_allclose(views_of(images, unchanged(3, 16, 16), 16, method), images / 255, atol=1e-6)


@FORMS
def test_a_crop_reads_no_pixel_outside_itself(method):
    images = np.full((1, 20, 20, 3), 255, np.uint8)
    images[0, 5:12, 3:9] = 51
    view = views_of(images, unchanged(1, 20, 20, top=[5], left=[3], height=[7], width=[6]), 32, method)
    np.testing.assert_allclose(view, 0.2, atol=1e-6)


@FORMS
def test_a_uniform_image_stays_uniform(method):
    images = np.full((64, 19, 33, 3), [200, 100, 50], np.uint8)
    p = draw_parameters(np.random.default_rng(0), 64, 19, 33, strength=1.0, blur=True)
    views = views_of(images, p, 24, method)
    assert np.ptp(views, axis=(1, 2)).max() < 1e-5


@FORMS
def test_flip_mirrors_left_to_right(method):
    images = noise(1, 13, 13)
    mirrored = views_of(images, unchanged(1, 13, 13, flip=[True]), 13, method)
    np.testing.assert_allclose(mirrored, images[:, :, ::-1] / 255, atol=1e-6)


@FORMS
def test_order_matters_and_is_each_images_own(method):
    images = np.repeat(noise(1, 12, 12), 2, axis=0)
    factor = np.float32([[1.6, 0.4, 1.5, 0.1]] * 2)
    p = unchanged(2, 12, 12, jitter=[True, True], factor=factor, order=[[0, 1, 2, 3], [3, 2, 1, 0]])
    views = views_of(images, p, 12, method)
    assert abs(views[0] - views[1]).max() > 0.1
    np.testing.assert_allclose(views_of(images[1:], p[1:], 12, method)[0], views[1], atol=1e-6)


@FORMS
@pytest.mark.parametrize("colour", [(255, 0, 0), (10, 200, 30), (255, 255, 0), (80, 80, 80), (0, 0, 0)])
def test_hue_once_around_or_of_a_grey_changes_nothing_and_a_third_moves_red_to_green(colour, method):
    images = np.full((1, 4, 4, 3), colour, np.uint8)
    turn = lambda by: views_of(images, unchanged(1, 4, 4, jitter=[True], factor=np.float32([[1, 1, 1, by]])), 4, method)  # noqa: E731
    np.testing.assert_allclose(turn(1.0), images / 255, atol=1e-5)
    np.testing.assert_allclose(turn(1 / 3), np.roll(images, 1, axis=3) / 255, atol=1e-5)


@FORMS
def test_without_contrast_all_is_the_mean_grey_and_without_brightness_black(method):
    images = noise(1, 9, 9)
    grey = (images / 255 @ np.array(transforms.GREY_WEIGHTS)).mean()
    for factor, expected in (([1, 0, 1, 0], grey), ([0, 1, 1, 0], 0)):
        view = views_of(images, unchanged(1, 9, 9, jitter=[True], factor=np.float32([factor])), 9, method)
        np.testing.assert_allclose(view, expected, atol=1e-5)


@FORMS
def test_a_checkerboard_shrunk_to_a_third_is_grey(method):
    """Every third pixel alone would be black and white again."""
    squares = (np.indices((30, 30)).sum(axis=0) % 2 * 255).astype(np.uint8)
    images = np.repeat(squares[None, ..., None], 3, axis=3)
    assert abs(views_of(images, unchanged(1, 30, 30), 10, method) - 0.5).max() < 0.2


@FORMS
def test_greyscale_views_have_equal_channels(method):
    images = noise(400, 8, 8)
    rng = np.random.default_rng(0)
    p = draw_parameters(rng, 400, 8, 8)
    views = views_of(images, p, 8, method)
    grey = np.ptp(views, axis=3).max(axis=(1, 2)) == 0
    np.testing.assert_array_equal(grey, p.grey)


@pytest.mark.parametrize(("size", "taps"), [(19, 1), (20, 3), (32, 3), (40, 5), (224, 23)])
def test_the_blur_kernel_is_odd_a_tenth_of_the_side_and_has_mass_one(size, taps):
    point = np.zeros((1, 3, size, size), np.float32)
    point[..., size // 2, size // 2] = 1
    blur = there_and_back(functools.partial(transforms.gaussian_blur, devices.xp()))
    spread = blur(point.reshape(3, 1, -1), np.float32([5.0])).reshape(3, size, size)
    assert np.count_nonzero(spread[0]) == taps**2
    np.testing.assert_allclose(spread.sum(axis=(1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [7, 32, 33, 100])
def test_a_banded_product_leaves_out_only_zeros(size):
    """Two stacked matrices whose bands run in opposite directions: the columns in use differ from band to band."""
    rng = np.random.default_rng(0)
    i = np.arange(size)
    A = np.float32(abs(i - i[:, None]) < 4) * rng.random((2, size, size), np.float32)
    A[1] = A[1, ::-1]
    X, out = rng.random((2, size, 5), np.float32), np.full((2, size, 5), np.nan, np.float32)
    for a, x, y in ((A, X, out), (A[1:], X[1:], out[1:].transpose(0, 2, 1).copy().transpose(0, 2, 1))):
        a, x, y = on_device([a, x, y])
        transforms.banded_product(devices.xp(), a, x, out=y)
        devices.assert_close(y, a @ x, rtol=1e-5)


@pytest.mark.parametrize("group_pixels", [1, 2**15])
def test_views_do_not_depend_on_the_number_of_threads(monkeypatch, group_pixels):
    monkeypatch.setattr(augment, "GROUP_PIXELS", group_pixels)
    images, views = noise(60, 24, 24), []
    for threads in (1, 3):
        monkeypatch.setenv("MINISIMCLR_THREADS", str(threads))
        views.append(two_views(images, np.random.default_rng(0), 40, strength=1.0, blur=True))
    np.testing.assert_array_equal(*views)


# ── What is drawn ─────────────────────────────────────────────────────────────────────────────────


def test_crops_cover_the_area_and_the_aspect_they_should():
    p = draw_parameters(np.random.default_rng(0), 20_000, 1000, 1000)
    area, aspect = p.height * p.width / 1e6, p.width / p.height
    assert 0.08 * 0.99 < area.min() < 0.09
    assert 0.95 < area.max() <= 1
    # of the uniform area only large, elongated crops are drawn again: below 3/4 none can be too long
    assert abs((area < 0.4).sum() / (area < 0.7).sum() - 0.32 / 0.62) < 0.02
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.35
    assert abs(np.log(aspect[area < 0.7]).mean()) < 0.005
    quarters = np.histogram(np.log(aspect[area < 0.7]), bins=4)[0] / (area < 0.7).sum()
    np.testing.assert_allclose(quarters, 0.25, atol=0.02)


def test_no_crop_is_smaller_than_the_smallest_area_asked_for():
    p = draw_parameters(np.random.default_rng(0), 2000, 1000, 1000, min_area=0.4)
    assert 0.395 < (p.height * p.width / 1e6).min() < 0.41
    for min_area in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="min_area"):
            two_views(np.zeros((1, 8, 8, 3), np.uint8), np.random.default_rng(0), min_area=min_area)


def test_crops_lie_inside_and_reach_every_border():
    p = draw_parameters(np.random.default_rng(0), 5000, 12, 15)
    assert min(p.top.min(), p.left.min()) == 0
    assert p.height.min() >= 1
    assert (p.top + p.height).max() == 12
    assert (p.left + p.width).max() == 15
    for offsets in (p.top[p.height == 9], p.left[p.width == 12]):  # 0, 1, 2 and 3, equally often
        np.testing.assert_allclose(np.bincount(offsets, minlength=4) / len(offsets), 0.25, atol=0.05)


def test_an_image_too_long_for_any_crop_gets_the_central_one():
    p = draw_parameters(np.random.default_rng(0), 50, 10, 10_000)
    assert (p.height == 10).all()
    assert (p.width == 13).all()
    assert (p.left == (10_000 - 13) // 2).all()
    p = draw_parameters(np.random.default_rng(0), 50, 10_000, 9)
    assert (p.height == 12).all()
    assert (p.width == 9).all()
    assert (p.top == (10_000 - 12) // 2).all()


def test_how_often_and_how_much_views_are_changed():
    p = draw_parameters(np.random.default_rng(0), 20_000, 32, 32, strength=0.5, blur=True)
    for drawn, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.grey, 0.2), (p.blur, 0.5)):
        assert abs(drawn.mean() - probability) < 0.015
    np.testing.assert_allclose(p.factor.min(axis=0), [0.6, 0.6, 0.6, -0.1], atol=0.002)
    np.testing.assert_allclose(p.factor.max(axis=0), [1.4, 1.4, 1.4, 0.1], atol=0.002)
    assert 0.1 <= p.sigma.min() < 0.11
    assert 1.99 < p.sigma.max() <= 2
    orders, counts = np.unique(p.order, axis=0, return_counts=True)
    assert len(orders) == 24
    np.testing.assert_allclose(counts / 20_000, 1 / 24, atol=0.01)
    assert abs(np.corrcoef([p.flip, p.jitter, p.grey, p.blur, *p.factor.T]) - np.eye(8)).max() < 0.03


def test_a_factor_is_never_negative():
    assert draw_parameters(np.random.default_rng(0), 5000, 8, 8, strength=2.5).factor[:, :3].min() >= 0


def test_factors_scale_with_strength():
    neutral = np.array([1, 1, 1, 0])
    half, whole = (draw_parameters(np.random.default_rng(5), 40, 32, 32, s).factor - neutral for s in (0.5, 1.0))
    np.testing.assert_allclose(2 * half, whole, atol=1e-6)


class Biased:
    """In place of a generator: the same share of the way through every range."""

    def __init__(self, share):
        self.share = share

    def uniform(self, low, high, shape):
        return np.full(shape, low + self.share * (high - low))

    def integers(self, low, high):
        return np.floor(low + self.share * (high - low - 1e-9)).astype(np.int64)


def test_a_crop_drawn_at_the_middle_is_square_and_one_at_the_end_touches_the_border():
    """Middle: area 0.54, aspect √(3/4·4/3) = 1. End of the offsets: the last pixel is the image's last."""
    _, _, h, w = parameters._draw_crops(Biased(0.5), 3, 1000, 1000, 0.08)
    assert h.tolist() == w.tolist() == [round(math.sqrt(0.54e6))] * 3
    for share in (0.1, 0.3):
        middle, ends = Biased(share), Biased(1.0)
        middle.integers = ends.integers
        top, left, h, w = parameters._draw_crops(middle, 2, 100, 100, 0.08)
        assert (top + h).tolist() == (left + w).tolist() == [100] * 2


def test_no_two_images_share_their_parameters():
    p = draw_parameters(np.random.default_rng(0), 500, 32, 32)
    assert len(np.unique(p.factor, axis=0)) == 500
    assert len(np.unique(np.stack([p.top, p.left, p.height, p.width], 1), axis=0)) > 450


def test_strength_and_blur_leave_the_crops_as_they_are():
    a, b = (draw_parameters(np.random.default_rng(5), 40, 32, 32, s, blur) for s, blur in ((0.0, False), (1.0, True)))
    for name in ("top", "left", "height", "width", "flip"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert not (a.jitter | a.grey | a.blur).any()
    assert b.jitter.any()
    assert b.blur.any()


# ── The public promise ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("size", "blur"), [(32, False), (20, True)])
def test_views_are_float32_in_the_unit_range_and_the_input_is_untouched(size, blur):
    images = noise(50, 24, 30)
    before = images.copy()
    for view in two_views(images, np.random.default_rng(0), size, strength=1.0, blur=blur):
        assert view.dtype == np.float32
        assert view.shape == (50, size, size, 3)
        assert 0 <= view.min() < 0.01
        assert 0.99 < view.max() <= 1
    np.testing.assert_array_equal(images, before)


def test_a_device_shows_the_views_of_the_processor_and_reads_nothing_back():
    """Random numbers are drawn on the host, wherever the views are computed."""
    images, seen = noise(40, 24, 30), []
    a, b = minisimclr.two_views(images, np.random.default_rng(5), 20, strength=1.0, blur=True)
    there = on_device(images)
    with devices.transfers() as crossed:
        seen.extend(minisimclr.two_views(there, np.random.default_rng(5), 20, strength=1.0, blur=True))
    assert set(crossed) == {"to the device"}
    devices.assert_close(seen, [a, b], atol=1e-6)


def test_same_seed_same_views_and_the_two_differ():
    images = noise(20, 16, 16)
    a, b = two_views(images, np.random.default_rng(3), 16)
    a2, b2 = two_views(images, np.random.default_rng(3), 16)
    np.testing.assert_array_equal(a, a2)
    np.testing.assert_array_equal(b, b2)
    assert abs(a - b).mean(axis=(1, 2, 3)).min() > 0.01
    assert abs(a - two_views(images, np.random.default_rng(4), 16)[0]).mean(axis=(1, 2, 3)).min() > 0.01


def test_two_views_agree_with_one_view_after_another():
    images, rng = noise(6, 16, 16), np.random.default_rng(3)
    for view in two_views(images, np.random.default_rng(3), 16):
        np.testing.assert_allclose(view, one_view(images, rng, 16), atol=1e-6)


def test_whole_crops_without_colour_or_blur_changes_nothing_but_left_and_right():
    images = noise(40, 24, 24)
    views, plainly = one_view(images, np.random.default_rng(0), 24, strength=0, min_area=1), images / 255
    assert (
        np.minimum(abs(views - plainly).max(axis=(1, 2, 3)), abs(views - plainly[:, :, ::-1]).max(axis=(1, 2, 3))).max()
        < 1e-5
    )


def test_strength_zero_leaves_colours_alone():
    images = noise(200, 8, 8)
    images[..., 1], images[..., 2] = images[..., 0] // 2, 0  # resizing keeps G < R and B = 0
    view = one_view(images, np.random.default_rng(0), 8, strength=0)
    assert view[..., 2].max() == 0
    np.testing.assert_allclose(view[..., 1], view[..., 0] / 2, atol=1 / 255)


def test_views_do_not_depend_on_how_the_batch_is_cut(monkeypatch):
    images = noise(37, 16, 16)
    p = draw_parameters(np.random.default_rng(0), 37, 16, 16, blur=True)
    whole = views_of(images, p, 24)
    monkeypatch.setattr(augment, "GROUP_PIXELS", 3 * 24**2)
    np.testing.assert_allclose(views_of(images, p, 24), whole, atol=1e-6)


def test_an_empty_batch_gives_empty_views():
    assert one_view(noise(0, 8, 8), np.random.default_rng(0), 16).shape == (0, 16, 16, 3)


def test_evaluation_sees_the_image_itself():
    images = noise(5, 12, 12)
    np.testing.assert_array_equal(to_float(images), images.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("images", "options", "error", "says"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), {}, TypeError, "uint8 array, not float32"),
        ([[1]], {}, TypeError, "uint8 array, not list"),
        (np.zeros((8, 8, 3), np.uint8), {}, ValueError, r"\(N,H,W,3\), not \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), {}, ValueError, "shape"),
        (np.zeros((2, 0, 8, 3), np.uint8), {}, ValueError, "shape"),
        (noise(2, 8, 8), {"size": 0}, ValueError, "size must be at least 1, not 0"),
        (noise(2, 8, 8), {"size": 8.0}, TypeError, "whole number"),
        (noise(2, 8, 8), {"strength": -0.1}, ValueError, "strength must be from 0 to 2.5, not -0.1"),
        (noise(2, 8, 8), {"strength": 3}, ValueError, "strength"),
        (noise(2, 8, 8), {"strength": float("nan")}, ValueError, "strength"),
        (noise(2, 8, 8), {"method": "fast"}, ValueError, "method must be one of plain, batched, auto; not 'fast'"),
    ],
)
def test_what_cannot_be_augmented_is_refused_in_one_line(images, options, error, says):
    with pytest.raises(error, match=says) as caught:
        two_views(images, np.random.default_rng(0), **options)
    assert "\n" not in str(caught.value)
