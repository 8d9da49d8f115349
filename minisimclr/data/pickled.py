"""CIFAR's Python files: pickles, of which nothing but plain data is let through.

A pickle is a program. Here it may build dictionaries, lists, numbers, texts and arrays of bytes or whole numbers, and
call nothing else.
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import open_regular

MAX_BYTES = 512 << 20  # largest file; CIFAR-100's has 155 MB


class _Plain(pickle.Unpickler):
    """An unpickler that knows arrays, and no other object."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise ValueError(f"it asks for {module}.{name}, which is no plain data")


class _Array:
    """An array as a pickle describes it: it is built here, from bytes, and never by NumPy's own unpickling."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data
        if not isinstance(data, bytes) or not isinstance(dtype, _Kind):
            raise ValueError("it holds an array of objects")
        self.value = np.frombuffer(data, np.dtype(dtype.code)).reshape(shape)


class _Kind:
    """The kind of an array's numbers."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Take nothing: the byte order of our kinds is in their code."""


def _empty(*_: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *_: Any) -> _Kind:
    code = code.decode() if isinstance(code, bytes) else str(code)
    if code.lstrip("<|=") not in ("u1", "i1", "i4", "i8", "u2", "u4"):
        raise ValueError(f"it holds an array of {code[:20]}")
    return _Kind(code)


def _encode(text: str, encoding: str = "latin-1") -> bytes:
    return str(text).encode("latin-1")


def unpickled(path: Path) -> dict[str, Any]:
    """Return the dictionary in one of CIFAR's Python files, with arrays as NumPy's.

    Raises: ValueError for anything but plain data; OSError if reading fails.
    """
    with os.fdopen(open_regular(path, MAX_BYTES), "rb") as file:
        data = file.read()
    try:
        found = _Plain(io.BytesIO(data), encoding="latin-1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    plain = {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    return {key: value.value if isinstance(value, _Array) else value for key, value in plain.items()}
