"""Values that come through a door: what is taken, as what, and what is refused in one line.

The plain code would believe any value. But NumPy has more kinds of values than a network computes with. A copy forgets
the mask of a masked array, the `*` of a np.matrix is a matrix product, a bool counts as the number 1, and a label of −1
as the last class. Each function here takes one kind of argument. It returns a plain value of that kind, or raises
TypeError (another kind) or ValueError (out of range), in one line that names the argument.

The last function is about floating-point errors: where a caller asked NumPy to raise them, we compute as by default.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .backend import Array, is_array

F = TypeVar("F", bound=Callable[..., Any])

# NumPy's letters for bool, the integers, and float16, float32 and float64. The long double has another ("g").
NUMBERS = frozenset("?bBhHiIlLqQefd")
# NumPy's own answers to floating-point errors, for those who asked it to raise them.
DEFAULT_ANSWERS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


# ── Arrays ────────────────────────────────────────────────────────────────────────────────────────


def plain_array(data: Any, what: str = "Tensor") -> Array:
    """Return an array, a list or a number as a plain array of numbers; it is copied only where it must change.

    >>> plain_array(np.matrix([[1, 2]]))
    array([[1, 2]])

    Raises: TypeError for masked arrays, and for what is no number of at most 64 bits; ValueError for a ragged list.
    """
    if type(data) is np.ndarray and data.dtype.char in NUMBERS and data.dtype.isnative:  # nearly always
        return data
    unmasked(data, what)
    try:
        array = (
            data if is_array(data) and not isinstance(data, np.ndarray) else np.asarray(data)
        )  # no subclass any more
    except (ValueError, OverflowError):
        raise ValueError(f"{what} must have the shape of an array, not {shown(data)}") from None
    if array.dtype.char not in NUMBERS:
        raise TypeError(
            f"{what} takes numbers (bool, integer, or float of 16, 32 or 64 bits), not dtype {_dtype_name(array.dtype)}"
        )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def unmasked(data: Any, what: str) -> Any:
    """Return the data as they are, unless they are a masked array, or a list of some."""
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())  # whoever has one has imported its module
    items = [data, *data] if isinstance(data, (list, tuple)) else [data]
    if masked and any(isinstance(item, masked) for item in items):
        raise TypeError(f"{what} takes no masked array, because the mask would be lost; use array.filled(…)")
    return data


def float_dtype(what: str, dtype: Any) -> np.dtype[Any]:
    """Return a floating-point dtype of at most 64 bits (or bfloat16) in this machine's byte order."""
    try:
        if dtype is None:  # NumPy would take it for float64
            raise TypeError
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{what} takes a floating-point dtype, not {shown(dtype)}") from None
    if found.char not in "efd" and found.name != "bfloat16":
        raise TypeError(f"{what} takes a floating-point dtype, not {_dtype_name(found)}: rounding has no gradient")
    return found if found.isnative else found.newbyteorder("=")


def need_array(name: str, value: Any) -> Array:
    """Return a NumPy or CuPy array as a plain one; lists are refused."""
    if not is_array(value):
        raise TypeError(f"{name} must be an array, not {shown(value)}")
    return plain_array(value, name)


def class_labels(name: str, y: Any, rows: int) -> NDArray[np.int64]:
    """Return labels as int64 (N,) on the host: whole numbers from 0 on, one for each row."""
    if isinstance(y, (list, tuple)):
        y = plain_array(y, name)
    y = need_array(name, y)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {y.dtype}")
    if y.shape != (rows,):
        raise ValueError(f"{name} must have the shape ({rows},), one label per row expected, not {y.shape}")
    if y.size and not 0 <= int(y.min()) <= int(y.max()) < 2**31:  # −1 would silently be the last class
        raise ValueError(f"{name} must be from 0 on and below 2³¹, not {int(y.min())} to {int(y.max())}")
    labels: NDArray[np.int64] = np.asarray(y if isinstance(y, np.ndarray) else y.get(), np.int64)
    return labels


# ── Settings ──────────────────────────────────────────────────────────────────────────────────────


def number(name: str, value: Any) -> Any:
    """Return a setting as Python's int or float: Python's own, NumPy's, or an array without axes; no bool."""
    if isinstance(value, np.generic) or (is_array(value) and value.ndim == 0):
        unmasked(value, name)
        value = float(value) if isinstance(value, np.longdouble) else value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {shown(value)}")
    try:
        as_float = float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large: a number of {len(str(abs(value)))} digits") from None
    return int(value) if isinstance(value, int) else as_float


