"""Which device the tests run on, and how many random cases hypothesis tries: few while editing, always the same
hundred in CI, many at night."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # read when NumPy is imported, and by the processes that tests start
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads beyond the cores only wait for one another, at work

import devices
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import none

settings.register_profile("dev", max_examples=10, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("ci on a device", max_examples=20, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None)
# `pytest --hypothesis-profile=nightly` chooses one by name and wins over this line
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "stand-in", "cuda"),
        default="cpu",
        help="where the tests keep their arrays: NumPy, the stand-in for CuPy in tests/stand_in, or the "
        "`cupy` that is installed (default: cpu)",
    )


def pytest_configure(config: pytest.Config) -> None:
    for signum in (signal.SIGINT, signal.SIGHUP):  # nohup, and a shell's `&`, leave them ignored; children inherit that
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGHUP else signal.default_int_handler)
    os.fsync = os.fstat  # a killed process loses nothing that it has written, and no test takes away the power
    if getattr(config.option, "dist", "no") == "load":  # of pytest-xdist: each process takes its tests in one piece, so
        config.option.dist = "worksteal"  # that what the tests of a file share is made once
    device = config.getoption("--device")
    if device == "stand-in":
        sys.path.insert(0, str(Path(__file__).with_name("stand_in")))
    devices.DEVICE = "cpu" if device == "cpu" else "cuda"
    if device != "cpu" and os.environ.get("CI") == "true" and not config.getoption("--hypothesis-profile"):
        settings.load_profile("ci on a device")  # fewer random cases: on the stand-in they repeat the same arithmetic
    try:
        devices.on_device(np.zeros(1))
    except RuntimeError as error:
        raise pytest.UsageError(f"--device {device}: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    if devices.DEVICE == "cpu":
        return
    for item in items:
        marker = item.get_closest_marker("host")
        if marker and not item.get_closest_marker("gpu"):
            reason = marker.args[0] if marker.args else "nothing of it runs on a device: once, on the CPU, is enough"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage among thousands of tests: neither while they are found, nor when a test looks for its own."""
    gc.disable()
    try:
        return (yield)
    finally:
        given(none())(lambda _: None)()  # Hypothesis asks, once, who holds NumPy's generators: what is frozen hides it
        gc.freeze()
        gc.enable()


@pytest.fixture
def xp() -> ModuleType:
    """NumPy, or what --device put in its place."""
    return devices.xp()


@pytest.fixture
def device() -> str:
    """ "cpu" or "cuda", as the package calls it."""
    return devices.DEVICE
