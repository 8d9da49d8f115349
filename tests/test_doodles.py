"""The promises of the embedded data set: the drawings, and the polygon filler under them."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from minisimclr.data.doodles import CLASS_NAMES, STYLES, TRAINING_STYLES, UNSEEN_STYLE, draw_doodles
from minisimclr.data.doodles.raster import Layer, arc, cover, paint, sides, sine, smooth, stroke

pytestmark = pytest.mark.host

SQUARE = np.array([(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)])
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.fixture(scope="module")
def sample():
    """640 drawings in the training styles, made once for all tests of what they look like."""
    return draw_doodles(640, seed=5)


def darkness(images):
    """The distance of each pixel from white, 0 to 1, without the tint of the ground."""
    return np.maximum(0, 235.0 - images.min(axis=-1)) / 235


def neighbour_accuracy(features, labels, train=512, k=10):
    """Share of the last images whose k nearest among the first ones (cosine) agree, by majority, on their class."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = np.argsort(-features[train:] @ features[:train].T, axis=1)[:, :k]
    votes = (labels[nearest][..., None] == np.arange(len(CLASS_NAMES))).sum(axis=1)
    return (votes.argmax(axis=1) == labels[train:]).mean()


# ── The same pixels, always ───────────────────────────────────────────────────────────────────────


def test_the_pixels_of_a_seed_are_the_same_on_every_platform():
    digest = hashlib.sha256()
    for size, count in ((32, 160), (50, 48)):
        for array in draw_doodles(count, seed=2020, styles=STYLES, size=size):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "a4dea342cdbe81e717fdb06a7dc5cfbf117f98a7dfe1279c6c9ebceaff2c43b5"


def test_an_image_does_not_depend_on_how_many_are_drawn():
    for few, many in zip(draw_doodles(21, seed=3), draw_doodles(40, seed=3)):
        np.testing.assert_array_equal(few, many[:21])


def test_different_seeds_draw_different_images_in_a_different_order():
    (a, labels_a, _), (b, labels_b, _) = draw_doodles(32, seed=0), draw_doodles(32, seed=1)
    assert (a != b).any(axis=(1, 2, 3)).all()
    assert (labels_a != labels_b).any()


def test_another_size_is_the_same_drawing():
    (small, *_), (large, *_) = draw_doodles(48, seed=9, styles=STYLES), draw_doodles(48, seed=9, styles=STYLES, size=96)
    averaged = large.reshape(48, 32, 3, 32, 3, 3).mean(axis=(2, 4))
    assert np.abs(averaged - small).mean() < 1.0  # of 255


def test_the_style_leaves_the_drawing_as_it_is():
    flat, labels, _ = draw_doodles(48, seed=4, styles=("filled",))
    lifted, same_labels, _ = draw_doodles(48, seed=4, styles=("shadowed",))
    np.testing.assert_array_equal(labels, same_labels)
    assert (lifted <= flat).all()  # a shadow only darkens
    assert (lifted < flat).any(axis=(1, 2, 3)).all()


# ── What is in a batch ────────────────────────────────────────────────────────────────────────────


