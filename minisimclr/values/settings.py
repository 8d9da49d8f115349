"""Settings that users give, and the words in which one is refused.

The plain code would believe any setting: a bool counts as the number 1, and a np.float64 makes float32 weights be
computed in float64. Each function here takes one kind of setting. It returns a plain value of that kind, or raises
TypeError (another kind) or ValueError (out of range), in one line that names the setting.

`by_default` is about floating-point errors: where a caller asked NumPy to raise them, we compute as by default.
`setting` and `checked` are for the fields of Config.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ..backend import is_array

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# NumPy's own answers to floating-point errors, for those who asked it to raise them.
DEFAULT_ANSWERS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


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


def numbers(**named: Any) -> list[Any]:
    """Return several settings as Python's numbers, none of them NaN or infinite."""
    found = [number(name, value) for name, value in named.items()]
    for name, x in zip(named, found):
        if not math.isfinite(x):
            raise ValueError(f"{name} must be finite, not {x}")
    return found


def not_negative(name: str, value: Any) -> float:
    """Return a finite number from 0 on as a float."""
    x = float(number(name, value))
    if not 0 <= x < math.inf:  # NaN fails, too
        raise ValueError(f"{name} must be a finite number ≥ 0, not {x}")
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


def text(name: str, value: Any) -> str:
    """Return a text, Python's or NumPy's."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, not {shown(value)}")
    return str(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a text that is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; not {shown(value)}")
    return str(value)


def instance(name: str, value: Any, kind: type[T]) -> T:
    """Return an object of this class, or of one made from it."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {shown(value)}")
    return value


def function(name: str, value: Any) -> Any:
    """Return something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, not {shown(value)}")
    return value


def path_name(name: str, value: Any) -> str:
    """Return the path in a text or a path object; an empty one would mean the folder in which one is."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {shown(value)}")
    if not os.fspath(value):
        raise ValueError(f"{name} has an empty name")
    return os.fsdecode(value)


def generator(rng: Any, seed: int | None = None) -> np.random.Generator:
    """Return the generator; in place of None one with the seed, if a seed is given."""
    if rng is None and seed is not None:
        return np.random.default_rng(seed)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, as default_rng(0) makes one, not {shown(rng)}")
    return rng


def shape_of(name: str, value: Any) -> int | tuple[int, ...]:
    """Return a whole number or a tuple of them."""
    if (shape := axes_of(name, value)) is None:
        raise TypeError(f"{name} must be a tuple of whole numbers, not None")
    return shape


def axes_of(name: str, value: Any) -> int | tuple[int, ...] | None:
    """Return None, a whole number, or a tuple of them, as `axis` and `shape` take it."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)) or (is_array(value) and value.ndim == 1):
        return tuple(whole(name, item) for item in value)
    return whole(name, value)


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────


def shown(value: Any) -> str:
    """Show a value on one line, in at most 60 characters, whatever it is."""
    if is_array(value):
        return f"an array of shape {value.shape} and dtype {dtype_name(value.dtype)}"
    if hasattr(value, "shape"):
        return f"a {type(value).__name__} of shape {value.shape}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of {len(f'{abs(value):x}')} hexadecimal digits"  # Python refuses to write very long ones
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:59] + "…"


def dtype_name(dtype: Any) -> str:
    return str(dtype) if len(str(dtype)) <= 40 else f"of kind {dtype.kind!r}"  # structured ones are a list of fields


def unmasked(data: Any, what: str) -> Any:
    """Return the data as they are, unless they are a masked array, or a list of some."""
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())  # whoever has one has imported its module
    items = [data, *data] if isinstance(data, (list, tuple)) else [data]
    if masked and any(isinstance(item, masked) for item in items):
        raise TypeError(f"{what} takes no masked array, because the mask would be lost; use array.filled(…)")
    return data


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


# ── Fields of a dataclass of settings ─────────────────────────────────────────────────────────────


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    metavar: str | None = None,
) -> Any:
    """Describe a field of a dataclass: default, help text and the allowed values (least ≤ x ≤ most, x > above)."""
    bounds = (least, most, above)  # every number has bounds (a test asks for them): a typing error should not train
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "range": bounds, "metavar": metavar}
    )


def checked(item: dataclasses.Field[Any], value: Any) -> Any:
    """Return the value of a setting if it is allowed; a whole number becomes a float where a float is expected.

    Raises: ValueError for another type, and for a value outside the choices or the range.
    """
    name, kind = item.name, type(item.default)
    if isinstance(value, np.generic):  # NumPy's number, string or truth value, as a sweep over an array gives it
        value = value.item()
    whole = kind is float and type(value) is int  # 1 is a fine temperature
    if type(value) is not kind and not whole:  # isinstance would let True pass for the number 1
        raise ValueError(f"{name} must be of type {kind.__name__}, not {shown(value)}")
    choices, (least, most, above) = item.metadata["choices"], item.metadata["range"]
    if choices and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; not {shown(value)}")
    if kind in (int, float) and not (least <= value <= most and value > above):  # NaN fails all three
        bounds = f"above {above:g}" if above > -math.inf else f"{least:,g} or more"  # a setting has one of the two
        raise ValueError(f"{name} must be {bounds} and at most {most:,g}, not {shown(value)}")
    return float(value) if whole else value