def fraction(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a number as a float between two bounds; NaN lies between none."""
    x = float(number(name, value))
    if not least <= x <= most:
        bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be {bounds if least > -math.inf or most < math.inf else 'a number'}, not {x}")
    return x


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number between two bounds as Python's int."""
    x = number(name, value)
    if not isinstance(x, int):
        raise TypeError(f"{name} must be a whole number, not {shown(value)}")
    if most is not None and x > most:
        raise ValueError(f"{name} must be at most {most:,}, not {shown(x)}")
    if least is not None and x < least:
        raise ValueError(f"{name} must be at least {least}, not {shown(x)}")
    return x


def truth(name: str, value: Any) -> bool:
    """Return True or False, Python's or NumPy's; a number is neither."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {shown(value)}")


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a text that is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; not {shown(value)}")
    return str(value)


def generator(rng: Any, seed: int | None = None) -> np.random.Generator:
    """Return the generator; in place of None one with the seed, if a seed is given."""
    if rng is None and seed is not None:
        return np.random.default_rng(seed)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, as default_rng(0) makes one, not {shown(rng)}")
    return rng


def axes_of(name: str, value: Any) -> int | tuple[int, ...] | None:
    """Return None, a whole number, or a tuple of them, as `axis` and `shape` take it."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)) or (is_array(value) and value.ndim == 1):
        return tuple(whole(name, item) for item in value)
    return whole(name, value)


# Settings of an operation by the type that its function declares for them.
READERS: dict[str, Callable[[str, Any], Any]] = {
    "int": whole,
    "float": number,
    "bool": truth,
    "Array": need_array,
    "Axis": axes_of,
    "tuple[int, ...]": axes_of,
    "tuple[int, ...] | None": axes_of,
}


def readers_of(function: Callable[..., Any]) -> dict[str, Callable[[str, Any], Any]]:
    """Return the readers of an operation's settings, by name; a type that is not in READERS has none."""
    declared = {p.name: p.annotation for p in inspect.signature(function).parameters.values()}
    named = {name: getattr(kind, "__name__", kind) for name, kind in declared.items()}
    return {name: READERS[kind] for name, kind in named.items() if isinstance(kind, str) and kind in READERS}


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────


def shown(value: Any) -> str:
    """Show a value on one line, in at most 60 characters, whatever it is."""
    if is_array(value):
        return f"an array of shape {value.shape} and dtype {_dtype_name(value.dtype)}"
    if hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {value.shape}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of {len(f'{abs(value):x}')} hexadecimal digits"  # Python refuses to write very long ones
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"


def _dtype_name(dtype: Any) -> str:
    return str(dtype) if len(str(dtype)) <= 40 else f"of kind {dtype.kind!r}"  # structured ones are a list of fields


# ── What a module holds ──────────────────────────────────────────────────────────────────────────


def members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an attribute with its name, or what a list, tuple or dict of that name holds, as "name.0", "name.1" …

    >>> dict(members("blocks", ["a", {"b": "c"}]))
    {'blocks.0': 'a', 'blocks.1.b': 'c'}
    """
    if isinstance(value, (list, tuple, dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from members(f"{name}.{key}", item)
    else:
        yield name, value


def refuse_hidden(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Refuse an attribute of a module whose layers or parameters would not be found, and so never be trained."""
    if isinstance(value, (set, frozenset, deque)) or (isinstance(value, np.ndarray) and value.dtype == object):
        if any(isinstance(item, kinds) for item in (value.flat if isinstance(value, np.ndarray) else value)):
            raise TypeError(
                f"{name}: layers and parameters are not found in a {type(value).__name__}; use a list or a dict"
            )


# ── Floating-point errors ─────────────────────────────────────────────────────────────────────────


def by_default(function: F) -> F:
    """Decorate a function so that `np.errstate(all="raise")` around its call changes nothing.

    What the caller ignores is still ignored, and what he wants to be warned of is still warned of.
    """

    @functools.wraps(function)
    def calm(*inputs: Any, **settings: Any) -> Any:
        raised = [kind for kind, answer in np.geterr().items() if answer == "raise"]
        if not raised:
            return function(*inputs, **settings)
        with np.errstate(**{kind: DEFAULT_ANSWERS[kind] for kind in raised}):  # type: ignore[arg-type]
            return function(*inputs, **settings)

    return calm  # type: ignore[return-value]
