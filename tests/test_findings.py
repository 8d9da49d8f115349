"""The promises of the pictures, of the table, and of what is found out about a run."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from minisimclr import Config, Dataset, knn_accuracy, save_torchvision
from minisimclr.evaluation.embed import embed
from minisimclr.protocols.compare import Score
from minisimclr.report import findings, pictures, svg, thumbs
from minisimclr.report.numbers import tiles
from minisimclr.report.page import as_html
from minisimclr.report.table import read_results, table
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

pytestmark = pytest.mark.host

CAT, KOREAN = "cat", "고양이"


@pytest.fixture(scope="module")
def run():
    config = Config(size=16, head_dim=8)
    history = [{"step": k, "steps": 40, "loss": 5 - k / 20, "chance": 5.54, "top1": k / 40} for k in range(40)]
    return Run(config, build_model(config), steps=40, history=history)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    return Dataset(pixels, np.arange(30) % 3, (CAT, "dog", "a rather long name of a class"))


@pytest.fixture(scope="module")
def found(run, images):
    half = Dataset(images.images[:15], images.labels[:15], images.class_names)
    return findings.look(run, images, half)


# ── The table ─────────────────────────────────────────────────────────────────────────────────────


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


KEPT = {"steps": 7, "train_images": 5, "test_images": {"test": 3},
        "scores": [{"name": "SimCLR, h", "knn": {"test": 0.5}, "probe": {"test": 1}}]}  # fmt: skip


def test_scores_that_were_kept_are_read_if_they_are_those_of_this_step_and_these_images(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(KEPT))
    nothing = ([], findings.Vote(20, 0.1))
    kept = [Score("SimCLR, h", {"test": 0.5}, {"test": 1.0})]
    assert read_results(path, 7, 5, {"test": 3}) == (kept, findings.Vote(20, 0.1))  # of a version that kept no k
    assert read_results(path, 8, 5, {"test": 3}) == read_results(path, 7, 6, {"test": 3}) == nothing
    assert read_results(path, 7, 5, {"test": 4}) == read_results(path, 7, 5, {"training": 3}) == nothing
    path.write_text(json.dumps(KEPT | {"k": 200, "temperature": 1}))
    assert read_results(path, 7, 5, {"test": 3}) == (kept, findings.Vote(200, 1.0))


@pytest.mark.parametrize("text", [
    "", "[]", "null", "[" * 10**5, '{"steps": 7}', json.dumps(KEPT | {"scores": 1}),
    json.dumps(KEPT | {"scores": [{"name": "h", "knn": {"test": 2}, "probe": {"test": 1}}]}),
    json.dumps(KEPT | {"scores": [{"name": "h", "knn": {"test": float("nan")}, "probe": {"test": 1}}]}),
    json.dumps(KEPT | {"scores": [{"name": "h", "knn": {}, "probe": {"test": "x"}}]}),
    json.dumps(KEPT | {"scores": [{"name": "h", "knn": {"test": 10**400}, "probe": {"test": 1}}]}),
    *(json.dumps(KEPT | wrong) for wrong in (
        {"k": 0}, {"k": 2.5}, {"k": True}, {"k": "20"}, {"temperature": 0}, {"temperature": float("nan")},
        {"temperature": 10**400}, {"temperature": None},
    )),
])  # fmt: skip
def test_scores_that_cannot_be_ours_count_for_nothing(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    assert read_results(path, 7, 5, {"test": 3}) == ([], findings.Vote())


# ── What is found out ─────────────────────────────────────────────────────────────────────────────


def test_the_vote_on_the_page_is_the_vote_of_the_knn_classifier(run, images, found):
    h, test_h = embed(run.model, images.images)[0], embed(run.model, images.images[:15])[0]
    assert (found.voted == images.labels[:15]).mean() == knn_accuracy(h, images.labels, test_h, images.labels[:15])
    assert ((found.share > 1 / 3) & (found.share <= 1)).all()


def test_the_vote_on_the_page_has_the_k_and_the_temperature_that_it_is_given(run, images, found):
    half = Dataset(images.images[:15], images.labels[:15], images.class_names)
    h, test_h = embed(run.model, images.images)[0], embed(run.model, half.images)[0]
    for k, temperature in ((1, 0.1), (5, 0.001), (29, 10.0)):
        other = findings.look(run, images, half, (), findings.Vote(k, temperature))
        accuracy = knn_accuracy(h, images.labels, test_h, half.labels, k, temperature)
        assert (other.voted == half.labels).mean() == accuracy != (found.voted == half.labels).mean()
        assert f"{100 * accuracy:.1f} %</b><span>kNN on h, k = {k}; chance" in tiles(other)
        assert (other.nearest == found.nearest).all()
    assert "kNN on h, k = 20; chance" in tiles(found)
    assert "k = 30;" in tiles(findings.look(run, images, half, (), findings.Vote(31, 0.1)))  # there are no more


def test_before_training_means_the_weights_that_the_run_began_with(images, tmp_path):
    """With init they are those of the file; where they are not known, the page does not claim them."""
    config = Config(size=16, head_dim=8, init=str(tmp_path / "init.safetensors"))
    other = build_model(dataclasses.replace(config, init="", seed=5))
    save_torchvision(other.encoder, config.init)
    run = Run(config, build_model(config), steps=40)
    looked = findings.look(run, images, images)
    began = findings.centred_cosines(embed(other, images.images[looked.rows])[0])
    np.testing.assert_allclose(looked.similarity["before training"], began, atol=1e-5)
    assert "Similarities before and after training" in as_html(looked)
    (tmp_path / "init.safetensors").write_bytes(b"another file")
    assert [*findings.look(run, images, images).similarity] == ["random weights", "after training"]
    (tmp_path / "init.safetensors").unlink()
    gone = findings.look(run, images, images)
    drawn = findings.centred_cosines(embed(run.model, images.images[gone.rows])[0])
    np.testing.assert_allclose(gone.similarity["random weights"], drawn, atol=1e-5)
    page = as_html(gone)
    assert "Similarities with random weights and after training" in page
    assert "efore training" not in page
    run = Run(dataclasses.replace(config, init=""), build_model(config), steps=40)
    run.own = ("model",)
    assert [*findings.look(run, images, images).similarity] == ["random weights", "after training"]


def test_the_first_neighbour_of_a_training_image_is_itself_and_without_classes_it_is_left_out(run, images, found):
    assert (found.nearest[:, 0] == found.shown).all()
    unlabelled = Dataset(images.images, np.zeros(30, np.int64), ("unlabelled",))
    alone = findings.look(run, unlabelled, unlabelled)
    assert not alone.labelled
    assert (alone.nearest != alone.shown[:, None]).all()


def test_doubles_of_an_image_do_not_make_it_its_own_neighbour():
    h = np.tile(np.float32([[1, 2, 3]]), (5, 1))
    nearest, cosines = findings._others(h, h, 3, itself=True)
    assert nearest.shape == cosines.shape == (5, 3)
    unlike = np.eye(5, dtype=np.float32) + 0.1
    assert (findings._others(unlike, unlike, 3, itself=True)[0] != np.arange(5)[:, None]).all()


def test_as_many_images_of_each_class_are_chosen_as_there_are():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = findings.spread(labels, 20)
    assert len(chosen) == 20
    assert np.bincount(labels[chosen]).tolist() == [9, 3, 8]
    assert (np.diff(chosen) > 0).all()


def test_the_map_shows_the_directions_of_largest_variance_in_the_unit_square():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6)) * [1, 9, 1, 4, 1, 1]
    places = findings.principal(x)
    assert abs(np.corrcoef(places[:, 0], x[:, 1])[0, 1]) > 0.95
    assert abs(np.corrcoef(places[:, 1], x[:, 3])[0, 1]) > 0.9
    assert (findings.principal(-x) == -places).all() or (findings.principal(x) == places).all()
    framed = findings._framed(places)
    assert framed.min() == pytest.approx(0)
    assert framed.max() == pytest.approx(1)
    assert np.isfinite(findings._framed(np.zeros((3, 2)))).all()
    assert findings.principal(np.ones((1, 4))).shape == (1, 2)


# ── Curves ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [1, 2, 40, 30_000])
def test_a_curve_works_from_one_step_to_many_and_stays_small(length):
    drawn = svg.curve("loss", range(1, length + 1), [5 - k / length for k in range(length)])
    assert drawn.startswith("<svg")
    assert len(drawn) < 20_000
    assert "nan" not in drawn


def test_no_spike_is_lost_where_many_steps_share_a_pixel():
    values = [1.0] * 10_000
    values[4_321] = 9.0
    raw, mean = svg.thinned(range(10_000), values)
    assert max(value for _, value in raw) == 9.0 or max(value for _, value in svg.thinned(range(1, 10_001), values)[0])
    assert len(raw) == len(mean) == svg.POINTS


def test_the_band_lies_between_the_two_levels():
    drawn = svg.curve("loss", [0, 10], [5.0, 1.0], levels=[svg.Level(5.5, "chance"), svg.Level(0.5, "floor <&>")])
    assert drawn.count('class="level"') == 2
    assert drawn.count('class="band"') == 1
    assert "floor &lt;&amp;&gt;" in drawn


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 5.8), (0.0, 1.0), (0.0, 5850.0), (0.0, 0.003), (-2.3, 0.4)):
        ticks = svg.ticks(low, high, 5)
        assert 2 <= len(ticks) <= 7
        assert low <= ticks[0] <= ticks[-1] <= high * (1 + 1e-9)


# ── Thumbnails ────────────────────────────────────────────────────────────────────────────────────


def test_a_sheet_holds_its_images_unchanged_where_there_is_room(images):
    made = thumbs.sheet(images.images, 10**6)
    with Image.open(io.BytesIO(content_of(made))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for k in (0, 7, 29):
        y, x = 16 * (k // made.columns), 16 * (k % made.columns)
        assert (pixels[y : y + 16, x : x + 16] == images.images[k]).all()


@pytest.mark.parametrize("most", [4_000, 12_000, 60_000])
def test_a_sheet_takes_no_more_bytes_than_it_may(most):
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 96, 3)).astype(np.uint8)  # the hardest to compress
    assert len(content_of(thumbs.sheet(noise, most))) <= most


def content_of(made):
    import base64

    return base64.b64decode(made.uri.partition(",")[2])


# ── Pictures ──────────────────────────────────────────────────────────────────────────────────────


def test_the_views_sheet_shows_each_image_above_its_two_views(run, images):
    sheet = np.asarray(pictures.views_sheet(run, images.images, count=5))
    top_left = sheet[6 : 6 + 64, 84 : 84 + 64]
    assert (top_left[::4, ::4] == images.images[0]).all()  # enlarged four times, unchanged


def test_the_views_that_are_shown_are_those_of_the_runs_own_changes(run, images):
    whole = Run(dataclasses.replace(run.config, views="whole"), run.model)  # the whole image, and no other change
    shown, a, b = pictures.rows_of_views(whole, images.images, 4)
    assert abs(a.astype(int) - shown).max() <= 1
    assert abs(b.astype(int) - shown).max() <= 1
    _, a, _ = pictures.rows_of_views(run, images.images, 4)
    assert abs(a.astype(int) - shown).max() > 50
    one = Dataset(images.images, np.zeros(30, np.int64), ("image",))
    np.testing.assert_allclose(findings.look(whole, one, one).share, 1, atol=1e-4)  # two equal views are alike


def test_wrong_neighbours_are_framed_and_right_ones_are_not(run, images, found):
    def framed(found):
        sheet = np.asarray(pictures.neighbours_sheet(found))
        return (sheet == np.array([209, 36, 47])).all(axis=-1).any()

    one_class = Dataset(images.images, np.zeros(30, int), images.class_names)
    assert framed(found)
    assert not framed(findings.look(run, one_class, one_class))


def test_the_similarity_of_an_image_with_itself_is_the_darkest_blue(found):
    picture = np.asarray(pictures.similarity_matrices(found))
    assert (picture[44 + 2, 110 + 2] == [16, 52, 120]).all()


def test_the_colours_run_from_orange_over_white_to_blue():
    colours = pictures.diverging(np.array([[-1.0, 0.0, 1.0, 5.0]]))[0]
    assert colours.tolist() == [[180, 88, 6], [255, 255, 255], [16, 52, 120], [16, 52, 120]]


def test_a_name_that_the_font_cannot_write_becomes_a_number_with_a_legend(run, images, found):
    assert pictures.written(CAT, 0) == CAT
    assert pictures.written(KOREAN, 4) == "5"
    korean = Dataset(images.images, images.labels, (KOREAN, "dog", "犬"))
    for draw in (pictures.neighbours_sheet, pictures.similarity_matrices):
        usual, longer = draw(found), draw(findings.look(run, korean, korean))
        assert longer.height == usual.height + 28
        assert (np.asarray(longer)[-28:] != 255).any()
