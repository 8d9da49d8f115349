"""The two pages to look things up leave out no public name and no option, and say what the code says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import minisimclr as ms
from minisimclr import cli

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import reference  # noqa: E402, from docs/reference.py

pytestmark = pytest.mark.host

API = (ROOT / "docs" / "api.md").read_text()
COMMANDS = (ROOT / "docs" / "commands.md").read_text()


def test_every_public_name_and_every_operation_has_a_heading() -> None:
    names = [f"ms.{name}" for name in ms.__all__ if name != "ops"] + [f"ms.ops.{name}" for name in ms.ops.__all__]
    assert [name for name in names if API.count(f"\n### `{name}`\n") != 1] == []


def test_every_option_of_every_command_is_in_its_table() -> None:
    (subparsers,) = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in subparsers.choices.items():
        section = COMMANDS.partition(f"\n## minisimclr {name}\n")[2].partition("\n## ")[0]
        for action in parser._actions:
            if action.dest != "help":
                for flag in action.option_strings or [str(action.metavar)]:
                    assert f"{flag}" in section, (name, flag)


def test_a_name_or_an_option_without_its_line_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(reference, "_print", printed.append)
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers().add_parser("dance", description="Dance | sing.")
    sub.add_argument("--steps", type=int, help="number of *steps* (default: %(default)s)", default=3)
    sub.add_argument("--fast", action="store_true", help="hurry")
    sub.add_argument("song", nargs="+", metavar="SONG", help="name")
    reference.commands(lambda: parser)
    text = "\n".join(printed)
    assert "## minisimclr dance\n\nDance \\| sing." in text
    assert "| `--steps STEPS` | number of \\*steps\\* (default: 3) |" in text
    assert "| `--fast` | hurry |" in text
    assert "| `SONG …` | name |" in text


def test_a_docstring_becomes_markdown() -> None:
    text = reference.described(
        """Add x*y and [z].

        Shapes: x (N,) -> (N,)
        A row of zeros counts.
        Raises: ValueError if it is
                too long

            train/cat/1.jpg

        * one
          more
        * two

        >>> 1 + 1
        2
        """
    )
    assert text == (
        "Add x\\*y and \\[z\\].\n\n*Shapes:* x (N,) -> (N,)\n\nA row of zeros counts.\n\n"
        "*Raises:* ValueError if it is too long\n\n```text\ntrain/cat/1.jpg\n```\n\n* one more\n* two\n\n"
        "```python\n>>> 1 + 1\n2\n```"
    )


def test_a_signature_is_shown_as_a_caller_writes_it() -> None:
    def call(x: "np.ndarray[int]", *, k: int = 3, tell: object = lambda: None) -> "a.b.Tensor":  # type: ignore # noqa
        return x

    assert reference.signature("f", call) == "f(x: ndarray[int], *, k: int = 3, tell: object = ...) -> Tensor"
    assert "ms.nt_xent(za: Any, zb: Any, temperature: float = 0.1, method: str = 'auto') -> Tensor" in API


def test_a_method_is_listed_with_its_first_sentence() -> None:
    section = API.partition("\n### `ms.Run`\n")[2].partition("\n### ")[0]
    assert "* `.nearest(" in section
    assert "Find the k of `among` that are most similar to each image" in section
