"""A table of representations: for each image a row with its file, class and split."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Dataset
from ..evaluation.embed import Matrix
from ..storage import shown

ENDINGS = (".npz", ".csv", ".parquet")
UNLABELLED = ("unlabelled",)  # the classes of a split that has no labels


class Rows:
    """The rows of some splits of one source."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.parts: list[tuple[str, Dataset, Any, Matrix, Matrix]] = []  # split, data, rows that are good, h, z

    def add(self, split: str, data: Dataset, h: Matrix, z: Matrix) -> None:
        """Add the images of a split; one that could not be decoded is left out."""
        bad = getattr(data, "unreadable", {})
        good = np.array([k for k in range(len(data)) if k not in bad], np.int64)
        self.parts.append((split, data, good, h[good], z[good]))

    def class_names(self) -> tuple[str, ...]:
        """Return the classes; those of all splits that have labels are the same."""
        names = [data.class_names for _, data, *_ in self.parts]
        return next((classes for classes in names if classes != UNLABELLED), UNLABELLED)

    def arrays(self) -> dict[str, Any]:
        """Return a column for each fact, under the names of the .npz file; `files` only if there are some."""
        labels = []
        for _, data, good, *_ in self.parts:
            known = data.class_names == self.class_names()
            labels.append(data.labels[good] if known else np.full(len(good), -1))
        splits = [split for split, _, good, *_ in self.parts for _ in good]
        files = [data.files[k] for _, data, good, *_ in self.parts if data.files for k in good]
        return {
            "h": np.concatenate([h for *_, h, _ in self.parts]),
            "z": np.concatenate([z for *_, z in self.parts]),
            "labels": np.concatenate(labels).astype(np.int64),
            "class_names": np.array(self.class_names()),
            # one split: a text without axes, as who asks for it knows it
            "split": np.array(splits) if len(self.parts) > 1 else np.array(self.parts[0][0]),
            "data": np.array(self.source),
            **({"files": np.array(files)} if len(files) == len(splits) else {}),
        }

    def columns(self) -> dict[str, Any]:
        """Return the same as columns of text, and h and z: file, class, split, h, z."""
        arrays = self.arrays()
        names = np.append(arrays["class_names"], "")
        count = len(arrays["labels"])
        return {
            "file": arrays.get("files", np.array([""] * count)).tolist(),
            "class": names[arrays["labels"]].tolist(),
            "split": np.broadcast_to(arrays["split"], count).tolist(),
            "h": arrays["h"],
            "z": arrays["z"],
        }

    def words(self) -> str:
        """Return what was written, in a few words."""
        counts = ", ".join(f"{split} {len(good):,}" for split, _, good, *_ in self.parts)
        (*_, h, z), total = self.parts[0], sum(len(good) for _, _, good, *_ in self.parts)
        return f"{total:,} images ({counts}), h of {h.shape[1]} and z of {z.shape[1]} dimensions"


def require_writer(path: Path) -> None:
    """Refuse an ending that is not known, or one that needs a package that is not there.

    Raises: ValueError, in one line.
    """
    if path.suffix not in ("", *ENDINGS):
        raise ValueError(f"{shown(path)}: the ending must be one of {', '.join(ENDINGS)}, not {path.suffix!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401 - an extra, and slow to import
        except ImportError:
            raise ValueError(f"{shown(path)} needs pyarrow: pip install pyarrow; or write .npz or .csv") from None


def written(file: Any, path: Path, rows: Rows) -> None:
    """Write the rows in the format of the path's ending; without one it is .npz."""
    if path.suffix == ".csv":
        _csv(file, rows.columns())
    elif path.suffix == ".parquet":
        _parquet(file, rows.columns())
    else:
        np.savez(file, **rows.arrays())


def _csv(file: Any, columns: dict[str, Any]) -> None:
    """Write file, class, split, then h0, h1 … and z0, z1 …: digits enough to find every float32 again."""
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files are bytes
    table = csv.writer(text)
    wide = [f"{name}{k}" for name in "hz" for k in range(columns[name].shape[1])]
    table.writerow(["file", "class", "split", *wide])
    for file_name, label, split, h, z in zip(*columns.values()):
        table.writerow([file_name, label, split, *(f"{x:.9g}" for x in (*h.tolist(), *z.tolist()))])
    text.detach()  # the file stays open: who opened it closes it


def _parquet(file: Any, columns: dict[str, Any]) -> None:
    """Write the columns file, class, split, and h and z as lists of one length."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(matrix: Matrix) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])

    def texts(column: list[str]) -> Any:
        return pa.array([text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in column])

    table = {name: (lists if name in ("h", "z") else texts)(column) for name, column in columns.items()}
    pq.write_table(pa.table(table), file)
