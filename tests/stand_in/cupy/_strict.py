"""The stand-in: arrays, functions and ufuncs that compute with NumPy and refuse what CuPy would."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import cuda

_traffic: Counter[str] = Counter()  # what crossed between host and device, by what made it cross
_ANSWER_ON_THE_HOST = (np.ndarray, np.generic)

# What each name takes: {"sum": ["a", "axis", …], "RawModule": None, "linalg.norm": […], "ndarray.max": […]}
_NAMES: dict[str, list[str] | None] = {}
for _line in Path(__file__).with_name("names.txt").read_text().splitlines():
    if not _line.startswith("#"):
        _name, _, _rest = _line.partition("(")
        _NAMES[_name] = [part for part in _rest[:-1].split(", ") if part] if _rest else None


class WrappedIndexError(Exception):
    """An index array points outside. CuPy would take it modulo the size and say nothing; NumPy raises IndexError."""


# ── Into NumPy and back ───────────────────────────────────────────────────────────────────────────


def _refuse(value: Any) -> Any:
    raise TypeError(f"Unsupported type {type(value)}")


def _down(value: Any) -> Any:
    """The operands for NumPy: the values of a device array; of a tuple or list, of each part."""
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray):
        _refuse(value)
    if type(value) in (tuple, list):
        return type(value)(_down(item) for item in value)
    return value


def _arrays(value: Any) -> Iterator[ndarray]:
    """The device arrays among some arguments."""
    if isinstance(value, ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _arrays(item)


def _up(value: Any, given: Any = ()) -> Any:
    """Wrap NumPy's result in device arrays. A result that is an argument, or a view of one, keeps that relation."""
    if isinstance(value, (tuple, list)):
        return (
            type(value)(_up(item, given) for item in value)
            if type(value) in (tuple, list)
            else tuple(_up(item, given) for item in value)
        )
    if not isinstance(value, _ANSWER_ON_THE_HOST):
        return value
    value = np.asarray(value)
    for array in _arrays(given):
        if value is array._values:
            return array
    base = None
    if value.base is not None:
        base = next(
            (a if a.base is None else a.base for a in _arrays(given) if np.may_share_memory(a._values, value)), None
        )
    return _new(value, base)


def _new(values: Any, base: ndarray | None = None) -> ndarray:
    array = object.__new__(ndarray)
    array._values, array.base = values, base
    return array


@functools.cache
def _taken(name: str) -> tuple[frozenset[str] | None, int | None]:
    """Which keywords CuPy's function of this name takes, and how many positional arguments; None: any."""
    names = _NAMES[name]
    if names is None:
        return None, None
    positional = names[: names.index("*")] if "*" in names else names
    keywords = None if any(p.startswith("**") for p in names) else frozenset(p for p in names if p[0] != "*")
    return keywords, None if any(p.startswith("*") for p in positional) else len(positional)


