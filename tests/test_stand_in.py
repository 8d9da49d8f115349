"""The stand-in for CuPy is as strict as it says: each leak that is planted here is refused, or counted."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.host
FOLDER = Path(__file__).parent / "stand_in" / "cupy"


@pytest.fixture(scope="module")
def cp() -> types.ModuleType:
    """The stand-in under another name, so that nobody takes it for an installed CuPy."""
    spec = importlib.util.spec_from_file_location("stand_in_for_cupy", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stand_in_for_cupy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def x(cp: Any) -> Any:
    return cp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


Leak = Callable[[Any, Any], Any]

REFUSED: dict[str, tuple[Leak, type[Exception]]] = {
    "a ufunc of NumPy": (lambda cp, x: np.exp(x), TypeError),
    "a function of NumPy": (lambda cp, x: np.sum(x), TypeError),
    "NumPy's concatenate": (lambda cp, x: np.concatenate([x, x]), TypeError),
    "NumPy's norm": (lambda cp, x: np.linalg.norm(x), TypeError),
    "implicit conversion": (lambda cp, x: np.asarray(x), TypeError),
    "implicit conversion of a list": (lambda cp, x: np.array([x, x]), TypeError),
    "a NumPy array on the right": (lambda cp, x: x + np.ones(3), TypeError),
    "a NumPy array on the left": (lambda cp, x: np.ones(3) + x, TypeError),
    "a NumPy array in a matrix product": (lambda cp, x: x @ np.ones((3, 2)), TypeError),
    "a NumPy array in place": (lambda cp, x: x.__iadd__(np.ones(3, np.float32)), TypeError),
    "a NumPy array of no dimensions": (lambda cp, x: x * np.array(2.0), TypeError),
    "a device array added to NumPy's in place": (lambda cp, x: np.ones((2, 3)).__iadd__(x), TypeError),
    "a NumPy array in a function": (lambda cp, x: cp.exp(np.ones(2)), TypeError),
    "a NumPy array in a list": (lambda cp, x: cp.concatenate([x, np.ones((1, 3))]), TypeError),
    "a NumPy array as a keyword": (lambda cp, x: cp.add(x, x, out=np.ones((2, 3))), TypeError),
    "a NumPy array as an index": (lambda cp, x: x[np.array([0, 1])], TypeError),
    "a NumPy array as a value": (lambda cp, x: x.__setitem__(0, np.ones(3)), TypeError),
    "a list as an array": (lambda cp, x: cp.exp([1.0, 2.0]), TypeError),
    "a name that CuPy lacks": (lambda cp, x: cp.errstate(all="ignore"), AttributeError),
    "another name that CuPy lacks": (lambda cp, x: cp.linalg.vector_norm(x), AttributeError),
    "a method that CuPy lacks": (lambda cp, x: x.ctypes, AttributeError),
    "a lock on memory": (lambda cp, x: x.flags.writeable, AttributeError),
    "a parameter that CuPy lacks": (lambda cp, x: x.max(initial=0), TypeError),
    "another parameter that CuPy lacks": (lambda cp, x: cp.add(x, x, where=x > 0), TypeError),
    "a parameter too many": (lambda cp, x: cp.sum(x, 0, None, None, True, 0), TypeError),
    "a reduction of a ufunc": (lambda cp, x: cp.maximum.reduce(x), NotImplementedError),
    "an index array that points outside": (lambda cp, x: x[cp.asarray([2])], Exception),
    "an assignment that points outside": (lambda cp, x: x.__setitem__(cp.asarray([-3]), 0), Exception),
    "a number that points outside": (lambda cp, x: x[2], IndexError),
    "a sum as a size": (lambda cp, x: range(x.sum().astype(int)), TypeError),
    "a hash": (lambda cp, x: {x: 1}, TypeError),
    "kernels": (lambda cp, x: cp.RawModule, AttributeError),
}


@pytest.mark.parametrize("leak", REFUSED)
def test_a_leak_is_refused(leak: str, cp: Any, x: Any) -> None:
    plant, error = REFUSED[leak]
    with pytest.raises(error):
        plant(cp, x)


def test_an_index_array_that_points_outside_does_not_pass_for_numpys_error(cp: Any, x: Any) -> None:
    """CuPy would not raise at all, so code that relies on IndexError must be found."""
    with pytest.raises(cp._strict.WrappedIndexError):
        x[cp.asarray([2])]
    assert not issubclass(cp._strict.WrappedIndexError, IndexError)


COUNTED: dict[str, tuple[Leak, str]] = {
    "float": (lambda cp, x: float(x.sum()), "float"),
    "an if": (lambda cp, x: 1 if x.any() else 0, "bool"),
    "a comparison of Python's": (lambda cp, x: max(x.sum(), 0.0), "bool"),
    "int": (lambda cp, x: int(x.argmax()), "int"),
    "item": (lambda cp, x: x[0, 0].item(), "item"),
    "get": (lambda cp, x: x.get(), "get"),
    "asnumpy": (lambda cp, x: cp.asnumpy(x), "get"),
    "tolist": (lambda cp, x: x.tolist(), "tolist"),
    "numbers one by one": (lambda cp, x: [v for v in x[0]], "iteration"),
    "Python's sum": (lambda cp, x: sum(x[0]), "iteration"),
    "print": (lambda cp, x: f"{x}", "format"),
    "repr": (lambda cp, x: repr(x), "repr"),
    "a mask whose number of elements must be known": (lambda cp, x: x[x > 1], "mask"),
    "nonzero": (lambda cp, x: cp.flatnonzero(x), "flatnonzero"),
    "an upload": (lambda cp, x: cp.asarray(np.ones(2)), "to the device"),
}


@pytest.mark.parametrize("leak", COUNTED)
def test_a_leak_is_counted(leak: str, cp: Any, x: Any) -> None:
    plant, what = COUNTED[leak]
    cp._traffic.clear()
    plant(cp, x)
    assert cp._traffic == {what: 1}


def test_what_stays_on_the_device_is_not_counted(cp: Any, x: Any) -> None:
    cp._traffic.clear()
    y = cp.exp(x - x.max(axis=1, keepdims=True)) @ x.T
    y /= y.sum()
    y[y > 0.5] = 0
    x.reshape(-1)[1:3].copy().astype(cp.float64)
    first, second = x
    cp.add.at(cp.zeros_like(first), cp.arange(3), second)
    assert not cp._traffic


def test_a_float64_scalar_promotes_as_in_cupy(cp: Any, x: Any) -> None:
    assert (x * 2.0).dtype == (2 * x).dtype == cp.maximum(x, 0).dtype == np.float32
    assert (x * np.float64(2)).dtype == (np.float64(2) * x).dtype == cp.maximum(x, np.float64(0)).dtype == np.float64


def test_reductions_and_elements_are_arrays_of_no_dimensions(cp: Any, x: Any) -> None:
    for value in (
        x.sum(),
        x[0, 0],
        x.sum() + x.sum(),
        -x.max(),
        cp.sqrt(x.mean()),
        cp.linalg.norm(x.ravel()),
        cp.array_equal(x, x),
        cp.asarray(2.0),
        x.argmax(),
    ):
        assert type(value) is cp.ndarray
        assert value.shape == ()


def test_views_share_memory_and_know_their_base(cp: Any, x: Any) -> None:
    x = x.copy()
    assert x.base is None
    for view in (x[0], x[0, 1], x.T, x.reshape(3, 2), x[:, None], x.ravel()):
        assert view.base is x
        assert cp.may_share_memory(view, x)
    assert x.T[0].base is x
    for copy in (x.copy(), x + 0, x[[0, 1]], x.astype(np.float64), cp.array(x)):
        assert copy.base is None
        assert not cp.may_share_memory(copy, x)
    x[0, 1][...] = 7
    assert float(x[0, 1]) == 7
    y = x
    y *= 2
    assert y is x
    assert x.astype(np.float32, copy=False) is x
    assert cp.add(x, 1, out=y) is x


def test_a_gpu_warns_of_nothing(cp: Any, x: Any) -> None:
    assert bool(cp.isinf(1 / (x * 0)).any() | cp.isnan(cp.log(-x - 1)).all())


def test_every_name_is_in_the_list_and_in_numpy_or_about_the_device(cp: Any) -> None:
    listed = {line.split("(")[0] for line in (FOLDER / "names.txt").read_text().splitlines()[2:]}
    public = {name for name in vars(cp) if not name.startswith("_")}
    assert public <= listed
    assert {f"linalg.{name}" for name in vars(cp.linalg)} <= listed
    assert {f"ndarray.{name}" for name in dir(cp.ndarray) if not name.startswith("_")} <= listed
    assert not {
        name
        for name in public
        - {
            "cuda",
            "asnumpy",
            "get_array_module",
            "is_available",
            "ndarray",
            "get_default_memory_pool",
            "get_default_pinned_memory_pool",
        }
        if not hasattr(np, name)
    }
    assert len(public) > 400
