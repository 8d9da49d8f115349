"""Reading a NumPy archive (.npz) from an untrusted file.

`np.load` believes what a file says of itself: it takes memory for whatever shape is declared, unpacks what is packed,
and reads arrays that nobody asked for. Here names, shapes and dtypes are compared first, from the headers alone; then
the values are looked at, a block at a time; and only then memory is taken for them.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ..storage import one_line, open_regular

LARGEST = 8 << 30  # size of an archive, bytes; four ResNet-152 of double width would fit
MOST_AT_ONCE = 1 << 20  # bytes that are read at once; the list of 1,500 arrays, ResNet-152's, is a sixth of it
NUMBERS, TEXT = "fiub", "U"  # kinds of dtype: float, signed, unsigned, bool; Unicode; never pickled objects, "O"
LONGEST_TEXT = 1 << 20  # size of an array that holds text, bytes


class Header(NamedTuple):
    """The part of an array that is known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Rule(NamedTuple):
    """The shape and dtype that an array must have, and the range of its values; NaN is in no range."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    least: float = -math.inf  # infinity itself is not in the range either
    most: float = math.inf


class Archive:
    """An open archive: the headers of its arrays by name. Nothing else was read yet.

    Raises: ValueError, or an error of the readers, for what is not an archive as NumPy's savez writes it.
    """

    def __init__(self, file: io.FileIO, kinds: str = NUMBERS) -> None:
        self._kinds = kinds
        try:
            self._zip = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise ValueError("it is cut off, or no archive") from None
        self.members: dict[str, zipfile.ZipInfo] = {}
        for member in self._zip.infolist():
            name = member.filename.removesuffix(".npy")
            if name in self.members:
                raise ValueError(f"it holds {_named(name)} twice")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise ValueError(f"{_named(name)} is packed, which savez never does")  # a bomb would be
            self.members[name] = member
        self.size = os.fstat(file.fileno()).st_size
        if sum(member.file_size for member in self.members.values()) > self.size:
            raise ValueError("its arrays would unpack to more than there is")
        self.headers = {name: self._header(name) for name in self.members}

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with self._zip.open(self.members[name]) as file:
                yield file
        except Exception:  # the readers of a damaged entry raise almost anything; what matters is which it is
            raise ValueError(f"{_named(name)} is damaged") from None

    def _header(self, name: str) -> Header:
        with self._opened(name) as file:
            header, place = _read_header(file), file.tell()
        if header.dtype.kind not in self._kinds:
            expected = "numbers" if self._kinds == NUMBERS else "numbers or text"
            raise ValueError(f"{_named(name)} has dtype {header.dtype}, expected {expected}")
        if place + math.prod(header.shape) * header.dtype.itemsize != self.members[name].file_size:
            raise ValueError(f"{_named(name)} declares shape {header.shape}, which is not its size")
        return header

    def text(self, name: str) -> str:
        """Return the text in an array of bytes."""
        if name not in self.headers:
            raise ValueError(f"it has no {name}")
        header = self.headers[name]
        if header.dtype != np.uint8 or len(header.shape) != 1 or header.shape[0] > LONGEST_TEXT:
            raise ValueError(f"{name} is no text")
        try:
            return self.read(name).tobytes().decode()
        except UnicodeDecodeError:
            raise ValueError(f"{name} is no text") from None

    def require(self, rules: Mapping[str, Rule]) -> None:
        """Refuse an archive that does not hold these arrays and no others.

        Raises: ValueError for a name, a shape, a dtype or a value that does not follow the rules. Memory is taken for
                one block of values.
        """
        for verb, names in (("misses", rules.keys() - self.headers), ("has no use for", self.headers.keys() - rules)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ValueError(f"it {verb} {_named(min(names))}{more}")
        for name, rule in rules.items():  # all of them before the first value
            header = self.headers[name]
            if header.shape != rule.shape:
                raise ValueError(f"{name} has shape {header.shape}, expected {rule.shape}")
            if header.dtype != rule.dtype:
                raise ValueError(f"{name} has dtype {header.dtype}, expected {rule.dtype}")
        for name, rule in rules.items():
            for block in self._blocks(name):
                if not np.isfinite(block).all():
                    raise ValueError(f"{name} holds NaN or infinity")
                if block.size and not (rule.least <= block.min() and block.max() <= rule.most):
                    raise ValueError(f"{name} holds numbers that are not in {rule.least:g}…{rule.most:g}")

    def _blocks(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the values of an array, a block at a time; the checksum is compared at the end."""
        with self._opened(name) as file:
            dtype = _read_header(file).dtype
            while block := file.read(MOST_AT_ONCE // 16 * dtype.itemsize):
                yield np.frombuffer(block, dtype)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return an array."""
        with self._opened(name) as file:
            array: np.ndarray[Any, Any] = npy.read_array(file, allow_pickle=False)
            file.read()  # the end, where the checksum is compared
        return array


@contextmanager
def opened(path: Path, kinds: str = NUMBERS) -> Iterator[Archive]:
    """Open an archive whose arrays are of these kinds.

    Raises: FileNotFoundError; OSError for what is no regular file; what Archive raises.
    """
    with _Sips(open_regular(path, LARGEST), "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that an old Python wrote: what matters is refused
        yield Archive(file, kinds)


class _Sips(io.FileIO):
    """A file of which only so much is read at once: a list of contents, or a name, can be no larger either."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = MOST_AT_ONCE + 1 if size is None or size < 0 else size
        if wanted > MOST_AT_ONCE + 1:
            raise ValueError("its list of contents is too long")
        data = super().read(wanted) or b""
        if len(data) > MOST_AT_ONCE:
            raise ValueError("its list of contents is too long")
        return data


def _read_header(file: Any) -> Header:
    """Read the header of an array, and stop where its values begin."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("it has another format")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    return Header(shape, dtype)


def _named(name: str) -> str:
    """Return the name of an entry, safe to print."""
    return one_line(name, most=60) or "an entry without name"