def _checked(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Refuse parameters that CuPy's function of this name does not have."""
    named, positional = _taken(name)
    if keywords and named is not None and not keywords.keys() <= named:
        raise TypeError(f"cupy: {name}() has no parameter {', '.join(sorted(keywords.keys() - named))}")
    if positional is not None and len(arguments) > positional:
        raise TypeError(f"cupy: {name}() takes {positional} positional arguments, not {len(arguments)}")


def _compute(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    with np.errstate(all="ignore"):  # a GPU warns of nothing
        answer = function(*_down(arguments), **{name: _down(value) for name, value in keywords.items()})
    return _up(answer, (*arguments, *keywords.values()))


# ── Functions ─────────────────────────────────────────────────────────────────────────────────────

_WAIT = {
    "nonzero",
    "flatnonzero",
    "argwhere",
    "unique",
    "extract",
    "compress",
    "choose",
    "put",
    "bincount",
    "array_repr",
    "array_str",
}  # the size of the answer, or an error, must be known on the host
_UPLOAD = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}
_ZERO_DIMENSIONS = {"allclose", "array_equal", "array_equiv", "count_nonzero"}  # numbers in NumPy, arrays in CuPy


def _function(name: str, numpys: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(numpys)
    def function(*arguments: Any, **keywords: Any) -> Any:
        _checked(name, arguments, keywords)
        if name in _WAIT:
            _traffic[name] += 1
        if name in _UPLOAD and not isinstance(arguments[0], ndarray):
            _traffic["to the device"] += 1
            return _uploaded(numpys, *arguments, **keywords)
        answer = _compute(numpys, arguments, keywords)
        return _up(np.asarray(answer)) if name in _ZERO_DIMENSIONS else answer

    return function


def _uploaded(numpys: Callable[..., Any], value: Any, *arguments: Any, **keywords: Any) -> ndarray:
    if any(True for _ in _arrays(value)):  # a list of device arrays: CuPy stacks it
        value = _down(value)
    array = np.array(numpys(value, *arguments, **keywords))  # its own memory, whatever was passed
    if array.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {array.dtype}")
    return _new(array)


class ufunc:
    """An element-by-element function: of device arrays and numbers only."""

    def __init__(self, name: str, numpys: np.ufunc) -> None:
        self.__name__, self._name, self._numpys = f"cupy_{name}", name, numpys
        self.nin, self.nout, self.nargs = numpys.nin, numpys.nout, numpys.nargs

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        _checked(self._name, arguments, keywords)
        for value in arguments:
            if not (isinstance(value, (ndarray, int, float, complex, np.generic)) or value is None):
                _refuse(value)
        return _compute(self._numpys, arguments, keywords)

    def _only(self, what: str, *names: str) -> None:
        if self._name not in names:
            raise NotImplementedError(f"`{self._name}.{what}` is not supported by CuPy")

    def reduce(self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        self._only("reduce", "add", "multiply")
        return _compute(self._numpys.reduce, (array, axis, dtype, out, keepdims), {})

    def accumulate(self, array: Any, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
        self._only("accumulate", "add", "multiply")
        return _compute(self._numpys.accumulate, (array, axis, dtype, out), {})

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        self._only("at", "add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor")
        with np.errstate(all="ignore"):
            self._numpys.at(a._values, _index(indices), _down(b))


# ── Arrays ────────────────────────────────────────────────────────────────────────────────────────


def _index(index: Any) -> Any:
    """An index as NumPy takes it. Numbers, slices, None, … , lists of numbers and device arrays; no NumPy arrays."""
    if isinstance(index, ndarray) and index.dtype.kind not in "biu":
        raise IndexError(f"arrays used as indices must be of integer or boolean type. (actual: {index.dtype})")
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return _down(index)


def _is_advanced(index: Any) -> bool:
    return any(
        isinstance(part, (ndarray, list, bool, np.bool_)) for part in (index if isinstance(index, tuple) else (index,))
    )


def _has_mask(index: Any) -> bool:
    return any(
        isinstance(part, ndarray) and part.dtype == bool for part in (index if isinstance(index, tuple) else (index,))
    )


class _Flags:
    """The flags of CuPy's arrays, which do not include `writeable`."""

    def __init__(self, flags: Any, owner: bool) -> None:
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.fnc, self.forc, self.owndata = flags.fnc, flags.forc, owner


class ndarray:
    """An array on the device."""

    __slots__ = ("__weakref__", "_values", "base")
    __array_ufunc__ = None  # np.exp(x) and numpy_array + x are refused; CuPy would answer the first
    __array_priority__ = 100
    _values: Any
    base: ndarray | None

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the stand-in has no memory pointers")
        self._values, self.base = np.empty(shape, dtype, order=order), None

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with a CuPy array")

    # What NumPy and CuPy agree on
    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    itemsize = property(lambda self: self._values.itemsize)
    nbytes = property(lambda self: self._values.nbytes)
    strides = property(lambda self: self._values.strides)
    T = property(lambda self: _up(self._values.T, self))
    mT = property(lambda self: _up(np.matrix_transpose(self._values), self))
    real = property(lambda self: _up(self._values.real, self))
    imag = property(lambda self: _up(self._values.imag, self))
    flags = property(lambda self: _Flags(self._values.flags, self.base is None))
    device = property(lambda self: cuda.Device(0))

    def __len__(self) -> int:
        return len(self._values)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    def __reduce__(self) -> Any:
        _traffic["pickle"] += 1
        return _unpickled, (self._values,)

    # To the host: each of these waits for the GPU
    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        _traffic["get"] += 1
        if out is not None:
            out[...] = self._values
            return out
        return np.array(self._values, order=order)

    def item(self) -> Any:
        _traffic["item"] += 1
        return self._values.item()

    def tolist(self) -> Any:
        _traffic["tolist"] += 1
        return self._values.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        _traffic["tobytes"] += 1
        return self._values.tobytes(order)

    def __bool__(self) -> bool:
        _traffic["bool"] += 1
        return bool(self._values)

    def __int__(self) -> int:
        _traffic["int"] += 1
        return int(self._values.item())

    def __float__(self) -> float:
        _traffic["float"] += 1
        return float(self._values.item())

    def __complex__(self) -> complex:
        _traffic["complex"] += 1
        return complex(self._values.item())

    def __repr__(self) -> str:
        _traffic["repr"] += 1
        return repr(self._values)

    def __str__(self) -> str:
        _traffic["str"] += 1
        return str(self._values)

    def __format__(self, specification: str) -> str:
        _traffic["format"] += 1
        return format(self._values.item() if self.ndim == 0 else self._values, specification)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        if self.ndim == 1 and self.size:  # one number at a time; whole rows are only views
            _traffic["iteration"] += 1
        return (self[i] for i in range(len(self)))

    # From the host
    def set(self, arr: Any, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("shape or dtype mismatch")
        _traffic["to the device"] += 1
        self._values[...] = arr

    # Indexing
    def __getitem__(self, index: Any) -> ndarray:
        if not _is_advanced(index):  # a view, also of a single element
            whole = index if isinstance(index, tuple) else (index,)
            whole = whole if any(part is Ellipsis for part in whole) else (*whole, ...)
            return _up(self._values[_index(whole)], self)
        if _has_mask(index):
            _traffic["mask"] += 1  # how many there are must be known on the host
        try:
            return _up(np.array(self._values[_index(index)]))
        except IndexError as error:
            raise _outside(index, error) from None

    def __setitem__(self, index: Any, value: Any) -> None:
        value = _down(value)
        if _has_mask(index) and np.ndim(value):
            _traffic["mask"] += 1
        try:
            with np.errstate(all="ignore"):
                self._values[_index(index)] = value
        except IndexError as error:
            raise _outside(index, error) from None

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        return _compute(lambda a: a.astype(dtype, order=order, casting=casting or "unsafe", copy=copy), (self,), {})

    def copy(self, order: str = "C") -> ndarray:
        return _new(self._values.copy(order))

    def __hash__(self) -> int:
        raise TypeError("unhashable type: 'ndarray'")


def _unpickled(values: Any) -> ndarray:
    return _new(values)


def _outside(index: Any, error: IndexError) -> Exception:
    """CuPy raises for a number that points outside, but not for an array that does."""
    return WrappedIndexError(str(error)) if _is_advanced(index) and "out of bounds for axis" in str(error) else error


def _operator(name: str) -> Callable[..., Any]:
    numpys = getattr(np.ndarray, name)

    def method(self: ndarray, *others: Any) -> Any:
        for other in others:
            if isinstance(other, np.ndarray):
                _refuse(other)
            if not isinstance(other, (ndarray, int, float, complex, np.generic)):
                return NotImplemented
        with np.errstate(all="ignore"):
            answer = numpys(self._values, *[o._values if isinstance(o, ndarray) else o for o in others])
        if answer is self._values:  # in place
            return self
        return _up(answer) if isinstance(answer, (tuple, *_ANSWER_ON_THE_HOST)) else answer

    method.__name__ = name
    return method


def _method(name: str) -> Callable[..., Any]:
    numpys = getattr(np.ndarray, name)

    def method(self: ndarray, *arguments: Any, **keywords: Any) -> Any:
        _checked(f"ndarray.{name}", arguments, keywords)
        if name in _WAIT:
            _traffic[name] += 1
        return _compute(numpys, (self, *arguments), keywords)

    method.__name__ = name
    return method


_TWO_SIDED = (
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "xor",
    "or",
)
_OPERATORS = {f"__{side}{name}__" for name in _TWO_SIDED for side in ("", "r", "i")} | {
    f"__{name}__" for name in ("neg", "pos", "abs", "invert", "eq", "ne", "lt", "le", "gt", "ge")
}

for _name in _NAMES:
    _short = _name.removeprefix("ndarray.")
    if _short != _name and _short not in vars(ndarray) and callable(getattr(np.ndarray, _short, None)):
        if _short in _OPERATORS:
            setattr(ndarray, _short, _operator(_short))
        elif not _short.startswith("_"):
            setattr(ndarray, _short, _method(_short))


# ── The module, made from the list ────────────────────────────────────────────────────────────────


class _Linalg:
    """cupy.linalg"""


def _made(name: str, home: Any) -> Any:
    """The object behind a name of CuPy; NotImplemented if NumPy has none."""
    numpys = getattr(home, name.removeprefix("linalg."), NotImplemented)
    if isinstance(numpys, np.ufunc) and name != "matmul":
        return ufunc(name, numpys)
    if isinstance(numpys, (type, float)) or numpys is None:
        return numpys  # float32, finfo, pi, newaxis: NumPy's own, in CuPy too
    return _function(name, numpys) if callable(numpys) else NotImplemented


def everything() -> dict[str, Any]:
    """The names of the module `cupy`."""
    linalg = _Linalg()
    names = {
        "linalg": linalg,
        "cuda": cuda,
        "ndarray": ndarray,
        "ufunc": ufunc,
        "asnumpy": asnumpy,
        "get_array_module": get_array_module,
        "is_available": cuda.is_available,
        "get_default_memory_pool": cuda.MemoryPool.default,
        "get_default_pinned_memory_pool": cuda.MemoryPool.default,
    }
    for name in _NAMES:
        inside = name.startswith("linalg.")
        if name in names or ("." in name and not inside):
            continue
        thing = _made(name, np.linalg if inside else np)
        if thing is NotImplemented:
            continue
        if inside:
            setattr(linalg, name.removeprefix("linalg."), thing)
        else:
            names[name] = thing
    return names


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    return a.get(stream, order, out, blocking) if isinstance(a, ndarray) else np.asarray(a, order=order)


def get_array_module(*arrays: Any) -> Any:
    import cupy

    return cupy if any(isinstance(array, ndarray) for array in arrays) else np
