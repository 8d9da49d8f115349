"""The promises of the page of a run, as text; test_browser.py opens it in a browser."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from minisimclr import Config, Dataset
from minisimclr.protocols.compare import Score
from minisimclr.protocols.monitor import Monitor
from minisimclr.report import drawn, look, words
from minisimclr.report.numbers import CURVES, cost
from minisimclr.report.page import as_html
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

pytestmark = pytest.mark.host

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"
DOCS = Path(__file__).resolve().parents[1] / "docs"


def history(steps=40, **more):
    return [
        {"step": k, "steps": steps, "loss": 5 - k / 20, "chance": 5.54, "top1": k / steps, "images_per_second": 128.0}
        | {name: value for name, value in more.items() if k % 10 == 0}
        for k in range(steps)
    ]


def made(names=("cat", "dog", "key"), count=30, lines=None, size=16, scores=(), config=None):
    """The page of a run that was never trained, on noise."""
    rng = np.random.default_rng(0)
    config = config or Config(size=size, head_dim=8, batch=128)
    pixels = rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    data = Dataset(pixels, np.arange(count) % len(names), names)
    run = Run(config, build_model(config), steps=40, history=history() if lines is None else lines)
    test = data if len(names) == 1 else Dataset(pixels[::2], data.labels[::2], names)
    return as_html(look(run, data, test, scores))


@pytest.fixture(scope="module")
def usual():
    scores = [Score(name, {"test": 0.5, "unseen style": 0.25}, {"test": 0.75, "unseen style": 1.0}) for name in
              ("raw pixels", "SimCLR, h")]  # fmt: skip
    return made(scores=scores)


class Elements(html.parser.HTMLParser):
    """The elements of a page, in order, each with its attributes; and whether all that was opened was closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_the_page_is_well_formed_and_every_section_is_there(usual):
    elements = Elements(usual)
    assert not elements.open
    sections = [attributes["id"] for tag, attributes in elements.found if tag == "section"]
    assert sections == [
        *("training", "views", "atlas", "neighbours", "similarity", "accuracy", "confusion", "worst", "settings")
    ]
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_names_that_the_pictures_can_write_have_no_numbers(usual):
    assert "1 · cat" not in Elements(usual).text


def test_the_page_loads_nothing(usual):
    for tag, attributes in Elements(usual).found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            if tag != "a" and name in attributes:
                assert attributes[name].startswith("data:"), (tag, attributes)
    assert not re.search(r"url\((?!data:)", usual)
    assert "@import" not in usual


def test_the_policy_allows_the_one_script_that_is_there(usual):
    import base64
    import hashlib

    scripts = re.findall(r"<script>(.*?)</script>", usual, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in usual
    assert "default-src 'none'" in usual


def test_names_from_data_are_text_and_never_markup(tmp_path):
    evil = made((EVIL, "b", "c"), config=Config(data=EVIL.replace("/", ""), size=16, head_dim=8, batch=128))
    plain = made(("a", "b", "c"), config=Config(data="other", size=16, head_dim=8, batch=128))
    assert [tag for tag, _ in Elements(evil).found] == [tag for tag, _ in Elements(plain).found]
    assert "alert(1)" in Elements(evil).text  # the name is shown, as it is
    data = json.loads(re.search(r'id="data">(.*?)</script>', evil)[1])
    assert data["names"][0].startswith("</script>")


def test_names_of_any_script_stand_as_they_are():
    text = made(("고양이", "собака", "鍵"))
    assert text.count("고양이") >= 3
    assert "1 · 고양이" in Elements(text).text  # the number that stands for it in the pictures
    assert '<meta charset="utf-8">' in text


def test_without_classes_nothing_is_right_or_wrong_on_the_page():
    text = made(("unlabelled",))
    sections = [attributes["id"] for tag, attributes in Elements(text).found if tag == "section"]
    assert sections == ["training", "views", "atlas", "neighbours", "similarity", "worst", "settings"]
    assert "Views that are least alike" in text
    assert "another class" not in Elements(text).text
    assert "Each dot is a training image" in text
    assert "that training has not seen" not in text
    assert "images of a class that resemble one another" not in text
    assert '<span class="name"></span>' in text  # each image would have the same name
    assert 'viewBox="0 0 400 400"' in text  # the matrices keep no room for names
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["votes"] is None
    assert not any(image in cells for image, cells in enumerate(data["near"]))  # all are on the map, in their order


def test_of_many_classes_the_page_says_how_many_it_shows():
    text = made(tuple(f"class {k}" for k in range(21)), count=84)
    assert "16 of 21 classes are shown." in text
    assert re.search(r"\d+ images, of 16 of the 21 classes, sorted by class", text)
    assert 'text-anchor="end">class 15<' in text  # names stand beside the matrix, however many classes there are
    few = made()
    assert "classes are shown" not in few
    assert "of the 3 classes" not in few


def test_the_curves_are_those_that_the_record_has():
    def titles(**more):
        return re.findall(r"<figure><h3>([^<]*)</h3><svg class=\"curve\"", made(lines=history(**more)))

    plain = ["Loss", "Contrastive top-1", "Speed, images per second"]
    assert titles() == plain
    assert titles(knn=0.5, alignment=0.4, uniformity=-2.0, rank=20.0, spread=0.9) == [
        *("Loss", "Contrastive top-1", "kNN accuracy over time", "Alignment", "Uniformity", "Effective rank", "Spread"),
        "Speed, images per second",
    ]
    assert titles(knn="many", lr=float("nan"), uniformity=None, alignment=[1]) == plain


def test_all_that_the_monitor_measures_is_drawn():
    config = Config(size=16, head_dim=8, batch=8)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3)).astype(np.uint8)
    measured = Monitor(config, pixels, np.arange(20) % 2).measured(build_model(config))
    assert set(measured) <= set(CURVES)
    assert {"knn", "rank", "spread"} <= set(measured)


