"""One test body for every device: `pytest --device stand-in` runs the tests a second time, on device arrays.

    x = on_device(np.ones((2, 3)))       # a NumPy array, or with --device a CuPy array
    np.testing.assert_allclose(host(f(x)), …)

--device stand-in takes tests/stand_in/cupy, --device cuda whatever `import cupy` finds. A test that has nothing
to do with a device carries the marker `host` and is not repeated.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minisimclr import Tensor, backend

DEVICE = "cpu"  # or "cuda"; conftest.py sets it


def xp() -> ModuleType:
    """The array module of the device."""
    return np if DEVICE == "cpu" else importlib.import_module("cupy")


def on_device(value: Any) -> Any:
    """Put an array on the device, also each array in a tuple, list or dict; return anything else as it is."""
    return _each(value, lambda array: backend.to_device(array, DEVICE))


def tensor(data: Any, requires_grad: bool = False) -> Tensor:
    """A Tensor on the device, of an array, a list or a number."""
    return Tensor(on_device(np.asarray(data)), requires_grad)


def placed(module: Any) -> Any:
    """The module, moved to the device."""
    return module.to(DEVICE)


def host(value: Any) -> Any:
    """The reverse of `on_device`: NumPy arrays again."""
    return _each(value, backend.to_numpy)


def _each(value: Any, move: Any) -> Any:
    if isinstance(value, dict):
        return {name: _each(item, move) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each(item, move) for item in value)
    return move(value) if backend.is_array(value) else value


def assert_same(a: Any, b: Any) -> None:
    """Equal shapes and equal elements, wherever the arrays are."""
    np.testing.assert_array_equal(host(a), host(b))


def assert_close(a: Any, b: Any, rtol: float = 1e-7, atol: float = 0) -> None:
    np.testing.assert_allclose(host(a), host(b), rtol=rtol, atol=atol)


def share_memory(a: Any, b: Any) -> bool:
    return bool(backend.array_module(a, b).may_share_memory(a, b))


@contextlib.contextmanager
def transfers() -> Iterator[Counter[str]]:
    """Count the transfers between host and device, by the call that made each; only the stand-in can tell."""
    module = xp()
    if not hasattr(module, "_traffic"):
        pytest.skip("only the stand-in for CuPy counts what crosses to the host: --device stand-in")
    before, crossed = module._traffic.copy(), Counter[str]()
    yield crossed
    crossed.update(module._traffic - before)
