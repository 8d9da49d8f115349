"""Every example in a docstring is executed, and every public name has one.

An example sees `np`, `ms` (this package) and the names of its module, and runs in an empty folder.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms

pytestmark = pytest.mark.host  # the examples show NumPy arrays

NOT_YET: set[str] = set()  # public names that still lack an example; this set only shrinks


def documented(module: Any) -> Iterator[tuple[str, Any]]:
    """The functions and classes that a module defines. A primitive is defined where its function stands."""
    for name, thing in vars(module).items():
        if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__module__ == module.__name__:
            yield f"{module.__name__}.{name}", thing


def examples() -> Iterator[doctest.DocTest]:
    """The examples of every docstring of the package."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(ms.__path__, "minisimclr."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, thing in documented(module):
            globs = {"__name__": module.__name__}
            yield from (test for test in finder.find(thing, name, module, globs) if test.examples)
        whole = doctest.DocTestParser().get_doctest(module.__doc__ or "", {"__name__": found.name}, found.name, None, 0)
        yield from [whole] if whole.examples else []


def public() -> dict[str, Any]:
    """The functions and classes that `ms.` and `ms.ops.` offer, but for exceptions: what raises them shows them."""
    names = {name: getattr(ms, name) for name in ms.__all__}
    names |= {f"ops.{name}": getattr(ms.ops, name) for name in ms.ops.__all__}
    return {
        name: thing
        for name, thing in names.items()
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, BaseException))
    }


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name.removeprefix("minisimclr."))
def test_an_example_prints_what_it_says(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(example.globs["__name__"])
    example.globs = {**vars(module), "np": np, "ms": ms}
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    try:
        result = runner.run(example, out=said.append)
    finally:
        ms.set_threads(None)
    assert result.failed == 0, "".join(said)


def test_every_public_name_has_an_example() -> None:
    missing = {name for name, thing in public().items() if ">>> " not in (thing.__doc__ or "")}
    assert sorted(missing - NOT_YET) == []
    assert sorted(NOT_YET - missing) == [], "these have one now: take them out of NOT_YET"


def test_an_example_that_lies_is_found_out() -> None:
    lie = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "lie", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(lie, out=lambda _: None).failed == 1
