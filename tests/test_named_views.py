"""Views by name: each change against a reference pixel by pixel, its two forms, and the laws of what is drawn."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device

import minisimclr as ms
from minisimclr.training.config import Config
from minisimclr.views import augment, named
from minisimclr.views.changes import CHANGES, CUTOUT_GREY, NOISE_SIGMA
from minisimclr.views.named import Recipe, draw, recipe_of

Array = np.ndarray[Any, Any]
ALL = "flip,jitter,grey,blur,cutout,rotate,sobel,noise"


def noise_images(count: int, height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def two_views(images: Array, seed: int, **options: Any) -> tuple[Array, Array]:
    """Views made on the device, and fetched."""
    a, b = ms.two_views(on_device(images), np.random.default_rng(seed), **options)
    return host(a), host(b)


def drawn(names: str, count: int, size: int = 32, seed: int = 0, strength: float = 1.0) -> dict[str, Any]:
    """Numbers that are drawn for each name: the mask of the views that it meets, and its numbers."""
    found = draw(np.random.default_rng(seed), recipe_of(names), count, 40, 40, size, strength, 0.08)
    return {name: {"on": on, **numbers} for name, on, numbers in found.steps}


def changed(name: str, x: Array, numbers: dict[str, Any], form: str) -> Array:
    """One change of views x (B,S,S,3) in [0,1], on the device, in one of its forms."""
    xp, change = devices.xp(), CHANGES[name]
    if form == "plain":
        return np.stack([
            host(change.plain(xp, on_device(view), {key: value[i] for key, value in numbers.items()}))
            for i, view in enumerate(x)
        ])  # fmt: skip
    B, S = x.shape[:2]
    planes = on_device(np.ascontiguousarray(x.transpose(3, 0, 1, 2).reshape(3, B, S * S)).astype(np.float32))
    return host(change.batched(xp, planes, numbers)).reshape(3, B, S, S).transpose(1, 2, 3, 0)


# ── Each change, pixel by pixel ───────────────────────────────────────────────────────────────────


def slow_jitter(view: Array, n: dict[str, Any], i: int, law: str) -> Array:
    """TensorFlow's four changes, written out with colorsys; every result is clipped."""
    x = view.copy()
    for change in n["order"][i]:
        f = float(n["factor"][i, change])
        for c in range(3):
            if change == 0:
                x[..., c] = x[..., c] + f if law == "jitter-google-v1" else x[..., c] * f
            if change == 1:
                mean = x[..., c].mean()
                x[..., c] = (x[..., c] - mean) * f + mean
        for pixel in np.ndindex(x.shape[:2]) if change >= 2 else []:
            h, s, v = colorsys.rgb_to_hsv(*x[pixel])
            x[pixel] = (
                colorsys.hsv_to_rgb(h, min(s * f, 1), v) if change == 2 else colorsys.hsv_to_rgb((h + f) % 1, s, v)
            )
        x = x.clip(0, 1)
    return x


def slow_sobel(view: Array) -> Array:
    grey = 0.2989 * view[..., 0] + 0.587 * view[..., 1] + 0.114 * view[..., 2]
    size = len(grey)
    out = np.zeros(view.shape)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for r, c in np.ndindex(size, size):
        near = [[grey[min(max(r + i, 0), size - 1), min(max(c + j, 0), size - 1)] for j in (-1, 0, 1)]
                for i in (-1, 0, 1)]  # fmt: skip
        out[r, c] = min(math.hypot((kernel * near).sum(), (kernel.T * near).sum()) / 4, 1)
    return out


def slow(name: str, view: Array, n: dict[str, Any], i: int) -> Array:
    """The reference of a change: one view, pixel by pixel."""
    size = len(view)
    if name == "rotate":
        x = view
        for _ in range(n["turns"][i]):  # a quarter counter-clockwise: the last column becomes the first row
            x = np.array([[x[c, size - 1 - r] for c in range(size)] for r in range(size)])
        return x
    if name == "cutout":
        x = view.copy()
        for r, c in np.ndindex(size, size):
            if -size // 4 <= r - n["row"][i] < size // 4 and -size // 4 <= c - n["column"][i] < size // 4:
                x[r, c] = CUTOUT_GREY
        return x
    if name == "noise":
        return (view + n["sigma"][i] * n["field"][i]).clip(0, 1)
    if name == "flip":
        return np.array([row[::-1] for row in view])
    return slow_sobel(view) if name == "sobel" else slow_jitter(view, n, i, name)


