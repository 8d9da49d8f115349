"""The book is true: its code and outputs are those of the package, and its links, equations and figures exist."""

from __future__ import annotations

import doctest
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import book  # noqa: E402, from docs/book.py

pytestmark = pytest.mark.host

PAGES = [page for page in book.pages() if page.is_relative_to(book.HERE)]
GENERATED = [page for page in PAGES if "[[[cog" in page.read_text()]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ── Code and outputs on the pages ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", GENERATED, ids=name)
def test_code_and_outputs_on_a_page_are_those_of_today(page: Path) -> None:
    pytest.importorskip("cogapp", reason='the pages of the book were NOT compared with the code: pip install ".[test]"')
    assert book.stale(page) == []


def test_a_page_that_is_out_of_date_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cogapp", reason='the check of the book was NOT checked: pip install ".[test]"')
    monkeypatch.setattr(book, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text('<!-- [[[cog run("print(6 * 7)") ]]] -->\n<!-- [[[end]]] -->\n')
    assert book.stale(page)
    page.write_text(book.written(page))
    assert "```text\n42\n```" in page.read_text()
    assert book.stale(page) == []
    page.write_text(page.read_text().replace("42", "43"))
    assert book.stale(page)


def test_a_block_that_prints_nothing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cogapp", reason='the check of the book was NOT checked: pip install ".[test]"')
    monkeypatch.setattr(book, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- [[[cog from book import show\nshow("minisimclr/nn.py", "Linear") ]]] -->\n<!-- [[[end]]] -->\n'
    )
    assert book.written(page) == page.read_text()  # cog runs no code on the line of its end marker
    assert book.stale(page) == ["page.md: a block prints nothing"]


def test_the_snippets_of_a_page_share_their_names(tmp_path: Path) -> None:
    pytest.importorskip("cogapp", reason='the book was NOT checked: pip install ".[test]"')
    page = tmp_path / "page.md"
    block = '<!-- [[[cog run("{}") ]]] -->\n<!-- [[[end]]] -->\n'
    page.write_text(block.format("x = 20") + block.format("print(x + 1)"))
    assert "\n21\n" in book.written(page)


def test_source_is_taken_from_the_file_and_an_unknown_name_is_refused() -> None:
    assert book.source("minisimclr/simclr.py", "SimCLR.loss").startswith("def loss(self")
    assert '"""' not in book.source("minisimclr/simclr.py", "SimCLR.loss", docstring=False)
    with pytest.raises(KeyError, match=r"defines no SimCLR\.lost"):
        book.source("minisimclr/simclr.py", "SimCLR.lost")


# ── Links, equations, figures, lines ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert book.broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_options_on_a_page_exist(page: Path) -> None:
    assert book.wrong_commands(page) == []


def test_a_command_or_option_that_does_not_exist_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\nminisimclr demo --seed 1\nminisimclr dance\n```\n`minisimclr evaluate RUN --strength 1`\n")
    assert book.wrong_commands(page) == ["page.md: no command minisimclr dance", "page.md: evaluate has no --strength"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_prose_fits_a_hundred_columns(page: Path) -> None:
    assert book.long_lines(page) == []


def test_every_equation_stands_once_and_those_of_the_code_exist() -> None:
    assert book.wrong_equations() == []


def test_every_figure_is_shown_on_some_page() -> None:
    assert book.unused_figures() == []


def test_a_wrong_link_a_wrong_heading_and_a_missing_figure_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n\n[right](#one-two) [itself](page.md#one-two) `[code](is/no/link)`\n\n"
        "[wrong](#three) [away](no.md) ![figure](no.png) <!-- [comment](no) -->\n"
    )
    assert [line.partition(": ")[2] for line in book.broken_links(page)] == [
        "no heading #three",
        "no file no.md",
        "no file no.png",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (r"$$ x \tag{5.1} $$ $$ y \tag{5.1} $$", "(5.1) stands twice"),
        (r"$$ x \tag{4.1} $$", "(4.1) is of another chapter"),
    ],
)
def test_a_wrong_equation_is_noticed(
    text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book, "HERE", tmp_path)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "05_loss.md").write_text(text)
    assert book.wrong_equations() == [f"05_loss.md: {complaint}"]


def test_an_equation_that_only_the_code_has_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "HERE", tmp_path)
    monkeypatch.setattr(book, "ROOT", tmp_path)
    (tmp_path / "05_loss.md").write_text(r"$$ x \tag{5.1} $$")
    (tmp_path / "minisimclr").mkdir()
    (tmp_path / "minisimclr" / "loss.py").write_text("x = f(5.3)  # (5.1), then (5.2)\n")
    assert book.wrong_equations() == ["minisimclr/loss.py: no equation (5.2) in the book"]


@pytest.mark.parametrize(
    "loading",
    [
        '<script defer="defer" src="https://cdn.example/mathjax.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img alt="badge" src="http://example/badge.svg">',
    ],
)
def test_a_page_that_would_load_from_the_network_is_noticed(loading: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f'<a href="https://arxiv.org/abs/2002.05709">paper</a> {loading}')
    assert len(book.from_elsewhere(tmp_path)) == 1


def test_a_formula_that_a_browser_would_refuse_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "right.html").write_text(r"\[\begin{aligned} x &= 1 \\ y &= 2 \end{aligned} \tag{1.1}\]")
    assert book.split_formulas(tmp_path) == []
    (tmp_path / "wrong.html").write_text(r"\[\begin{split}x \\ y \tag{1.1}\end{split}\]")
    assert book.split_formulas(tmp_path) == ["wrong.html: a formula in split"]


# ── The hyper-parameter table, and the exercises ──────────────────────────────────────────────────


def test_the_table_of_settings_names_every_setting() -> None:
    text = (book.HERE / "hyperparameters.md").read_text()
    assert [field for field in ms.Config().as_dict() if f"| `{field}` |" not in text] == []


def solutions(chapter: int) -> Any:
    """The module docs/solutions/chapter_NN.py."""
    path = book.HERE / "solutions" / f"chapter_{chapter:02}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_solutions_of_chapter_0_print_what_they_say() -> None:
    assert doctest.testmod(solutions(0)).attempted == 4
    assert doctest.testmod(solutions(0)).failed == 0


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.5), (5, 0.1), (8, 1.0)])
def test_solutions_of_chapter_0_agree_with_the_loss(n: int, temperature: float) -> None:
    equal, apart = np.ones((n, 3)), np.eye(n)
    assert np.isclose(ms.nt_xent_value_and_grad(equal, equal, temperature)[0], solutions(0).chance_level(n), rtol=1e-12)
    right, wrong = (
        f(n, temperature) for f in (solutions(0).perfect_but_orthogonal, solutions(0).with_the_anchor_at_zero)
    )
    assert np.isclose(ms.nt_xent_value_and_grad(apart, apart, temperature)[0], right, rtol=1e-12)
    assert wrong > right
