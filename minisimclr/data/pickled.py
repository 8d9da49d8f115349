"""CIFAR's Python files: pickles, of which nothing but plain data is let through.

A pickle is a program. Here it may build dictionaries, lists, numbers, texts and arrays of bytes or whole numbers, and
call nothing else. A file that is as long as a published one must have its checksum; any other is somebody's own.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..storage import open_regular

MAX_BYTES = 512 << 20  # largest file; CIFAR-100's has 155 MB
PUBLISHED = {  # length in bytes -> MD5, of the files in cifar-10-python.tar.gz and cifar-100-python.tar.gz
    31035704: "c99cafc152244af753f735de768cd75f",  # data_batch_1
    31035320: "d4bba439e000b95fd0a9bffe97cbabec",
    31035999: "54ebc095f3ab1f0389bbae665268c751",
    31035696: "634d18415352ddfa80567beed471001a",
    31035623: "482c414d41f54cd18b22e5b47cb7c3ee",
    31035526: "40351d587109b95175f43aff81a1287e",  # test_batch
    155249918: "16019d7e3df5f24257cddd939b257f8d",  # CIFAR-100's train
    31049907: "f0ef6b0ae62326f3e7ffdfab6717acfc",  # and its test
}


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

    Raises: ValueError for anything but plain data, and for a published file that is damaged; OSError if reading fails.
    """
    with os.fdopen(open_regular(path, MAX_BYTES), "rb") as file:
        data = file.read()
    published = PUBLISHED.get(len(data))
    if published and hashlib.md5(data, usedforsecurity=False).hexdigest() != published:
        raise ValueError(
            f"{path.name} is as long as the published file, but its checksum is wrong: it was damaged on its way; "
            "unpack the archive again"
        )
    try:
        found = _Plain(io.BytesIO(data), encoding="latin-1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no dictionary")
    plain = {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    return {key: value.value if isinstance(value, _Array) else value for key, value in plain.items()}
