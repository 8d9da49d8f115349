"""The promises of the pictures and of the table."""

import numpy as np
import pytest

from minisimclr import Config, Dataset
from minisimclr.protocols.compare import Score
from minisimclr.report import pictures as report
from minisimclr.report.table import table
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def run():
    config = Config(size=16, head_dim=8)
    history = [{"step": k, "steps": 40, "loss": 5 - k / 20, "chance": 5.54, "top1": k / 40} for k in range(40)]
    return Run(config, build_model(config), steps=40, history=history)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    return Dataset(pixels, np.arange(30) % 3, ("cat", "dog", "a rather long name of a class"))


def test_the_table_has_a_row_for_each_representation_and_two_columns_for_each_split():
    scores = [Score("raw pixels", {"test": 0.5, "unseen": 0.25}, {"test": 0.125, "unseen": 1.0})]
    *_, row = table(scores).splitlines()
    assert row.split() == ["raw", "pixels", "50.0", "12.5", "25.0", "100.0"]


def test_the_columns_of_the_table_stand_under_their_headings():
    scores = [
        Score(name, {"test": 0.5, "unseen style": 1.0}, {"test": 0.1, "unseen style": 0.2})
        for name in ("h", "a longer name")
    ]
    _, heads, *rows = table(scores).splitlines()
    ends = [k + 1 for k in range(len(heads)) if heads[k] != " " and (k + 1 == len(heads) or heads[k + 1] == " ")]
    for row in rows:
        for end in ends:
            assert row[end - 1].isdigit()
            assert row[end : end + 1] in ("", " ")


def test_the_loss_curve_works_from_one_step_to_many(run):
    for length in (1, 2, 40):
        assert report.loss_curve(run.history[:length]).size == (960, 560)


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 5.8), (0.0, 1.0), (0.0, 5850.0), (0.0, 0.003)):
        ticks = report._ticks(low, high, 5)
        assert 2 <= len(ticks) <= 7
        assert low <= ticks[0] <= ticks[-1] <= high * (1 + 1e-9)


def test_the_views_sheet_shows_each_image_above_its_two_views(run, images):
    sheet = np.asarray(report.views_sheet(run, images.images, count=5))
    top_left = sheet[6 : 6 + 64, 84 : 84 + 64]
    assert (top_left[::4, ::4] == images.images[0]).all()  # enlarged four times, unchanged


def test_wrong_neighbours_are_framed_and_right_ones_are_not(run, images):
    def framed(data):
        sheet = np.asarray(report.neighbours_sheet(run, data, data))
        return (sheet == np.array([209, 36, 47])).all(axis=-1).any()

    one_class = Dataset(images.images, np.zeros(30, int), images.class_names)
    assert framed(images)
    assert not framed(one_class)


def test_the_similarity_of_an_image_with_itself_is_the_darkest_blue(run, images):
    picture = np.asarray(report.similarity_matrices(run, images, per_class=4))
    assert (picture[44 + 2, 110 + 2] == [16, 52, 120]).all()


def test_the_colours_run_from_orange_over_white_to_blue():
    colours = report._diverging(np.array([[-1.0, 0.0, 1.0, 5.0]]))[0]
    assert colours.tolist() == [[180, 88, 6], [255, 255, 255], [16, 52, 120], [16, 52, 120]]
