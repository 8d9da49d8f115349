"""Labels from file names or from a CSV file, when they are asked for; and lists of files.

A CSV file has a column with the names of the files, as they are below its own folder, and one with their labels
(Hugging Face: file_name, label). Kaggle leaves the ending of the name away. A list names one file a line.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..storage import open_regular
from .dataset import DataError
from .left_out import FORMATS, POINTS_OUT, LeftOut, why_not
from .names import Layout, shown
from .splits import Name, role

MAX_BYTES = 128 << 20  # largest table; a name and a label for a million files take half of it
FILE_COLUMNS = (
    *(
        "file_name",
        "filename",
        "file",
        "image",
        "image_id",
        "image_name",
        "image_file",
        "image_path",
        "img",
        "img_path",
    ),
    *("file_path", "filepath", "path", "id"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "label_name", "category", "target", "breed", "species")
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "phase")
NUMBER = re.compile(r"[ ._\-]*(\(\d+\)|\d+)$")  # the number at the end of a name: cat.12, dog_003, pug (4)
LISTS = (".txt", ".csv", ".tsv", ".lst")


def table(path: Path) -> list[list[str]]:
    """Read the rows of a table, fields apart by commas, semicolons or tabs. Raises: DataError if it is none."""
    with os.fdopen(open_regular(path, MAX_BYTES), "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: a list of files must be text (UTF-8)") from None
    first = text.partition("\n")[0]
    apart = max(",;\t", key=first.count)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=apart) if any(row)]
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None


class Labels(NamedTuple):
    """The rows of a table: for each file name its label, and its split if the table has one."""

    folder: Name  # below the source, of the table; its names are of files in there
    label: dict[str, str]
    split: dict[str, str]
    used: set[str]  # the names that images were found for

    def row(self, name: Name, alone: Counter[str]) -> str:
        """Return the name by which the table knows an image, "" if it does not.

        Raises: DataError if that may be one of several images, whose names without folders are counted in `alone`.
        """
        if name[: len(self.folder)] != self.folder:
            return ""
        for start in dict.fromkeys((len(self.folder), 0, len(name) - 1)):  # from the table, from the source, alone
            written = "/".join(name[start:])
            for key in (written, written.rpartition(".")[0]):
                if key in self.label:
                    if start == len(name) - 1 > len(self.folder) and alone[name[-1]] > 1:
                        raise DataError(f"the table's {shown(key)} may be one of {alone[name[-1]]} images, such as "
                                        f"{shown('/'.join(name))}; write their folders, too")  # fmt: skip
                    self.used.add(key)
                    return key
        return ""


def labels_in(rows: list[list[str]], path: Path, folder: Name) -> Labels:
    """Understand a table with a header. Raises: DataError if its columns are not known, or if it contradicts itself."""
    header = ["_".join(re.split(r"[\s\-_]+", cell.strip().casefold())) for cell in rows[0]] if rows else []
    files = [header.index(name) for name in FILE_COLUMNS if name in header]
    labels = [header.index(name) for name in LABEL_COLUMNS if name in header]
    if files and not labels and len(header) == 2:
        labels = [1 - files[0]]
    if not files or not labels:
        raise DataError(f"{path}: a table of labels needs columns file_name and label, not {', '.join(header[:8])}")
    splits = [header.index(name) for name in SPLIT_COLUMNS if name in header]
    label: dict[str, str] = {}
    split: dict[str, str] = {}
    for row in rows[1:]:
        if len(row) > max(files[0], labels[0]):
            name = "/".join(part for part in row[files[0]].strip().replace("\\", "/").split("/") if part != ".")
            said = label.setdefault(name, row[labels[0]].strip())
            if said != row[labels[0]].strip():
                both = f"{shown(said)} and {shown(row[labels[0]].strip())}"
                raise DataError(f"{path}: {shown(name)} has two labels, {both}; keep one row of it")
            if splits and len(row) > splits[0]:
                split[name] = row[splits[0]].strip()
    return Labels(folder, label, split if all(map(role, split.values())) else {}, set())


def class_in_name(name: str) -> str:
    """Return the class that a file name begins with, "" if it has no number behind it.

    >>> class_in_name("american_bulldog_12.jpg"), class_in_name("cat.0.png"), class_in_name("12.png")
    ('american_bulldog', 'cat', '')
    """
    stem = name.rpartition(".")[0]
    rest = NUMBER.sub("", stem)
    return rest if rest != stem else ""


def by_names(images: dict[int, str], names: list[Name]) -> dict[int, str]:
    """Return the class of each image of a split by its file name; none if the names do not tell classes."""
    found = {k: class_in_name(names[k][-1]) for k in images}
    counts = Counter(found.values())
    if "" in counts or len(counts) < 2 or max(counts.values()) < 2:
        return dict.fromkeys(images, "")
    return found


def tables_of(names: list[Name], source: Path, table_name: str) -> list[Labels]:
    """Read a table of labels; or, if the folders of the source have one each, all of them, the deepest first."""
    root = source if source.is_dir() else source.parent
    path = Path(table_name) if Path(table_name).is_file() else root / table_name
    if path.is_file():
        inside = path.resolve().parent.is_relative_to(root.resolve())
        folder = path.resolve().parent.relative_to(root.resolve()).parts if inside else ()
        return [labels_in(table(path), path, folder)]
    folders = sorted({name[:depth] for name in names for depth in range(1, len(name))}, key=len, reverse=True)
    there = [folder for folder in folders if root.joinpath(*folder, table_name).is_file()]
    if not there:
        raise DataError(f"{shown(table_name)}: no such table of labels, neither here nor in {root}")
    paths = [root.joinpath(*folder, table_name) for folder in there]
    return [labels_in(table(path), path, folder) for path, folder in zip(paths, there)]


def by_table(images: Iterable[int], layout: Layout, tables: list[Labels], source: Path) -> dict[int, str]:
    """Return the class of each image by the tables, "" for those that they do not have; and take the splits from them.

    Raises: DataError for a name that may be one of several images.
    """
    alone, found = Counter(name[-1] for name in layout.names), {}
    of_split: dict[int, str] = {}
    for k in images:
        found[k] = ""
        for known in tables:
            try:
                key = known.row(layout.names[k], alone)
            except DataError as error:
                raise DataError(f"{source}: {error}") from None
            if key:
                found[k] = known.label[key]
                of_split |= {k: known.split[key]} if key in known.split else {}
                break
    missing = sum(len(known.label) - len(known.used) for known in tables)
    if missing:
        layout.said.append(
            f"{missing:,} row{'s' * (missing > 1)} of the table name{'s' * (missing == 1)} no image here"
        )
    if of_split and not layout.by_folder:
        layout.part_by(of_split)
    return found


def listed(path: Path, follow: bool, left: LeftOut) -> list[Name]:
    """Return the names in a list of files, below its folder. Raises: DataError for a list that names no file."""
    root, found = path.resolve().parent, []
    rows = table(path)
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    column = next((header.index(name) for name in FILE_COLUMNS if name in header), 0)
    for row in rows[1:] if set(header) & set(FILE_COLUMNS) else rows:
        text = row[column].strip().replace("\\", "/") if len(row) > column else ""
        parts = tuple(part for part in text.split("/") if part not in ("", "."))
        inside = Path(os.path.normpath(root / text)).is_relative_to(root)
        if inside and Path(text).is_absolute():
            parts = Path(text).relative_to(root).parts
        cause = why_not(parts) or ("" if inside and ".." not in parts else POINTS_OUT)
        if not cause and not root.joinpath(*parts).is_file():
            cause = "listed, but not there"
        if not cause and not follow and not root.joinpath(*parts).resolve().is_relative_to(root):
            cause = "links"
        if cause:
            left.add(cause, parts or (text,))
        else:
            found.append(parts)
    if not found:
        raise DataError(
            f"{path}: a list that names no image ({', '.join(FORMATS)}) below {root}; {left.line() or 'it is empty'}"
        )
    return list(dict.fromkeys(found))


def relabel(layout: Layout, source: Path, labels: str) -> None:
    """Give the images of all splits the classes that their names, or a table, say; tell which have none.

    Raises: DataError if no image gets a label.
    """
    every = [k for images in layout.splits.values() for k in images]
    label = {} if labels == "names" else by_table(every, layout, tables_of(layout.names, source, labels), source)
    for split, images in layout.splits.items():
        found = by_names(images, layout.names) if labels == "names" else {k: label[k] for k in images}
        if any(found.values()):
            without = {k for k, name in found.items() if not name}
            layout.outside |= dict.fromkeys(without, "without a label")
            found = {k: name for k, name in found.items() if name}
        layout.splits[split] = found
    if not any(layout.has_labels(split) for split in layout.splits):
        told = "file names tell no classes (as cat.12.jpg does)" if labels == "names" else f"{labels} labels no image"
        raise DataError(f"{source}: {told}")