def test_images_labels_and_styles_have_their_shapes_and_dtypes():
    images, labels, style_index = draw_doodles(5, seed=0, size=40)
    assert (images.shape, images.dtype) == ((5, 40, 40, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((5,), np.int64)
    assert (style_index.shape, style_index.dtype) == ((5,), np.int64)


def test_no_images_is_an_empty_batch():
    images, labels, style_index = draw_doodles(0, seed=0)
    assert images.shape == (0, 32, 32, 3)
    assert len(labels) == len(style_index) == 0


def test_there_are_sixteen_classes_and_five_styles_each_named_once():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 16
    assert len(STYLES) == len(set(STYLES)) == 5


def test_every_class_occurs_equally_often_in_a_shuffled_order(sample):
    _, labels, _ = sample
    assert np.ptp(np.bincount(labels, minlength=16)) == 0  # 640 = 16 · 40
    assert np.ptp(np.bincount(labels[:501], minlength=16)) == 1
    assert len({tuple(block) for block in labels.reshape(-1, 16)}) == 40  # orders, none of them twice


def test_the_unseen_style_is_not_among_the_training_styles(sample):
    _, _, style_index = sample
    assert UNSEEN_STYLE not in TRAINING_STYLES
    assert {*TRAINING_STYLES, UNSEEN_STYLE} == set(STYLES)
    assert {STYLES[i] for i in style_index} == set(TRAINING_STYLES)
    assert {STYLES[i] for i in draw_doodles(8, seed=0, styles=(UNSEEN_STYLE,))[2]} == {UNSEEN_STYLE}


# ── What the data set is for ──────────────────────────────────────────────────────────────────────


def test_the_ground_is_plain_and_nearly_white(sample):
    images = sample[0]
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    assert border[:, 0].min() >= 240
    assert (border == border[:, :1]).mean() > 0.99  # one colour all round; only a thick line may touch it
    assert (images.min(axis=-1) >= 240).mean() > 0.6


def test_every_image_shows_something_and_none_is_covered(sample):
    covered = (darkness(sample[0]) > 0.1).mean(axis=(1, 2))
    assert covered.min() > 0.02
    assert covered.max() < 0.6


def test_the_things_move(sample):
    weight = darkness(sample[0])
    place = (np.arange(32) + 0.5) / 32
    total = weight.sum(axis=(1, 2))
    for centre in ((weight.sum(axis=1) @ place) / total, (weight.sum(axis=2) @ place) / total):
        assert centre.std() > 0.09  # of the side; uniform over the whole image would be 0.29
        assert abs(centre.mean() - 0.5) < 0.03


def test_colours_do_not_tell_the_class(sample):
    images, labels, _ = sample
    assert neighbour_accuracy(256.0 - images.mean(axis=(1, 2)), labels) < 0.13  # chance is 0.0625


def test_raw_pixels_tell_the_class_badly(sample):
    images, labels, _ = sample
    assert 0.15 < neighbour_accuracy(darkness(images).reshape(len(images), -1), labels) < 0.5


# ── Errors ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count and seed must not be negative, got count=-1"),
        ({"seed": -2}, "must not be negative, got count=1 and seed=-2"),
        ({"size": 7}, "size must be at least 8 pixels, got 7"),
        ({"styles": ("filled", "etched")}, r"styles must be some of filled, .*, got \('filled', 'etched'\)"),
        ({"styles": ()}, "styles must be some of filled"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_doodles(**{"count": 1, "seed": 0} | arguments)


# ── The polygon filler ────────────────────────────────────────────────────────────────────────────


def test_a_square_covers_exactly_its_samples():
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    np.testing.assert_array_equal(cover([sides(SQUARE), sides(SQUARE[::-1])], 8), [inside, inside])


def test_overlapping_polygons_of_a_layer_are_united():
    both = np.stack([SQUARE, SQUARE + 0.125])
    apart = cover([sides(SQUARE), sides(SQUARE + 0.125)], 16)
    np.testing.assert_array_equal(cover([sides(both)], 16)[0], apart.any(axis=0))


def test_neighbours_share_each_sample_between_them():
    """A slanted border belongs to exactly one side, whatever its direction."""
    corners = np.array([(0.1, 0.07), (0.93, 0.21), (0.81, 0.88), (0.13, 0.97)])
    middle = (0.47, 0.52)
    fan = [sides(np.array([middle, corners[i], corners[(i + 1) % 4]])) for i in range(4)]
    np.testing.assert_array_equal(cover(fan, 64).sum(axis=0), cover([sides(corners)], 64)[0])


def test_what_lies_outside_the_image_is_cut_off():
    assert cover([sides(SQUARE * 8 - 2)], 8).all()
    for shift in ((1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
        assert not cover([sides(SQUARE + np.array(shift))], 8).any()


def test_a_half_covered_pixel_is_half_dark():
    half = np.array([(0, 0), (0.5 / 8, 0), (0.5 / 8, 1), (0, 1)])
    image = paint([Layer(sides(half), BLACK)], WHITE, 8)
    assert (image[:, 0] == 128).all()
    assert (image[:, 1:] == 255).all()


def test_later_layers_hide_earlier_ones_and_clipped_ones_stay_inside_them():
    left, everything = SQUARE * (0.5, 1), SQUARE * 4 - 1
    image = paint([Layer(sides(SQUARE), BLACK), Layer(sides(left), (9, 9, 9))], WHITE, 8)
    assert (image[4, 2], image[4, 4]) == pytest.approx((9, 0))
    clipped = paint([Layer(sides(SQUARE), BLACK), Layer(sides(everything), (9, 9, 9), clipped=True)], WHITE, 8)
    assert (clipped[2:6, 2:6] == 9).all()
    assert (clipped[0] == 255).all()


def test_the_sine_is_a_sine():
    turns = np.linspace(-2, 2, 1001)
    np.testing.assert_allclose(sine(turns), [math.sin(2 * math.pi * t) for t in turns], atol=4e-6)


def test_discs_and_lines_have_their_areas():
    disc, bar, ring = cover(
        [
            sides(arc(0.5, 0.5, 0.4, 0.2)),
            stroke(np.array([(0.2, 0.3), (0.8, 0.7)]), 0.1, closed=False),
            stroke(arc(0.5, 0.5, 0.3, 0.3), 0.1, closed=True),
        ],
        256,
    ).mean(axis=(1, 2))
    assert disc == pytest.approx(math.pi * 0.4 * 0.2, rel=0.01)
    assert bar == pytest.approx(0.1 * math.hypot(0.6, 0.4) + math.pi * 0.05**2, rel=0.01)
    assert ring == pytest.approx(2 * math.pi * 0.3 * 0.1, rel=0.02)


def test_a_smooth_curve_passes_through_doubled_corners_and_open_ends():
    closed = smooth((0, 0), (1, 0), (1, 0), (0, 1))
    assert (np.abs(closed - (1, 0)).sum(axis=1) < 1e-12).any()
    path = smooth((0, 0), (1, 0), (1, 1), closed=False)
    np.testing.assert_array_equal(path[[0, -1]], [(0, 0), (1, 1)])