@pytest.mark.parametrize("form", ["plain", "batched"])
@pytest.mark.parametrize("name", ["rotate", "cutout", "noise", "flip", "sobel", "jitter-google", "jitter-google-v1"])
def test_a_change_is_the_reference_of_loops(name: str, form: str) -> None:
    views = np.random.default_rng(3).random((6, 8, 8, 3))
    views[0, :, :4] = 0.3  # greys, which have no hue, and an edge
    n = drawn(name, 6, size=8, seed=1)[name]
    found = changed(name, views, n, form)
    assert found.shape == views.shape
    for i, view in enumerate(views):
        np.testing.assert_allclose(found[i], slow(name, view, n, i), atol=3e-6)


@pytest.mark.parametrize("size", [7, 16, 33])
@pytest.mark.parametrize(
    "names", ["crop," + ALL, "whole," + ALL[::1], "google", "google-v1", "crop-google,noise,sobel:1"]
)
def test_the_two_forms_agree_to_a_hundred_thousandth(names: str, size: int) -> None:
    images = noise_images(9, 19, 24)
    plain, batched = (two_views(images, 5, size=size, names=names, method=method) for method in ("plain", "batched"))
    for one, other in zip(plain, batched):
        assert one.dtype == other.dtype == np.float32
        assert one.shape == (9, size, size, 3)
        assert np.abs(one - other).max() <= 1e-5
        assert 0 <= other.min() <= other.max() <= 1


def test_the_default_by_its_names_is_the_default_bit_for_bit() -> None:
    images = noise_images(5, 20, 20)
    for names, options in (("crop,flip,colour", {}), ("auto", {}), ("crop,flip,jitter,grey,blur", {"blur": True}),
                           ("crop, flip:0.5, colour, blur:0.5", {"blur": True})):  # fmt: skip
        for mine, default in zip(two_views(images, 4, names=names), two_views(images, 4, **options)):
            np.testing.assert_array_equal(mine, default)


def test_views_of_a_batch_do_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise_images(12, 20, 20)
    whole = two_views(images, 0, size=16, names="crop," + ALL)
    monkeypatch.setattr(augment, "GROUP_PIXELS", 5 * 256)
    for one, other in zip(whole, two_views(images, 0, size=16, names="crop," + ALL)):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_what_is_drawn_for_a_name_does_not_depend_on_the_others() -> None:
    """So of two runs, one without noise, both see the same crops, colours and cuts."""
    whole, part = drawn("crop,jitter,noise,cutout", 50), drawn("crop,cutout,jitter", 50)
    for name, numbers in part.items():
        for key, value in numbers.items():
            np.testing.assert_array_equal(value, whole[name][key])
    a = draw(np.random.default_rng(0), recipe_of("crop,jitter"), 50, 40, 40, 32, 1.0, 0.08)
    b = draw(np.random.default_rng(0), recipe_of("noise,sobel,grey"), 50, 40, 40, 32, 1.0, 0.08)
    for side in ("top", "left", "height", "width"):
        np.testing.assert_array_equal(getattr(a, side), getattr(b, side))


def test_a_change_that_meets_no_view_changes_nothing_and_order_matters() -> None:
    images = noise_images(6, 16, 16)
    bare = two_views(images, 2, size=16, names="whole,cutout:0")
    for view in bare:
        np.testing.assert_allclose(view, images / 255, atol=1e-6)
    first, last = (two_views(images, 2, size=16, names=f"whole,{names}")[0] for names in
                   ("cutout:1,sobel:1", "sobel:1,cutout:1"))  # fmt: skip
    assert np.abs(first - last).max() > 0.1


def test_the_two_views_of_an_image_and_two_images_have_numbers_of_their_own() -> None:
    images = np.broadcast_to(noise_images(1, 16, 16), (4, 16, 16, 3)).copy()
    a, b = two_views(images, 0, size=16, names="whole,noise:1")
    assert len({view.tobytes() for view in [*a, *b]}) == 8


# ── The laws ──────────────────────────────────────────────────────────────────────────────────────

MANY = 4000


def stats() -> Any:
    """SciPy's tests of distributions. They take most of a second to import, which few tests need to."""
    from scipy import stats

    return stats


