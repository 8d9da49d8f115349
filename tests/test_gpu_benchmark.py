"""benchmarks/gpu.py, the one command for a GPU: the whole program runs here, in tiny sizes on the stand-in for CuPy."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.host  # it starts processes of its own, with the stand-in in them

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def command(*options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--smoke", *options]


@pytest.fixture(scope="module")
def gpu() -> Any:
    sys.path.append(str(SCRIPT.parent))  # where it finds its neighbours when it is run
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The lines that a whole run prints, and the file that it writes."""
    path = tmp_path_factory.mktemp("gpu") / "out.json"
    done = subprocess.run(
        command("--device", "stand-in", "--without-torch", "--json", str(path)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(path.read_text())


# ── The whole program ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_every_section_is_measured(smoke: Any, gpu: Any) -> None:
    _, report = smoke
    planned = {(name, case["name"]) for name, section in gpu.sections(True, []).items() for case in section.cases}
    assert {(row["section"], row["case"]) for row in report["rows"]} == planned


@pytest.mark.slow
def test_all_that_the_stand_in_can_do_is_timed(smoke: Any) -> None:
    """The stand-in can do no kernels of its own, and bfloat16 only with ml_dtypes."""
    _, report = smoke
    for row in report["rows"]:
        if row["precision"] != "bfloat16" and "cuda" not in row["name"]:
            assert "failed" not in row, row
            assert row["median"] > 0
            assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]


@pytest.mark.slow
def test_a_row_that_fails_says_why_and_harms_no_other(smoke: Any) -> None:
    text, report = smoke
    failed = [row for row in report["rows"] if "failed" in row]
    assert failed
    for row in failed:
        assert row["failed"][:80] in text
        assert any("median" in other for other in report["rows"] if other["case"] == row["case"])


@pytest.mark.slow
def test_all_compute_the_same(smoke: Any) -> None:
    _, report = smoke
    for row in report["rows"]:
        if "median" in row and row["section"] != "ceilings" and "with views" not in row["name"]:
            # bfloat16, which the stand-in has where ml_dtypes is installed, keeps 8 bits at each of 18 layers
            assert row["off by"] < (0.3 if row["precision"] == "bfloat16" else 1e-2), row


@pytest.mark.slow
def test_the_report_says_what_was_measured_where(smoke: Any) -> None:
    text, report = smoke
    assert report["about"]["device"] in text
    assert report["commit"]
    assert report["date"] == time.strftime("%Y-%m-%d")
    assert report["smoke"] is True
    assert {"float32", "TF32", "float16", "copy"} <= report["rates"].keys()


@pytest.mark.slow
def test_lines_of_a_table_are_aligned_and_fit_a_screen(smoke: Any) -> None:
    text, _ = smoke
    lines = [line for line in text.splitlines() if line.startswith("  ") and "  – " not in line]
    assert len({len(line) for line in lines if not line.endswith(("/s", "rate"))}) == 1
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_run_that_is_killed_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    process = subprocess.Popen(
        command("--device", "stand-in", "--without-torch", "--json", str(path)), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("NT-Xent"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait(60)
    process.stdout.close()
    rows = json.loads(path.read_text())["rows"]
    assert {"ceilings"} <= {row["section"] for row in rows} <= {"ceilings", "NT-Xent"}


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError")  # also where CuPy is installed
    done = subprocess.run(
        command("--json", str(tmp_path / "out.json")),
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "CuPy" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_run_that_is_out_of_time_tells_so(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "stand-in", "--without-torch", "--minutes", "0", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == sum(len(section.cases) for section in gpu.sections(False, []).values())
    assert {row["failed"] for row in rows} == {"no time left"}


# ── Its arithmetic ────────────────────────────────────────────────────────────────────────────────


def test_floor_is_the_longer_of_products_and_copies_and_their_sum_for_a_step(gpu: Any) -> None:
    rates = {"float32": 1e12, "copy": 1e9}
    assert gpu.floor("convolution", (2e12, 1e9), "float32", rates) == 2
    assert gpu.floor("convolution", (1e12, 3e9), "float32", rates) == 3
    assert gpu.floor("step", (2e12, 1e9), "float32", rates) == 3
    assert gpu.floor("batch norm", (0.0, 1e9), "TF32", rates) == 1
    assert gpu.floor("convolution", (2e12, 1e9), "float16", rates) is None


def test_the_least_work_of_a_case_is_counted_as_by_hand(gpu: Any) -> None:
    case = {"side": 32, "views": 8, "channels": 3, "out": 4, "kernel": 3, "stride": 2}
    flops, size = gpu.least("convolution", case, "float16")
    assert flops == 3 * 2 * 16 * 16 * 8 * 9 * 3 * 4  # value and both gradients, two a multiply–add
    assert size == 2 * 2 * 8 * (32 * 32 * 3 + 16 * 16 * 4)  # x, y, g, dx in two bytes each
    assert gpu.least("NT-Xent", {"N": 2, "D": 3}, "float32") == (3 * 4 * 4 * 3, 2 * 4 * 3 * 4)
    flops, size = gpu.least("step", {"encoder": "small", "views": 4, "size": 32}, "float32")
    half = gpu.least("step", {"encoder": "small", "views": 2, "size": 32}, "float16")
    assert half == pytest.approx((flops / 2, size / 4))


def test_speed_is_against_pytorch_in_the_same_precision(gpu: Any) -> None:
    rows = [
        {
            "name": name,
            "who": name.split(",")[0],
            "precision": precision,
            "times": [time] * 3,
            "check": check,
            "host": 0.1,
        }
        for name, precision, time, check in [
            ("minisimclr, float32", "float32", 2.0, 4.0),
            ("minisimclr, TF32", "TF32", 1.0, 4.0),
            ("torch, float32", "float32", 4.0, 5.0),
            ("torch, TF32", "TF32", 0.5, 4.0),
            ("torch, compile, TF32", "TF32", 0.25, 4.0),
        ]
    ]
    case = {"name": "x", "N": 4, "D": 8}
    gpu.summarise("NT-Xent", case, rows, {"float32": 1.0, "TF32": 2.0, "copy": 1e9})
    assert [row["speed"] for row in rows] == [2.0, 0.5, 1.0, 1.0, 2.0]
    assert [row["off by"] for row in rows] == [0, 0, 0.25, 0, 0]
    assert rows[0]["floor"] == 2 * rows[1]["floor"]


def test_numbers_are_shown_with_three_digits(gpu: Any) -> None:
    assert [gpu.digits(x) for x in (0.0123, 0.123, 1.234, 12.34, 123.4, 1234.5, 0.0, None)] == [
        "0.012",
        "0.123",
        "1.23",
        "12.3",
        "123",
        "1,234",
        "0",
        "–",
    ]
