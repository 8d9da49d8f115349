"""The page of a run in a real browser: it loads without complaint, answers pointer and keyboard, and fits any screen.

python -m pytest -m browser        needs Chromium; without one, the tests are skipped, and the summary says so
"""

from __future__ import annotations

import os

import browser
import numpy as np
import pytest
from test_page import EVIL

from minisimclr import Config, Dataset
from minisimclr.protocols.compare import Score
from minisimclr.report import look
from minisimclr.report.page import as_html
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

pytestmark = [
    pytest.mark.host,
    pytest.mark.browser,
    pytest.mark.skipif(os.name != "posix", reason="the browser is driven through POSIX pipes"),
    pytest.mark.skipif(browser.find() is None, reason="there is NO BROWSER: nobody has seen the page of a run; "
                       "install Chromium, or name it in $CHROMIUM"),
]  # fmt: skip

NAMES = (EVIL, "고양이", *map(str, range(2, 8)))
DOT = """(() => {{ const d = document.querySelectorAll('.dot')[{k}];
  d.scrollIntoView({{block: 'center', behavior: 'instant'}}); const r = d.getBoundingClientRect();
  return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run on noise, with names that are hostile, foreign, or numbers."""
    rng = np.random.default_rng(0)
    config = Config(size=16, head_dim=8, batch=128)
    data = Dataset(rng.integers(0, 256, (160, 16, 16, 3)).astype(np.uint8), np.arange(160) % len(NAMES), NAMES)
    lines = [
        {"step": k, "steps": 50, "loss": 5 - k / 20, "chance": 5.54, "top1": k / 50, "knn": 0.3} for k in range(50)
    ]
    scores = [Score(EVIL, {"test": 0.5}, {"test": 0.75})]
    run = Run(config, build_model(config), steps=50, history=lines)
    test = Dataset(data.images[:96], data.labels[:96], NAMES)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(look(run, data, test, scores)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as running:
        yield running


@pytest.fixture
def opened(chromium, page):
    """The page, just opened, in a window of a desktop's size."""
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.screen(1200, 900)
    chromium.open(page)
    return chromium


def test_it_loads_without_a_complaint_and_asks_nobody_for_anything(opened, page):
    assert opened.complaints == []
    assert [address for address in opened.requests if not address.startswith("data:")] == [page.as_uri()]
    assert opened.run("document.querySelectorAll('#panel .near').length") == 8


def test_a_hostile_name_is_text_and_runs_nothing(opened):
    assert opened.run("document.querySelectorAll('main script, main img').length") == 0
    assert "</script><script>alert(1)" in opened.run("document.querySelector('.key').textContent")


def test_another_script_would_not_run(opened):
    opened.run("""(() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';
                  document.body.append(s); })()""")
    assert opened.run("window.bad") is None


def test_pointing_at_a_dot_shows_its_image_and_leaving_hides_it(opened):
    assert opened.run("document.getElementById('tip').hidden")
    opened.move(*opened.run(DOT.format(k=9)))
    assert opened.run("document.getElementById('tip').hidden") is False
    assert opened.run("document.querySelector('#tip span').textContent") == NAMES[9 % len(NAMES)]
    columns = opened.run("JSON.parse(document.getElementById('data').textContent).columns.dots")
    style = opened.run("document.querySelector('#tip i').style.cssText")
    assert f"--x: {9 % columns}; --y: {9 // columns}" in style
    opened.move(3, 3)
    assert opened.run("document.getElementById('tip').hidden")


def test_the_image_of_a_dot_stays_on_the_screen(opened):
    for width in (360, 1200):
        opened.screen(width, 800)
        for k in (*range(0, 96, 7),):
            opened.move(*opened.run(DOT.format(k=k)))
            left, right = opened.run("""(() => { const r = document.getElementById('tip').getBoundingClientRect();
                                        return [r.left, r.right]; })()""")
            assert left >= 0
            assert right <= width


def test_a_click_on_a_dot_shows_its_neighbours(opened):
    opened.move(*opened.run(DOT.format(k=17)), click=True)
    assert opened.run("document.querySelector('#panel h3').textContent") == NAMES[17 % len(NAMES)]
    cosines = opened.run("[...document.querySelectorAll('#panel .near small')].map(e => e.textContent)")
    expected = opened.run("JSON.parse(document.getElementById('data').textContent).cosines[17].map(c => c.toFixed(2))")
    assert cosines == expected


def test_the_map_answers_the_keyboard(opened):
    opened.run("document.querySelector('[data-map]:last-of-type').focus()")
    opened.press("Tab")
    assert opened.run("document.activeElement.id") == "map"
    assert opened.run("document.getElementById('tip').hidden") is False  # it says where it is
    places = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft"):  # the dot where one begins may be the last on its side
        for _ in range(40):
            opened.press(key)
        places.append(opened.run("+document.querySelector('.cursor').getAttribute('cx')"))
    assert places[0] < places[1] > places[2]
    opened.press("Enter")
    name = opened.run("document.querySelector('#tip span').textContent")
    assert opened.run("document.querySelector('#panel h3').textContent") == name
    opened.press("Escape")
    assert opened.run("document.getElementById('tip').hidden")


def test_a_class_can_be_picked_out_and_put_back(opened):
    lit = "document.querySelectorAll('.only .dot.lit').length"
    for expected in (12, 0):
        opened.run("document.querySelectorAll('.key')[2].click()")
        assert opened.run(lit) == expected


def test_the_other_map_moves_the_dots(opened):
    if opened.run("document.querySelectorAll('[data-map]').length") == 1:
        pytest.skip("scikit-learn is not there, so there is one map")
    before = opened.run("document.querySelector('.dot').getAttribute('cx')")
    opened.run("document.querySelectorAll('[data-map]')[1].click()")
    assert opened.run("document.querySelector('.dot').getAttribute('cx')") != before
    assert opened.run("document.querySelectorAll('[data-map][aria-pressed=true]').length") == 1


def test_a_click_on_a_query_shows_another_image_of_its_class(opened):
    names = "document.querySelector('.row .found').innerHTML"
    before = opened.run(names)
    opened.run("document.querySelector('.row .query').click()")
    assert opened.run("document.querySelector('.row').dataset.query") == str(len(NAMES))
    assert opened.run(names) != before
    assert opened.run("document.querySelectorAll('.row')[0].querySelectorAll('.near').length") == 8


CONTRAST = """(() => {
  const light = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => {
      v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/rgba\\(0, 0, 0, 0\\)|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const colour = (e) => { const s = getComputedStyle(e); return e.closest('svg') ? s.fill : s.color; };
  return [...document.querySelectorAll('h1, h2, h3, p, small, a, td:not(.right):not(.off), th, button, .tick, .note')]
    .filter((e) => e.textContent.trim() && e.getClientRects().length).map((e) => {
      const [a, b] = [light(colour(e)), light(behind(e))].sort();
      return (b + 0.05) / (a + 0.05); }).reduce((x, y) => Math.min(x, y));
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_is_legible_in_light_and_dark(opened, page, dark):
    opened.screen(1200, 900, dark=dark)
    opened.open(page)
    assert opened.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(246, 247, 248)"
    )
    assert opened.run(CONTRAST) > 4.5  # WCAG 2, level AA


@pytest.mark.parametrize("width", [320, 375, 768, 1200, 2560])
def test_nothing_overflows_at_any_width(opened, page, width):
    opened.screen(width, 800, phone=width < 500)
    opened.open(page)
    assert opened.run("document.documentElement.scrollWidth") == width
    assert opened.complaints == []


def test_it_is_printed_on_white_without_what_only_a_screen_needs(opened, page):
    opened.screen(800, 1100, dark=True, media="print")
    opened.open(page)
    assert opened.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "[...document.querySelectorAll('#panel, .tools, #tip')].filter(e => e.getClientRects().length).length"
    assert opened.run(shown) == 0
    assert opened.run("document.querySelectorAll('.row')[0].getClientRects().length") == 1
    assert opened.run(CONTRAST) > 4.5
    assert opened.printed().startswith(b"%PDF")
