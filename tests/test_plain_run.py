"""A run with method="plain" is made of the forms that are read first, and of nothing else."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import devices
import numpy as np
import pytest

import minisimclr
from minisimclr import ntxent
from minisimclr.cli import demo, main
from minisimclr.resnet import ENCODERS, resnet18
from minisimclr.training.config import Config
from minisimclr.training.train import pretrain

# The functions with which a fast form begins: module -> names. Those of convolution, batch norm and pooling stand
# beside the tests of these, and those of NT-Xent in the table of its room.
FAST_FORMS: dict[str, tuple[str, ...]] = {"minisimclr.views.augment": ("_batched",)}
CONFIG = Config(size=32, batch=4, epochs=3, head_dim=8, encoder="resnet18", stem="imagenet", device=devices.DEVICE)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def fast_forms() -> dict[str, tuple[str, ...]]:
    """Every fast form that there is."""
    try:
        from fast_forms import FAST_FORMS as of_operations
    except ImportError:
        pytest.skip("tests/fast_forms.py, which lists the fast forms of the operations, is not here")
    named = {module: (names,) if isinstance(names, str) else tuple(names) for module, names in of_operations.items()}
    return FAST_FORMS | named


def spied_run(forms: dict[str, tuple[str, ...]], method: str) -> tuple[set[str], list[float]]:
    """The fast forms that three steps of a run enter, and the losses of the steps."""
    found: set[str] = set()

    def spied(label: str, original: Any) -> Any:
        def spy(*args: Any, **options: Any) -> Any:
            found.add(label)
            return original(*args, **options)

        return spy

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "resnet18", lambda **options: resnet18(**{"base": 16, **options}))  # a quarter as wide
        for name, form in ntxent.METHODS.items():  # a table holds the functions themselves
            if name not in ("plain", "composed"):
                patch.setitem(ntxent.METHODS, name, spied(f"minisimclr.ntxent.{name}", form))
        for module, names in forms.items():
            for name in names:
                home = importlib.import_module(module)
                patch.setattr(home, name, spied(f"{module}.{name}", getattr(home, name)))
        result = pretrain(Config(**CONFIG.as_dict() | {"method": method}), IMAGES)
    assert len(result.history) == 3
    return found, [line["loss"] for line in result.history]


@pytest.fixture(scope="module")
def plain_run() -> tuple[set[str], list[float]]:
    return spied_run(fast_forms(), "plain")


@pytest.fixture(scope="module")
def default_run() -> tuple[set[str], list[float]]:
    return spied_run(fast_forms(), CONFIG.method)


def test_a_run_by_plain_forms_enters_no_fast_one_and_the_default_does(plain_run: Any, default_run: Any) -> None:
    assert plain_run[0] == set()
    rooms = {label.split(".")[1] for label in default_run[0]}
    assert rooms >= {"ops", "ntxent", "views"}  # the spies see something


@pytest.mark.parametrize("room", ["ntxent", "views"])
def test_one_plain_room_enters_no_fast_form_of_that_room(room: str) -> None:
    assert not [label for label in spied_run(FAST_FORMS, f"{room}=plain")[0] if label.split(".")[1] == room]


def test_a_run_by_plain_forms_learns_what_the_default_learns(plain_run: Any, default_run: Any) -> None:
    """The first loss is the same up to rounding; so few images in a batch make something of it in the next steps."""
    losses = plain_run[1], default_run[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)


# ── Breakpoints ───────────────────────────────────────────────────────────────────────────────────

PACKAGE = Path(minisimclr.__file__).parent
sys.path.insert(0, str(PACKAGE.parent / "docs"))
reading = importlib.import_module("reading")


def first_list() -> set[str]:
    """The files of the first reading list that a run must enter: those with a function in them, but for checks/."""
    kinds = (ast.FunctionDef, ast.Lambda)
    return {
        file
        for file in reading.FIRST
        if not file.startswith("checks/")
        and any(isinstance(node, kinds) for node in ast.walk(ast.parse((PACKAGE / file).read_text())))
    }


def test_a_breakpoint_in_any_file_of_the_first_list_is_hit_by_the_plain_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = {"train": (24, 0, ("filled",)), "test": (8, 1, ("filled",)), "unseen": (8, 2, ("hatched",))}
    monkeypatch.setattr("minisimclr.data.doodles.SPLITS", drawn)
    monkeypatch.setattr(demo, "DEMO", dataclasses.replace(demo.DEMO, size=16, batch=12, epochs=1))
    monkeypatch.setattr("minisimclr.cli.evaluate.reported", lambda *arguments: {})  # drawing takes half of the time
    called: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        """Note the file of a function that is called. (It returns None: no line of the function is traced.)"""
        if not frame.f_code.co_name.startswith("<module"):
            called.add(frame.f_code.co_filename)

    before = sys.gettrace()
    threading.settrace(note)
    sys.settrace(note)
    try:
        status = main(["demo", "--method", "plain", "--out", str(tmp_path / "run"), "--device", devices.DEVICE])
    finally:
        sys.settrace(before)
        threading.settrace(None)  # type: ignore[arg-type]
    assert status == 0
    assert {file for file in first_list() if str(PACKAGE / file) not in called} == set()
