"""The tables of benchmarks/README.md say what the stored results say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[1]
DEVICE = {"cpu": "a processor", "cores": 2, "python": "3.11", "numpy": "2.4", "blas": ["a BLAS"]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module, with a folder of its own for results."""
    folder = str(ROOT / "docs" / "figures")
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    before = set(sys.modules)
    module = importlib.import_module("measured")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    (tmp_path / "again").mkdir()
    yield module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


def loss_rows(n: int, **milliseconds: float) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", " "), "n": n, "median": ms / 1e3, "floor": 1e-3} for name, ms in milliseconds.items()
    ]


def store(measured: Any, file: str, **results: Any) -> None:
    about = {"commit": "0123456789ab", "date": "2026-01-01", "device": DEVICE, "versions": {"torch": "3"}}
    (measured.RESULTS / file).write_text(json.dumps(about | results))


def test_a_table_whose_file_is_missing_says_so_and_does_not_fail(measured: Any) -> None:
    for make, *arguments in measured.TABLES:
        assert "Not measured yet" in make(*arguments)


def test_a_fraction_is_that_of_the_best_peer_over_both_hours_and_bold_if_an_aim_is_missed(measured: Any) -> None:
    peers = {"torch eager": 10.0, "jax.jit": 4.0}
    for file, ours in (("ntxent_2.json", 3.0), ("again/ntxent_2.json", 5.0)):
        store(measured, file, rows=loss_rows(256, **{"auto, in a run": ours}, **peers))
    (line,) = [line for line in measured.losses(2).splitlines() if line.startswith("| 256 ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "256",
        "3.00 – 5.00",
        "3.0 – 5.0",
        "0.30 – 0.50",
        "",
        "",
        "0.75 – 1.25",
        "**0.75 – 1.25** of jax.jit",
        "1",
    ]


def test_a_ratio_is_the_median_over_the_rounds_in_which_both_had_a_turn(measured: Any) -> None:
    """In the second round the machine was slow for both."""
    assert measured.ratio({"median": 2, "turns": [1, 20, 1]}, {"median": 2, "turns": [2, 30, 2]}) == 0.5


@pytest.mark.parametrize("changed", [{"commit": "another"}, {"device": DEVICE | {"blas": ["another"]}}, {"threads": 1}])
def test_another_hour_counts_if_code_kernels_and_threads_are_the_same(measured: Any, changed: dict[str, Any]) -> None:
    store(measured, "ntxent_2.json", rows=[], threads=2)
    store(measured, "again/ntxent_2.json", rows=[], threads=2)
    assert len(measured.hours("ntxent_2")) == 2
    store(measured, "again/ntxent_2.json", rows=[], **{"threads": 2, **changed})
    assert len(measured.hours("ntxent_2")) == 1


def test_a_form_that_computes_e_again_is_held_to_its_own_aim_once(measured: Any) -> None:
    rows = [
        row
        for n in (4096, 16384)
        for row in loss_rows(n, **{"auto, in a run": 4.0, "tiled, E recomputed": 4.0, "jax.jit": 10.0})
    ]
    store(measured, "ntxent_2.json", rows=rows)
    kept, again, large = measured.losses(2).splitlines()[2:]
    assert kept.endswith("| **0.40** of jax.jit | 0.35 |")
    assert again.startswith("| 4,096, E computed again |")
    assert again.endswith("| 0.40 of jax.jit | 0.45 |")
    assert large.startswith("| 16,384 |")
    assert large.endswith("| 0.40 of jax.jit | 0.45 |")


def test_a_peer_that_failed_says_so_in_its_cell(measured: Any) -> None:
    failed = {"name": "lightly", "n": 4096, "failed": "no answer in 120 s"}
    store(measured, "ntxent_2.json", rows=[*loss_rows(4096, **{"auto, in a run": 4.0, "jax.jit": 10.0}), failed])
    assert "| no answer in 120 s |" in measured.losses(2)


def test_up_to_128_images_jax_is_shown_and_not_counted(measured: Any) -> None:
    rows = loss_rows(64, **{"auto, in a run": 3.0, "torch eager": 6.0, "jax.jit": 1.0})
    store(measured, "ntxent_2.json", rows=rows)
    line = measured.losses(2).splitlines()[-1]
    assert line.endswith("| 3.00 | 0.50 of torch eager | 0.8 |")


def test_a_form_is_shown_beside_the_best_one(measured: Any) -> None:
    forms = {"whole matrix": 2.0, "tiled, E kept": 1.0, "tiled, E recomputed": 3.0, "auto, in a run": 1.1}
    store(measured, "choose_2.json", rows=loss_rows(300, **forms), dtype="float32", threads=2)
    assert measured.choices("choose_2").splitlines()[-1] == "| 300 | 2.00 | 1.00 | 3.00 | 1.10 | |"


def test_a_peer_that_was_left_out_says_why(measured: Any) -> None:
    row = {"name": "optax", "n": 256, "failed": "more than 10 GiB"}
    ours = loss_rows(256, exact=2.0)[0] | {"memory": 2**20, "error": 1e-7, "error_aligned": 1e-6}
    store(measured, "ntxent_peers.json", rows=[ours, row])
    table = measured.all_peers().splitlines()
    assert table[-2] == "| exact | 2.00 | 2.0 | 1.0 | 1e-07 | 1e-06 |"
    assert table[-1].startswith("| optax | more than 10 GiB |")


def test_the_speed_of_a_step_is_that_beside_torch_with_memory_kept(measured: Any) -> None:
    rows = [
        {"name": name, "case": "small, 512 views", "median": seconds, "floor": 0.1, "memory": 2**20}
        for name, seconds in (("auto", 0.5), ("torch channels-last", 0.6), (measured.RIVAL, 0.3))
    ]
    store(measured, "train_step_2.json", rows=rows, cases=["small, 512 views"])
    lines = measured.steps(2).splitlines()
    assert lines[2].startswith("| torch channels-last, memory kept | 300 | 3.00 | 1.00 |")
    assert lines[3] == "| auto | 500 | 5.00 | **0.60** | 0.8 | 1 |"


def test_without_the_peer_times_stand_alone(measured: Any) -> None:
    rows = [{"name": "minisimclr", "case": "a case", "median": 0.002}]
    store(measured, "augment.json", rows=rows, cases=["a case"], peer="torchvision, Pillow")
    assert measured.by_case("augment", "torchvision, Pillow").splitlines()[-1] == "| minisimclr | 2.00 |"


def test_the_machine_and_the_commits_are_named_once(measured: Any) -> None:
    store(measured, "train_step_2.json", rows=[], cases=[])
    store(measured, "conv.json", rows=[], cases=[], commit="fedcba987654-dirty")
    store(measured, "large_batch.json", rows=[], cases=[], commit="eeeeeeeeeeee")  # no table of this page
    said = measured.where()
    assert "2 cores of a processor, Python 3.11, NumPy 2.4 on a BLAS; torch 3" in said
    assert "at commits 0123456, fedcba9 (changed)" in said
