"""CONTRIBUTING.md is true: its four steps add an operation, and the files that it names are there."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.host  # it starts processes of its own

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(
    r"^<!-- (?P<file>\S+), below: (?P<place>[^\n]+) -->\n```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


def inserted(source: str, place: str, code: str) -> str:
    """The source with the code below the one statement or list item that begins with `place`."""
    lines = source.splitlines(keepends=True)
    found = {
        node.lineno: node.end_lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.stmt, ast.Call)) and lines[node.lineno - 1].lstrip().startswith(place)
    }
    assert len(found) == 1, f"{place!r} begins {len(found)} statements"
    (end,) = found.values()
    return "".join([*lines[:end], "\n\n", code, "\n\n", *lines[end:]])


def copy_with_the_steps_of(page: str, folder: Path) -> None:
    """A copy of the package and of the tests that the page names, with the page's code put where it says."""
    shutil.copytree(ROOT / "minisimclr", folder / "minisimclr", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("conftest.py", "devices.py", "test_ops.py", "test_doctests.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)
    steps = list(BLOCK.finditer(page))
    assert len(steps) == 3, "the fourth step is to run the tests"
    for step in steps:
        path = folder / step["file"]
        path.write_text(inserted(path.read_text(), step["place"], step["code"]))


def run_the_tests_of_tanh(folder: Path) -> subprocess.CompletedProcess[str]:
    """The words of `pytest -k tanh` in the copy, with the tests that ask whether the table is complete."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_ops.py",
        "tests/test_doctests.py",
    ]
    return subprocess.run(
        [*command, "-k", "tanh or every_primitive or every_entry"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_steps_add_an_operation_whose_entry_in_the_table_passes(tmp_path: Path) -> None:
    """Its value, its gradient and its refusals; the tests of the page, which take longer, are run in the slow tier."""
    copy_with_the_steps_of(PAGE, tmp_path)
    program = (
        "from minisimclr.checks.report import check_entry\n"
        "from minisimclr.checks.table import TABLE\n"
        "(entry,) = [entry for entry in TABLE if entry.name == 'tanh']\n"
        "print(check_entry(entry).passed, len(entry.samples), len(entry.refused) > 0)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.split() == ["True", "3", "True"], said.stderr


@pytest.mark.slow
def test_the_four_steps_add_an_operation_that_passes_the_tests(tmp_path: Path) -> None:
    copy_with_the_steps_of(PAGE, tmp_path)
    done = run_the_tests_of_tanh(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 25  # seven tests of each of three samples, refusals, docstring, table, the example
    public = "import minisimclr as ms; print('tanh' in ms.ops.__all__, ms.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", public], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout.split() == ["True", str(tmp_path / "minisimclr" / "__init__.py")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("g * (1 - y * y)", "g * (1 - y)"),
        ("VJP:    dx", "Vjp     dx"),
        ("        ops.tanh,\n        lambda x: (np.exp(x) -", "        ops.tanh,\n        lambda x: (np.exp(x) +"),
        ('    0.0\n    """', '    1.0\n    """'),
    ],
)
def test_a_page_with_a_mistake_fails(tmp_path: Path, right: str, wrong: str) -> None:
    assert PAGE.count(right) == 1
    copy_with_the_steps_of(PAGE.replace(right, wrong), tmp_path)
    assert run_the_tests_of_tanh(tmp_path).returncode == 1


def test_the_version_is_the_same_everywhere() -> None:
    found = {
        re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)[1]  # type: ignore[index]
        for file, pattern in (
            ("pyproject.toml", r'^version = "(.+)"$'),
            ("CITATION.cff", r"^version: (.+)$"),
            ("minisimclr/__init__.py", r'^__version__ = "(.+)"$'),
        )
    }
    assert len(found) == 1
    assert f"[{found.pop()}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_file_that_the_page_names_is_there() -> None:
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    names = re.findall(r"[\w./]*\w+\.(?:py|md)\b|\.ci/\w+", prose)
    assert names
    everywhere = {path.name for path in (ROOT / "minisimclr").rglob("*.py")}
    assert [name for name in names if not (ROOT / name).exists() and name not in everywhere] == []
