"""The files of CIFAR-10, CIFAR-100, STL-10 and the MNIST family, as they are published."""

from __future__ import annotations

import functools
import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..storage import open_regular
from .pickled import PUBLISHED, unpickled

MAX_BYTES = 8 << 30  # largest array that is unpacked into memory


class Part(NamedTuple):
    """A split of an array data set."""

    images: Callable[[], NDArray[np.uint8]]  # (N,H,W,3), (N,H,W,1) or (N,H,W)
    labels: Callable[[], NDArray[Any] | None]
    remark: str = ""  # what is to be said of it


Arrays: TypeAlias = tuple[dict[str, Part], tuple[str, ...]]  # the splits, and the names of the classes, if known


# ── CIFAR and STL-10 ────────────────────────────────────────────────────────────────────────────────


def _records(files: list[Path], labels: int, label: int) -> Part:
    """CIFAR's binary files: `labels` bytes, of which one counts, then 3 planes of 32×32."""

    def rows() -> NDArray[np.uint8]:
        for file in files:
            if file.stat().st_size % (labels + 3072):
                raise ValueError(f"{file.name} is cut off: it holds no whole number of images")
        maps = [np.memmap(file, np.uint8, "r").reshape(-1, labels + 3072) for file in files]
        return maps[0] if len(maps) == 1 else np.concatenate(maps)

    return Part(
        lambda: rows()[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), lambda: np.array(rows()[:, label])
    )


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    with os.fdopen(open_regular(path, 1 << 20), "r", encoding="utf-8", errors="replace") as file:
        return tuple(line.strip() for line in file if line.strip())


def cifar_binary(path: Path, names: set[str]) -> Arrays | None:
    """Find CIFAR-10 or CIFAR-100 as binary files; None if they are not here."""
    batches = sorted(name for name in names if re.fullmatch(r"data_batch_\d+\.bin", name))
    if batches and "test_batch.bin" in names:
        return {
            "train": _records([path / name for name in batches], 1, 0),
            "test": _records([path / "test_batch.bin"], 1, 0),
        }, _lines(path / "batches.meta.txt")
    if {"train.bin", "test.bin", "fine_label_names.txt"} <= names:
        parts = {split: _records([path / f"{split}.bin"], 2, 1) for split in ("train", "test")}
        return parts, _lines(path / "fine_label_names.txt")
    return None


def cifar_python(path: Path, names: set[str]) -> Arrays | None:
    """Find CIFAR-10 or CIFAR-100 as pickles; None if they are not here."""
    batches = sorted(name for name in names if re.fullmatch(r"data_batch_\d+", name))
    if batches and {"test_batch", "batches.meta"} <= names:
        kinds, label, meta, key = {"train": batches, "test": ["test_batch"]}, "labels", "batches.meta", "label_names"
    elif {"train", "test", "meta"} <= names and all((path / name).is_file() for name in ("train", "test", "meta")):
        kinds, label, meta, key = {"train": ["train"], "test": ["test"]}, "fine_labels", "meta", "fine_label_names"
    else:
        return None

    def part(files: list[str]) -> Part:
        content = functools.cache(lambda name: unpickled(path / name))  # once for images and labels
        own = [name for name in files if (path / name).stat().st_size not in PUBLISHED]
        remark = f"{', '.join(own)}: not as published, without a checksum; read as plain data" if own else ""

        def read(what: str) -> list[Any]:
            return [content(name)[what] for name in files]

        return Part(
            lambda: np.concatenate(
                [np.asarray(data).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for data in read("data")]
            ),
            lambda: np.concatenate([np.asarray(values) for values in read(label)]),
            remark,
        )

    names_of_classes = [name.decode() if isinstance(name, bytes) else str(name) for name in unpickled(path / meta)[key]]
    return {split: part(files) for split, files in kinds.items()}, tuple(names_of_classes)


def stl10(path: Path, names: set[str]) -> Arrays | None:
    """Find STL-10: planes of 96×96 whose columns come first, labels from 1 to 10; None if it is not here."""
    parts = {}
    for split in ("train", "test", "unlabeled"):
        if f"{split}_X.bin" in names:
            parts[split] = Part(
                _planes(path / f"{split}_X.bin"),
                _ones(path / f"{split}_y.bin") if f"{split}_y.bin" in names else lambda: None,
            )
    classes = _lines(path / "class_names.txt") or tuple(str(number) for number in range(1, 11))
    return (parts, classes) if parts else None


def _planes(file: Path) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        if file.stat().st_size % 27648:
            raise ValueError(f"{file.name} is cut off: it holds no whole number of images")
        return np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)

    return read


def _ones(file: Path) -> Callable[[], NDArray[Any]]:
    return lambda: np.fromfile(file, np.uint8).astype(np.int64) - 1


# ── IDX ───────────────────────────────────────────────────────────────────────────────────────────


def idx(path: Path, names: set[str]) -> Arrays | None:
    """Find the files of the MNIST family, packed by gzip or not; None if they are not here."""
    parts = {}
    several = {match[1] for name in names if (match := re.match(r"(.*-)?(?:train|t10k|test)-images[-.]idx3", name))}
    if len(several) > 1:  # EMNIST's archive has six
        listed = ", ".join(sorted((begin or "mnist").rstrip("-") for begin in several))
        raise ValueError(f"several data sets: {listed}; move the files of one into a folder of their own")
    for split, begin in (("train", "train"), ("test", "t10k"), ("test", "test")):
        pattern = re.compile(rf"(.*-)?{begin}-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
        found = {match[2]: path / name for name in sorted(names, reverse=True) if (match := pattern.fullmatch(name))}
        if "images" in found:
            parts[split] = Part(
                _idx_reader(found["images"]), _idx_reader(found["labels"]) if "labels" in found else lambda: None
            )
    return (parts, ()) if parts else None


def _idx_reader(file: Path) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        raw = os.fdopen(open_regular(file, MAX_BYTES), "rb")
        with raw, gzip.open(raw) if file.suffix == ".gz" else raw as data:
            magic = data.read(4)
            if magic[:3] != b"\0\0\x08" or magic[3] not in (1, 3):
                raise ValueError(f"{file.name} is no IDX file of bytes")
            shape = tuple(int.from_bytes(data.read(4), "big") for _ in range(magic[3]))
            total = int(np.prod([float(side) for side in shape]))
            if total > MAX_BYTES:
                raise ValueError(f"{file.name} declares {shape}, more than {MAX_BYTES >> 30} GiB")
            values = data.read(total)
            if len(values) != total:
                raise ValueError(f"{file.name} is cut off: it declares {shape}")
        return np.frombuffer(values, np.uint8).reshape(shape)

    return read
