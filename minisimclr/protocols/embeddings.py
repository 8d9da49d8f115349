"""Embeddings in a file: what `minisimclr embed` wrote, read as from an untrusted file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import DataError
from ..evaluation.embed import Matrix
from ..storage import one_line, shown
from ..training import archive

LONGEST_NAME = 120  # characters of an image's name that are shown
READ = ("labels", "class_names", "files", "split", "data")  # what is used besides h or z, if the file has it


class Embeddings(NamedTuple):
    """A row for each image, and what the file says of that image."""

    rows: Matrix  # (N,F) h, or (N,D) z
    files: tuple[str, ...]  # name of each image in its source; () if the file does not tell
    classes: tuple[str, ...]  # class of each image; () if there is one class, or none is told
    split: str  # split of the source; "" if the file does not tell
    data: str  # folder, zip file or name of the source; "" if the file does not tell

    def name(self, index: int) -> str:
        """Return what to call an image: its file, or its number, and its class."""
        name = self.files[index] if self.files else f"image {index}"
        shown_class = f"  {one_line(self.classes[index], most=LONGEST_NAME)}" if self.classes else ""
        return one_line(name, most=LONGEST_NAME) + shown_class


def read_embeddings(path: Path, which: str = "h") -> Embeddings:
    """Read the file that `minisimclr embed` wrote.

    Raises: DataError, in one line, if it is no such file; FileNotFoundError; OSError if it is no regular file.
    """
    try:
        with archive.opened(path, archive.NUMBERS + archive.TEXT) as file:
            if which not in file.headers:
                raise ValueError(f"it has no {which}")
            told = {name: file.read(name) for name in READ if name in file.headers}
            return _understood(file.read(which), which, told)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{shown(path)} cannot be read: {error}") from None
    except (ValueError, MemoryError) as error:
        raise DataError(f"{shown(path)} is not what `minisimclr embed` writes: {error}") from None


def _understood(rows: Any, which: str, told: dict[str, Any]) -> Embeddings:
    """Compare the arrays with each other. Raises: ValueError for the first that does not fit."""
    if rows.ndim != 2 or rows.dtype.kind != "f" or not len(rows) or not rows.shape[1]:
        raise ValueError(f"{which} is no matrix of numbers")
    if not np.isfinite(rows).all():
        raise ValueError(f"{which} holds NaN or infinity")
    files, labels, names = told.get("files"), told.get("labels"), told.get("class_names")
    for name, column in (("files", files), ("labels", labels)):
        if column is not None and (column.shape != (len(rows),) or (column.dtype.kind == "U") != (name == "files")):
            raise ValueError(f"{name} has not one entry for each of the {len(rows)} images")
    classes: tuple[str, ...] = ()
    if labels is not None and names is not None and names.size > 1:
        if labels.dtype.kind not in "iu" or labels.min() < -1 or labels.max() >= names.size or names.dtype.kind != "U":
            raise ValueError("labels are no indices into class_names")
        classes = tuple(map(str, np.append(names.ravel(), "?")[labels]))  # −1: not known
    single = {name: str(told[name]) if name in told and told[name].shape == () else "" for name in ("split", "data")}
    return Embeddings(rows, () if files is None else tuple(map(str, files)), classes, **single)
