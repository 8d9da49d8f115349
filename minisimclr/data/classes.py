"""The classes of a source: one for each name, however that is written."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

from .names import UNLABELLED, Layout, shown


def class_numbers(layout: Layout) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the label of each class folder, and the names of the classes; what should be said goes to the layout.

    Names are normalized (NFC): a Mac writes "é" as two characters, others as one. Names that differ in case or form
    only, and stand in different splits, are one class: "Cat" for training is "cat" in the test.
    """
    splits = [{folder for folder in images.values() if folder} for images in layout.splits.values()]
    if not layout.by_folder:
        splits = [set().union(*splits)]
    folders = set().union(*splits)
    spelled: dict[str, set[str]] = {}  # a name without case and form -> the folders
    for folder in folders:
        spelled.setdefault(_folded(folder), set()).add(folder)
    name_of = {folder: _composed(folder) for folder in folders}
    for same in (group for group in spelled.values() if len(group) > 1):
        first = min(_composed(folder) for folder in same)
        together = any(len({name_of[folder] for folder in split & same}) > 1 for split in splits)
        if not together:
            name_of |= dict.fromkeys(same, first)
        names = " and ".join(_distinct(same))
        what = "case, spaces or form" if any(" ".join(name.split()) != name for name in same) else "case or form"
        result = "two classes, because one split has both" if together else "one class"
        layout.said.append(f"{names} differ in {what} only, and are {result}")
    class_names = sorted(set(name_of.values()))
    label_of = {name: label for label, name in enumerate(class_names)}
    return {folder: label_of[name] for folder, name in name_of.items()}, tuple(map(shown, class_names)) or (UNLABELLED,)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def _distinct(names: Collection[str]) -> list[str]:
    """Spell names so that a reader sees how they differ: accents of their own as code points."""
    plain = sorted(shown(name) if name == name.strip() else f"{shown(name)!r}" for name in names)
    if len({_composed(name) for name in names}) == len(plain):
        return plain
    return [f"{shown(_composed(name))} ({'as a Mac writes it' if name != _composed(name) else 'NFC'})"
            for name in sorted(names)]  # fmt: skip


def lacking(labels: Iterable[int], class_names: tuple[str, ...]) -> list[str]:
    """Name the classes that have no image among these labels.

    >>> lacking([0, 2, 2], ("cat", "dog", "eel"))
    ['dog']
    """
    present = set(labels)
    return [name for label, name in enumerate(class_names) if label not in present]


def few(names: Collection[str], most: int = 5) -> str:
    """Write some names, and count the rest.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    first = list(names)[:most]
    rest = len(names) - len(first)
    return ", ".join(map(shown, first)) + (f" and {rest} more" if rest else "")
