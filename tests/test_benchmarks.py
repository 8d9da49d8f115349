"""The programs in benchmarks/ and docs/figures/ fit the package: they import, and a short run of each answers."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.host  # the programs start processes of their own, or only draw

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("docs/figures/*.py")])


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_program_imports_names_that_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "matplotlib" in path.read_text().partition("\n\n\n")[0]:  # drawn at the top, not only with --plot
        pytest.importorskip("matplotlib")
    if path.name == "torch_peer.py":
        pytest.importorskip("torch")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(sys, "path", list(sys.path))  # a program puts the checkout there
    try:
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # a dataclass looks for the module that it is in
        spec.loader.exec_module(module)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(path.parent)):
                del sys.modules[name]  # `conv` and `arena` are names for a benchmark, not for the tests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "options", "contestants"),
    [
        ("ntxent", ["--quick", "--sizes", "8", "--seconds", "0.1"], {"exact", "plain", "composed", "tiled, E kept"}),
        ("ntxent", ["--choose", "--sizes", "8", "300", "--seconds", "0.1"], {"auto", "whole matrix", "tiled, E kept"}),
        ("conv", ["--cases", "1x1, 64 to 128, stride 2", "--rounds", "1"], {"slabs", "winograd", "auto", "plain"}),
        ("augment", ["--cases", "256 images of 32", "--rounds", "1"], {"minisimclr"}),
        ("train_step", ["--cases", "small, 512 views", "--rounds", "1"], {"slabs", "winograd", "auto", "plain"}),
    ],
)
def test_a_short_run_measures_every_contestant(
    program: str, options: list[str], contestants: set[str], tmp_path: Path
) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / f"{program}.py"),
        *options,
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert contestants <= {row["name"] for row in rows if row.get("median", 0) > 0}, done.stdout
    assert all(row["name"] in done.stdout for row in rows)


def test_the_profile_of_a_step_counts_each_moment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that calls others counts only what it does itself; the operations fill their phases."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    try:
        profile = importlib.import_module("step_profile")
        watch = profile.Stopwatch()
        now = iter(float(k * k) for k in range(8))  # 0, 1, 4, 9: the outer piece takes 9, the inner one 4 − 1 of them
        monkeypatch.setattr(profile.time, "perf_counter", lambda: next(now))
        with watch.timing("outer"), watch.timing("inner"):
            pass
        assert {name: wall for name, (wall, _) in watch.total.items()} == {"inner": 3.0, "outer": 6.0}
        monkeypatch.undo()
        case = {"encoder": "small", "views": 8, "size": 16}
        ticks = itertools.count()  # a clock that goes on by one when it is read: a busy machine does not matter
        monkeypatch.setattr(profile.time, "perf_counter", lambda: float(next(ticks)))
        phases, operations = profile.profile(case, "plain", steps=1)
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
                del sys.modules[name]
    assert set(phases) == set(profile.PHASES)
    assert {"conv2d", "conv2d backward", "batch_norm", "batch_norm backward"} <= set(operations)
    watched = sum(phases[name].wall for name in ("forward", "loss", "backward"))
    assert 0.3 * watched < sum(spent.wall for spent in operations.values()) <= watched
