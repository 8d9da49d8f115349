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
ROOMS: dict[str, list[Path]] = {}  # folder -> its files: one test for each, a test for each file takes longer to begin
for path in CODE:
    ROOMS.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
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


@pytest.mark.parametrize("room", ROOMS)
def test_code_uses_the_words_of_the_field(room: str) -> None:
    suspects = [path for path in ROOMS[room] if unwanted(path.read_text())]  # perhaps by a name: words are looked at
    told = [(path.name, line, text) for path in suspects for line, text in words_of(path)]
    assert [(*place, text, unwanted(text)) for *place, text in told if unwanted(text)] == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_words_of_the_field(path: Path) -> None:
    lines = path.read_text().splitlines()
    if path.name == "CONTRIBUTING.md":  # its glossary names what we do not say
        lines = [line for line in lines if "not " not in line]
    assert [(line, unwanted(line)) for line in lines if unwanted(line)] == []


def first_words(code: str) -> set[str]:
    """The words with which the docstrings of a file begin."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    documented = [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
    return {re.split(r"\W", ast.get_docstring(node) or "", maxsplit=1)[0] for node in documented}


SUSPECT = re.compile(rf"""["'](\s|\\\n)*({"|".join(sorted(HEADLESS))})\b""")  # a string that begins so: read the file


@pytest.mark.parametrize("room", ROOMS)
def test_a_docstring_begins_with_a_thing_or_a_verb(room: str) -> None:
    codes = {path.name: path.read_text() for path in ROOMS[room]}
    found = {name: HEADLESS & first_words(code) for name, code in codes.items() if SUSPECT.search(code)}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("before", ['"""', 'r"""', '"""\\\n', "'", '"""\n\n    '])
@pytest.mark.parametrize("place", ["{}", "class A:\n    {}", "x = 1\ndef f():\n    {}\n    return 1"])
def test_a_docstring_that_begins_otherwise_is_found(before: str, place: str) -> None:
    code = place.format(f"{before}How it goes.{before.lstrip('r')[:3].strip()}")
    assert SUSPECT.search(code)
    assert HEADLESS & first_words(code) == {"How"}


def test_no_parameter_is_called_around() -> None:
    for path in (path for path in CODE if "around" in path.read_text()):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.arg) and node.arg == "around"), path


@pytest.mark.parametrize("text", ["the way back", "# a stranger's file", "we walk the graph", "the Optimiser"])
def test_an_unwanted_word_is_found(text: str) -> None:
    assert unwanted(text)
    assert not unwanted("for root, folders, files in os.walk(path)")