def test_the_advice_of_the_monitor_stands_above_the_curves_once_and_as_text():
    text = made(lines=history(advice="try <b>more</b> epochs"))
    assert text.count("The monitor advised: try &lt;b&gt;more&lt;/b&gt; epochs.") == 1
    assert "advised" not in made()


def test_the_loss_stands_between_chance_and_the_floor_of_the_book(usual):
    floor = np.log1p(254 * np.exp(-(1 + 1 / 127) / 0.1))
    assert f"floor, {floor:.2f}" in usual
    assert "log(2N − 1) = 5.54" in usual


def test_another_objective_has_its_own_chance_level_and_no_floor():
    text = made(config=Config(size=16, head_dim=8, batch=128, objective="triplet"))
    assert "floor" not in Elements(text).text.replace("chance and the floor", "")
    assert "chance, 5.54" in text


def test_a_run_without_a_record_has_a_page():
    assert "metrics.jsonl holds nothing to draw" in made(lines=[])


def test_the_cost_is_the_time_of_all_steps():
    assert cost(history(), Config(batch=128)) == pytest.approx(40.0)
    assert cost([{"images_per_second": "x"}, {"images_per_second": 0}, {}], Config()) is None


def test_the_largest_page_stays_below_three_megabytes():
    """Noise of 96 pixels, the hardest images there are; more of them than the map shows."""
    text = made(tuple(map(str, range(16))), count=64, size=32)
    assert len(text.encode()) < 3_000_000


def test_every_figure_has_a_meaning_that_the_book_explains():
    for name, (chapter, heading, text) in words.MEANING.items():
        assert text.endswith("."), name
        page = (DOCS / f"{chapter}.md").read_text(encoding="utf-8")
        slugs = [
            re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
        ]
        assert not heading or heading in slugs, (name, heading)


def test_links_to_the_book_are_relative_and_name_no_folder_above(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    assert words.book(tmp_path / "runs" / "demo") is None
    assert "<a " not in words.meaning("loss", None)
    (tmp_path / "docs" / "09_training.md").touch()
    assert words.book(tmp_path / "runs" / "a b") == ("../../docs", ".md")
    (tmp_path / "build" / "book").mkdir(parents=True)
    (tmp_path / "build" / "book" / "09_training.html").touch()
    way = words.book(tmp_path / "runs" / "demo")
    assert 'href="../../build/book/09_training.html#what-the' in words.meaning("loss", way)
    assert words.book(None) is None


def test_the_files_of_a_report_are_the_page_and_three_pictures():
    config = Config(size=16, head_dim=8)
    data = Dataset(np.zeros((4, 16, 16, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    files = drawn(look(Run(config, build_model(config)), data, data))
    assert list(files) == ["report.html", "views.png", "neighbours.png", "similarity.png"]
    assert all(files.values())