def is_uniform(values: Array, low: float, high: float) -> bool:
    """By Kolmogorov and Smirnov, at a level at which one of a thousand right laws would fail; the seed is fixed."""
    return bool(stats().kstest(np.asarray(values, float), stats().uniform(low, high - low).cdf).pvalue > 1e-3)


@pytest.mark.host
@pytest.mark.parametrize("name", CHANGES)
def test_how_often_a_change_is_made_by_itself_and_when_a_share_is_named(name: str) -> None:
    for names, share in ((name, CHANGES[name].probability), (f"{name}:0.3", 0.3), (f"{name}:1", 1), (f"{name}:0", 0)):
        on = drawn(names, MANY, size=4)[name]["on"]
        assert abs(on.mean() - share) <= 4 * math.sqrt(share * (1 - share) / MANY)


@pytest.mark.host
def test_the_distributions_of_cuts_turns_and_noise() -> None:
    n = drawn("crop,cutout,rotate,noise", MANY, size=8)
    for counts in (np.bincount(n["cutout"]["row"], minlength=8), np.bincount(n["cutout"]["column"], minlength=8),
                   np.bincount(n["rotate"]["turns"], minlength=4)):  # fmt: skip
        assert stats().chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(n["cutout"]["row"], n["cutout"]["column"])[0, 1]) < 4 / math.sqrt(MANY)
    assert is_uniform(n["noise"]["sigma"], *NOISE_SIGMA)
    assert stats().kstest(n["noise"]["field"][:200].ravel().astype(float), "norm").pvalue > 1e-3


@pytest.mark.host
def test_the_distributions_of_the_colour_factors_are_uniform_and_every_order_is_as_likely() -> None:
    for name, brightness in (("jitter", (0.6, 1.4)), ("jitter-google", (0.6, 1.4)), ("jitter-google-v1", (-0.4, 0.4))):
        n = drawn(name, MANY, strength=0.5, seed=2)[name]
        for k, (low, high) in enumerate((brightness, (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1))):
            assert is_uniform(n["factor"][:, k], low, high)
        assert stats().chisquare(np.unique(n["order"], axis=0, return_counts=True)[1]).pvalue > 1e-3
    assert drawn("jitter-google", MANY, strength=2)["jitter-google"]["factor"][:, :3].min() >= 0, "no negative factor"


def slow_crop_of_google(rng: Any, height: int, width: int, min_area: float) -> tuple[int, int]:
    """TensorFlow's sample_distorted_bounding_box, one try after the other: height and width of the crop."""
    for _ in range(100):
        aspect = rng.uniform(3 / 4, 4 / 3)
        least, most = min_area * height * width, height * width
        low, high = round(math.sqrt(least / aspect)), round(math.sqrt(most / aspect))
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
        high = min(high, height)
        low = min(low, high)
        h = int(rng.integers(low, high + 1))
        if round(h * aspect) * h < least:
            h += 1
        if round(h * aspect) * h > most:
            h -= 1
        w = round(h * aspect)
        if max(least, 0.1 * most) <= w * h <= most and w <= width and h <= height:
            return h, w
    return height, width


@pytest.mark.host
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 80)])
def test_the_distributions_of_googles_crops_are_those_of_its_own_loop(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    top, left, h, w = named.crops_of_google(rng, MANY, height, width, 0.08)
    slow_h, slow_w = np.transpose([slow_crop_of_google(rng, height, width, 0.08) for _ in range(MANY)])
    for mine, theirs in ((h, slow_h), (w, slow_w), (h * w, slow_h * slow_w)):
        assert stats().ks_2samp(mine, theirs).pvalue > 1e-3
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    assert (top + h < height)[h < height].all(), "TensorFlow's offsets leave out their upper end"
    assert (h * w).min() >= 0.1 * height * width, "a tenth of the image is covered"


@pytest.mark.host
def test_googles_crops_are_smaller_than_the_papers_in_the_mean() -> None:
    """Their height is uniform, and not their area."""
    mean = {}
    for crop in ("crop", "crop-google"):
        drawn = draw(np.random.default_rng(0), Recipe(crop, ()), MANY, 64, 64, 32, 1.0, 0.08)
        mean[crop] = (drawn.height * drawn.width).mean() / 64**2
    assert 0.40 < mean["crop-google"] < 0.45 < mean["crop"] < 0.52


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("nonsense", "views must be some of auto, google"),
        ("", "views must be some of"),
        ("flip,,grey", "views must be some of"),
        ("flip,crop", "views must have crop in the first place"),
        ("crop:0.5,flip", "views must have crop in the first place"),
        ("flip:2", "views must have probabilities from 0 to 1, not 'flip:2'"),
        ("flip:often", "probabilities from 0 to 1"),
        ("flip:nan", "probabilities from 0 to 1"),
        ("flip,grey,flip", "views must not name a change twice"),
        ("colour,grey", "views must not name a change twice"),
    ],
)
def test_names_that_make_no_sense_are_refused_in_one_line(names: str, says: str) -> None:
    for refuse in (lambda: Config(views=names), lambda: two_views(noise_images(2, 8, 8), 0, names=names)):
        with pytest.raises(ValueError, match=says) as error:
            refuse()
        assert "\n" not in str(error.value)


