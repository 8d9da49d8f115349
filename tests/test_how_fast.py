"""The tables of chapter 13 say what the stored results say, and its counts are those of the benchmarks."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import programs of benchmarks/ and docs/figures/ by name, and forget them afterwards."""
    folders = [str(ROOT / "benchmarks"), str(ROOT / "docs" / "figures")]
    monkeypatch.setattr(sys, "path", [*folders, *sys.path])
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(tuple(folders)):
            del sys.modules[name]


@pytest.fixture
def how_fast(programs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with a folder of its own for results."""
    module = programs("how_fast")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def store(folder: Path, file: str, **results: Any) -> None:
    (folder / file).write_text(json.dumps({"commit": "abc", "date": "2026-01-01", **results}))


# ── Counts ────────────────────────────────────────────────────────────────────────────────────────


def test_multiply_adds_and_passes_are_those_that_the_benchmark_counts(how_fast: Any, programs: Any) -> None:
    case = {"encoder": "small", "views": 6, "size": 32}
    found = programs("train_step").work(case)
    products, copied = how_fast.work(how_fast.of_encoder("small encoder, side 32"))
    assert (found["products"], found["bytes"]) == (6 * products, 6 * copied)


def test_the_layers_of_resnet_18_are_those_of_a_count_by_hand(how_fast: Any) -> None:
    found = how_fast.of_encoder("ResNet-18, side 32")
    stem = 3 * 3 * 3 * 64 * 32**2
    stage = 4 * 9 * 64**2 * 32**2  # the first one
    later = 9 * 64 * 128 * 16**2 + 3 * 9 * 128**2 * 16**2 + 64 * 128 * 16**2  # each of the three others
    assert how_fast.work(found)[0] == 3 * (stem + stage + 3 * later)
    assert found[1] == ((3, 3, 64, 64), (32, 32))
    assert how_fast.work(found)[1] == 8 * 4 * (
        64 * 32**2 * 5 + sum(5 * 64 * 2**k * (32 // 2**k) ** 2 for k in (1, 2, 3))
    )


def test_the_rates_are_found_that_give_the_floors_of_the_file(how_fast: Any, tmp_path: Path) -> None:
    rows = []
    for case, (encoder, views) in how_fast.CASES.items():
        products, copied = np.multiply(how_fast.work(how_fast.of_encoder(encoder)), views)
        rows.append({"case": case, "name": "auto", "median": 1.0, "floor": products / 2e11 + copied / 5e10})
    store(tmp_path, how_fast.STEP, rows=rows)
    assert np.allclose(how_fast.rates(), (2e11, 5e10))
    store(tmp_path, how_fast.STEP, rows=rows[:1])
    assert how_fast.rates() is None  # one equation, two unknowns


# ── What is not there, and what is ────────────────────────────────────────────────────────────────


def test_a_table_whose_file_is_missing_says_so_and_does_not_fail(how_fast: Any) -> None:
    told = {make.__name__: make() for make in how_fast.TABLES}
    assert {name for name, text in told.items() if "Not measured yet" not in text} == {"counted", "behind"}
    assert told["behind"] == "Nowhere."


def test_a_profile_is_told_in_shares_of_its_step(how_fast: Any, tmp_path: Path) -> None:
    phases = {
        "views": [0.1, 0.1],
        "forward": [0.2, 0.3],
        "loss": [0.0, 0.0],
        "backward": [0.6, 1.0],
        "update": [0.1, 0],
    }
    operations = {"conv2d": [0.2, 0.3], "conv2d backward": [0.5, 0.9], "moments": [0.04, 0.04], "relu": [0.001, 0]}
    floor = {"conv2d": 0.35, "batch_norm": 0.02}
    rows = {"phases": phases, "operations": operations, "floor": floor}
    store(tmp_path, how_fast.PROFILE, threads=2, cases={"a case": rows})
    text = how_fast.profile()
    assert "| backward | 600.0 (60\u00a0%) |" in text
    assert "| `conv2d` | 200.0 + 500.0 (70\u00a0%, 86\u00a0%) |" in text
    assert "| convolutions | 2.00 |" in text
    assert "| batch norms and their statistics | 2.00 |" in text
    assert "relu" not in text  # a thousandth of the step
    assert "![" not in text
    (tmp_path / how_fast.PICTURE).touch()
    assert how_fast.PICTURE in how_fast.profile()


def test_sources_of_several_commits_or_with_changes_are_told(how_fast: Any, tmp_path: Path) -> None:
    store(tmp_path, "conv.json")
    assert how_fast.sources().startswith("They are of one commit")
    (tmp_path / "growth.json").write_text(json.dumps({"commit": "0123456789ab-dirty"}))
    assert "not all of one commit" in how_fast.sources()
    assert "0123456 (changed): `growth.json`" in how_fast.sources()


def test_a_peer_that_is_faster_is_named_and_our_own_forms_are_no_peers(how_fast: Any, tmp_path: Path) -> None:
    case = "small, 512 views"
    times = {"auto": 0.2, "direct": 0.1, "torch channels-last": 0.3, "torch c.-l., memory kept": 0.15}
    rows = [{"case": case, "name": name, "median": median} for name, median in times.items()]
    store(tmp_path, how_fast.STEP, rows=rows)
    assert how_fast.behind().splitlines()[2:] == [f"| {case} | 200 | torch, memory kept | 150 | 0.75 |"]
    store(tmp_path, how_fast.STEP, rows=rows[:3])
    assert how_fast.behind() == "Nowhere."


# ── The paper's size, and figures ─────────────────────────────────────────────────────────────────


def test_machines_share_the_work_and_one_alone_does_a_third_more(how_fast: Any) -> None:
    one, many = (how_fast.paper_seconds(machines, 0.1, 0.004, 0.2, 0.0) for machines in (1, 128))
    assert np.isclose(one["network"], 8192 * 0.1 * 4 / 3)
    assert np.isclose(one["network"] / many["network"], 128 * 4 / 3)
    assert np.isclose(one["views"], 2 * 8192 * 0.004 / 2)
    assert np.isclose(one["views"] / many["views"], 256)


def test_the_bars_of_a_profile_add_up_to_the_step_and_small_ones_are_joined(programs: Any) -> None:
    profile = programs("step_profile")
    phases = {"views": (0.1, 0), "forward": (0.3, 0), "loss": (0.0, 0), "backward": (0.5, 0), "update": (0.1, 0)}
    operations = {"conv2d": (0.2, 0), "conv2d backward": (0.4, 0), "moments": (0.05, 0), "relu": (0.001, 0)}
    own = profile.bars({"phases": phases, "operations": operations})
    assert own["batch_norm"] == [50.0, 0.0]
    names = profile.drawn([own])
    assert names == ["conv2d", "views", "update", "batch_norm", "all else"]
    assert np.isclose(sum(sum(own[name]) for name in names), 1000)
