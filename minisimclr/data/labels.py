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
from pathlib import Path

from ..storage import open_regular
from .dataset import DataError
from .left_out import FORMATS, POINTS_OUT, LeftOut, why_not
from .names import Layout, shown
from .splits import Name

MAX_BYTES = 128 << 20  # largest table; a name and a label for a million files take half of it
FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_id", "path", "id")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "breed", "species")
NUMBER = re.compile(r"[ ._\-]*(\(\d+\)|\d+)$")  # the number at the end of a name: cat.12, dog_003, pug (4)
LISTS = (".txt", ".csv", ".tsv", ".lst")


def table(path: Path) -> list[list[str]]:
    """Read the rows of a table, fields apart by commas, semicolons or tabs. Raises: DataError if it is none."""
    with os.fdopen(open_regular(path, MAX_BYTES), "rb") as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: a list of files must be text (UTF-8)") from None
    first = text.partition("\n")[0]
    apart = max(",;\t", key=first.count)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=apart) if any(row)]
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None


def label_of(rows: list[list[str]], path: Path) -> dict[str, str]:
    """Return the label of each file name in a table with a header. Raises: DataError if its columns are not known."""
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    files = [header.index(name) for name in FILE_COLUMNS if name in header]
    labels = [header.index(name) for name in LABEL_COLUMNS if name in header]
    if files and not labels and len(header) == 2:
        labels = [1 - files[0]]
    if not files or not labels:
        raise DataError(f"{path}: a table of labels needs columns file_name and label, not {', '.join(header[:8])}")
    return {
        row[files[0]].strip().replace("\\", "/"): row[labels[0]].strip()
        for row in rows[1:]
        if len(row) > max(files[0], labels[0])
    }


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


def by_table(images: dict[int, str], names: list[Name], source: Path, table_name: str) -> dict[int, str]:
    """Return the class of each image of a split by a CSV file; "" for those that it does not have."""
    path = Path(table_name) if Path(table_name).is_file() else source / table_name
    if not path.is_file():
        raise DataError(f"{shown(table_name)}: no such table of labels, neither here nor in {source}")
    known = label_of(table(path), path)
    try:
        below = len(path.resolve().parent.relative_to(source.resolve()).parts)
    except ValueError:
        below = 0

    def label(name: Name) -> str:
        for start in dict.fromkeys((0, below, len(name) - 1)):  # from the source, from the table's folder, alone
            written = "/".join(name[start:])
            if written in known:
                return known[written]
            if written.rpartition(".")[0] in known:
                return known[written.rpartition(".")[0]]
        return ""

    return {k: label(names[k]) for k in images}


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
        raise DataError(f"{path}: a list that names no image ({', '.join(FORMATS)}) below {root}; {left.line()}")
    return list(dict.fromkeys(found))


def relabel(layout: Layout, source: Path, labels: str) -> None:
    """Give the images of all splits the classes that their names, or a table, say; tell which have none.

    Raises: DataError if no image gets a label.
    """
    root = source if source.is_dir() else source.parent
    for split, images in layout.splits.items():
        found = by_names(images, layout.names) if labels == "names" else by_table(images, layout.names, root, labels)
        if any(found.values()):
            without = {k for k, label in found.items() if not label}
            layout.outside |= dict.fromkeys(without, "without a label")
            found = {k: label for k, label in found.items() if label}
        layout.splits[split] = found
    if not any(layout.has_labels(split) for split in layout.splits):
        told = "file names tell no classes (as cat.12.jpg does)" if labels == "names" else f"{labels} labels no image"
        raise DataError(f"{source}: {told}")
