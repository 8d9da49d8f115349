"""The language of the project: the field's words, and docstrings that begin with a noun or a verb."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(path for folder in ("minisimclr", "benchmarks", "docs", "examples", "tests")
              for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))  # fmt: skip
PROSE = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").glob("*.md")])

# What we do not say, and what we say instead: CONTRIBUTING.md has the glossary
UNWANTED = {
    r"\bway back\b": "backward pass",
    r"\bways? around\b": "shortcut, or residual connection",
    r"\bstrangers?\b": "untrusted",
    r"\bwalk(s|ed|ing)?\b": "pass over memory; backward pass; in the order of …",
    r"\boptimis(e|es|er|ers|ed|ing|ation)\b": "optimize, optimizer",
    r"\bnormalis(e|es|ed|ing|ation)\b": "normalize",
}
HEADLESS = {"What", "Whether", "Where", "How", "Whom", "Those"}


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and messages of a Python file, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if (
            token.type == tokenize.COMMENT
            or token.type == tokenize.STRING
            or "FSTRING_MIDDLE" in tokenize.tok_name[token.type]
        ):
            yield token.start[0], token.string


def unwanted(text: str) -> str | None:
    """Advice to say something else, if the text says what we do not; else None."""
    text = re.sub(r"(os|ast)\.walk|walk_packages", "", text)  # names of the standard library
    return next((f"say: {better}" for pattern, better in UNWANTED.items() if re.search(pattern, text, re.IGNORECASE)),
                None)  # fmt: skip


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_uses_the_words_of_the_field(path: Path) -> None:
    assert [(line, text, unwanted(text)) for line, text in words_of(path) if unwanted(text)] == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_words_of_the_field(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.name == "CONTRIBUTING.md":  # its glossary names what we do not say
        lines = [line for line in lines if "not " not in line]
    assert [(line, unwanted(line)) for line in lines if unwanted(line)] == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_docstring_begins_with_a_thing_or_a_verb(path: Path) -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    first_words = [re.split(r"\W", ast.get_docstring(node) or "", maxsplit=1)[0] for node in documented]
    assert HEADLESS & set(first_words) == set()


def test_no_parameter_is_called_around() -> None:
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.arg) and node.arg == "around"), path


@pytest.mark.parametrize("text", ["the way back", "# a stranger's file", "we walk the graph", "the Optimiser"])
def test_an_unwanted_word_is_found(text: str) -> None:
    assert unwanted(text)
    assert not unwanted("for root, folders, files in os.walk(path)")
