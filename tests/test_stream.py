"""Photos: crops come from the pixels of the files, whatever holds them, and however many there are."""

from __future__ import annotations

import devices
import numpy as np
import pytest
from devices import host
from PIL import Image

from minisimclr import Dataset
from minisimclr.views import augment
from minisimclr.views.parameters import draw_parameters


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges and fine detail, as a photo has."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    fine = rng.integers(-30, 31, (height, width, 3))
    return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)


# ── Views of images of several sizes ──────────────────────────────────────────────────────────────

SIZES = np.array([[40, 30], [33, 64], [20, 20], [90, 31], [25, 26]])  # (N,2) height, width


@pytest.mark.parametrize("blur", [False, True])
def test_views_of_several_sizes_are_those_of_the_plain_form(blur):
    pictures = [textured(*size, seed) for seed, size in enumerate(SIZES)]
    p = draw_parameters(np.random.default_rng(2), 5, *SIZES.T, 1.0, blur)
    plain, batched = (
        host(augment.make_views(devices.xp(), pictures, np.arange(5), p, 24, method)) for method in ("plain", "batched")
    )
    np.testing.assert_allclose(batched, plain, atol=1e-4)  # a fortieth of the step from one byte to the next


@pytest.mark.host
def test_each_crop_is_drawn_within_its_own_image():
    p = draw_parameters(np.random.default_rng(0), 500, *SIZES.repeat(100, 0).T)
    bottom, right = (p.top + p.height).reshape(5, 100), (p.left + p.width).reshape(5, 100)
    assert bottom.max(axis=1).tolist() == SIZES[:, 0].tolist()
    assert right.max(axis=1).tolist() == SIZES[:, 1].tolist()
    assert min(p.top.min(), p.left.min()) == 0


@pytest.mark.host
def test_images_of_one_size_get_the_crops_that_one_size_for_all_gets():
    """So runs that were begun when there was one size for all go on bit for bit."""
    alone = draw_parameters(np.random.default_rng(3), 64, 19, 33)
    each = draw_parameters(np.random.default_rng(3), 64, np.full(64, 19), np.full(64, 33))
    for name in ("top", "left", "height", "width", "factor", "order"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(each, name))


@pytest.mark.parametrize("method", ["plain", "batched"])
def test_a_crop_of_a_photo_equals_pillows_antialiased_resize_of_the_same_box(method):
    """Pillow is what torchvision's RandomResizedCrop calls: an oracle that shares no code with either form."""
    pictures = [textured(*size, seed) for seed, size in enumerate([(300, 400), (480, 320), (150, 200)])]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    p = draw_parameters(np.random.default_rng(4), 12, *np.tile(sizes, (4, 1)).T, strength=0.0)
    views = host(augment.make_views(devices.xp(), pictures, np.arange(12) % 3, p, 64, method))
    for i, view in enumerate(views):
        box = (p.left[i], p.top[i], p.left[i] + p.width[i], p.top[i] + p.height[i])
        crop = Image.fromarray(pictures[i % 3]).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        expected = np.asarray(crop, np.float64)[:, :: -1 if p.flip[i] else 1]
        assert abs(255 * view - expected).max() <= 1.0


# ── A data set of arrays ──────────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_a_data_set_of_an_array_reads_its_rows():
    data = Dataset(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([0, 1]), ("a", "b"), ("x.png", "y.png"))
    np.testing.assert_array_equal(data.read(1), data.images[1])
    assert data.files == ("x.png", "y.png")