@pytest.mark.host
def test_names_are_read_as_they_are_written() -> None:
    assert recipe_of("google-v1") == Recipe("crop-google", (("flip", 0.5), ("jitter-google-v1", 0.8), ("grey", 0.2)))
    assert recipe_of("sobel:0.25") == Recipe("crop", (("sobel", 0.25),))
    assert recipe_of("whole, noise").changes == (("noise", 0.5),)
    assert recipe_of("google", blur=True).changes[-1] == ("blur", 0.5)
    assert recipe_of("blur:0.1,flip", blur=True).changes == (("blur", 0.1), ("flip", 0.5))


@pytest.mark.host
def test_a_run_trains_on_the_views_that_its_configuration_names() -> None:
    images = noise_images(4, 16, 16)
    config = Config(size=16, batch=4, epochs=1, views="crop,cutout,noise", min_area=0.5)
    run = ms.pretrain(config, images)
    order = config.rng(2, 0).permutation(4)
    a, b = ms.two_views(images[order], config.rng(3, 0), size=16, min_area=0.5, names="crop,cutout,noise")
    from minisimclr.training.config import build_model

    assert run.history[0]["loss"] == pytest.approx(build_model(config).loss(a, b, 0.1)[0].item(), rel=1e-5)


@pytest.mark.host
def test_names_reach_the_fast_form_only_where_they_mean_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(augment, "_changed", lambda xp, x, p: asked.append(p) or x)
    two_views(noise_images(2, 8, 8), 0, size=8, names="crop,flip,colour")
    assert asked
    asked.clear()
    two_views(noise_images(2, 8, 8), 0, size=8, names="crop,colour,flip")
    assert not asked


@pytest.mark.host
def test_the_views_of_a_part_of_a_batch_are_those_that_it_has_in_the_whole() -> None:
    """So several processes that share a batch see what one process would see."""
    images = noise_images(6, 16, 16)
    whole = two_views(images, 3, size=8, names="crop," + ALL)
    part = two_views(images[2:5], 3, size=8, names="crop," + ALL, within=(2, 6))
    for one, other in zip(part, whole):
        np.testing.assert_allclose(one, other[2:5], atol=2e-6)


@pytest.mark.host
def test_how_often_two_changes_meet_the_same_view_is_as_chance_has_it() -> None:
    """Each change has random numbers of its own: half of the views times half of the views is a quarter."""
    n = drawn("crop,flip,cutout,noise,sobel", MANY, size=4)
    names = list(n)
    for k, one in enumerate(names):
        for other in names[k + 1 :]:
            both = (n[one]["on"] & n[other]["on"]).mean()
            assert abs(both - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / MANY), (one, other)
    assert abs(np.corrcoef(n["noise"]["sigma"], n["cutout"]["row"])[0, 1]) <= 4 / math.sqrt(MANY)


def test_a_change_of_one_share_alone_leaves_the_other_numbers_as_they_are() -> None:
    images = noise_images(8, 16, 16)
    some, all_ = (two_views(images, 2, size=16, names=f"whole,noise:{share}")[0] for share in (0.5, 1))
    bare = two_views(images, 2, size=16, names="whole,noise:0")[0]
    for i in range(8):
        assert np.array_equal(some[i], all_[i]) or np.array_equal(some[i], bare[i])


@pytest.mark.host
def test_the_numbers_of_two_changes_lie_apart() -> None:
    n = drawn("crop,flip,cutout,jitter,jitter-google", 50)
    assert (n["flip"]["on"] != n["cutout"]["on"]).any()
    assert not np.array_equal(n["jitter"]["factor"], n["jitter-google"]["factor"])
