"""The names that people give to splits: train, Training, val, seg_test, test1 …

The part that a folder plays is its `role`: train, val, test or unlabeled. An exact name is enough for one. A name that
only contains one ("seg_train") plays a part beside folders that play another one, for a class may be called "Test 1".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from ..storage import one_line

Name: TypeAlias = tuple[str, ...]
Names: TypeAlias = dict[int, Name]  # number of an image -> its name without the folders that were understood already

EXACT = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
BESIDE = {  # words that say so only beside another split
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "holdout": "test",
    "pred": "unlabeled",
    "tests": "test",
    "trn": "train",
    "tst": "test",
    "unsup": "unlabeled",
    "unsupervised": "unlabeled",
}
WORDS = EXACT | BESIDE
FILLERS = frozenset("data dataset folder images image imgs img photos pictures set sets split".split())  # noqa: SIM905

COMPOUND = re.compile(f"({'|'.join(WORDS)})({'|'.join(FILLERS)})")  # trainset, testimages
# Words of folders beside the images, with what belongs to each of them: masks, maps of segments, annotations.
MASKS = frozenset("annot annotation annotations annots groundtruth gt label labels mask masks".split())  # noqa: SIM905
MASKS |= frozenset("seg segmentation segmentations trimap trimaps".split())  # noqa: SIM905
BESIDE_MASKS = FILLERS | frozenset("binary class colour color ground instance instances jpeg jpg".split())  # noqa: SIM905
BESIDE_MASKS |= frozenset("jpegimages object png rgb semantic truth".split())  # noqa: SIM905
NEVER_CLASSES = frozenset("annotation annotations segmentation segmentations trimap trimaps".split())  # noqa: SIM905
# 2021-05-17, 2021_05, 20210517; 100CANON and 101MSDCF, as cameras write them (DCF)
DATES = re.compile(r"(19|20)\d\d([-_.]?\d\d){1,2}|\d{3}[A-Z0-9_]{5}")
PARTS = frozenset("batch chunk disk fold group part shard subset vol volume".split())  # noqa: SIM905


def role(name: str) -> str:
    """Return the role of an exact name, "" for any other.

    >>> role("Validation"), role("cat")
    ('val', '')
    """
    return EXACT.get(name.casefold(), "")


def words_of(name: str) -> tuple[str, ...]:
    """Cut a name into its words, without numbers.

    >>> words_of("seg_train"), words_of("TestImages"), words_of("trainset2")
    (('seg', 'train'), ('test', 'images'), ('train', 'set'))
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words: list[str] = []
    for word in re.findall(r"[^\W\d_]+", apart.casefold()):
        match = COMPOUND.fullmatch(word)
        words += match.groups() if match else [word]
    return tuple(words)


def roles(names: Iterable[str]) -> dict[str, str]:
    """Return the role of each of these sibling folders that plays one.

    >>> roles(["seg_train", "seg_test", "seg_pred", "notes"])
    {'seg_train': 'train', 'seg_test': 'test', 'seg_pred': 'unlabeled'}
    >>> roles(["test 1", "test 2"])
    {}
    """
    names = list(names)
    found = {name: role(name) for name in names if role(name)}
    maybe: dict[tuple[str, ...], dict[str, str]] = {}  # the other words of the name -> name -> role
    for name in names:
        words = words_of(name)
        parts = [WORDS[word] for word in words if word in WORDS]
        if name not in found and len(parts) == 1:
            others = tuple(word for word in words if word not in WORDS and word not in FILLERS)
            maybe.setdefault(others, {})[name] = parts[0]
    # "seg_train" beside "seg_test", "test1" beside "train"
    groups = [group for others, group in maybe.items()
              if len({*group.values(), *(() if others else found.values())}) > 1]  # fmt: skip
    if len(groups) == 1:  # with more, as "train_cat" and "train_dog", the other words are classes
        found |= groups[0]
    return {name: found[name] for name in names if name in found}


def chosen(split: str, folders: Iterable[tuple[str, str]]) -> list[str]:
    """Return those of the folders, each with its role, that a split's name means: itself, else all of its role.

    >>> chosen("test", [("train", "train"), ("testing", "test")])
    ['testing']
    """
    folders = list(folders)
    exact = [name for name, _ in folders if name.casefold() == split.casefold()]
    return exact or [name for name, part in folders if part and part == role(split)]


# ── Folders that are neither splits nor classes ───────────────────────────────────────────────────


def masks_beside(names: Iterable[str]) -> set[str]:
    """Return those of sibling folders that hold masks, if all others hold the images that they belong to.

    >>> masks_beside(["images", "masks"]), masks_beside(["with_mask", "without_mask"])
    ({'masks'}, set())
    >>> masks_beside(["CUB_200_2011", "segmentations"])
    {'segmentations'}
    """
    words = {name: set(words_of(name)) for name in names}
    masks = {name for name, found in words.items() if found & MASKS or {"ground", "truth"} <= found}
    alike = all(found and found <= (MASKS | BESIDE_MASKS if name in masks else BESIDE_MASKS)
                for name, found in words.items())  # fmt: skip
    clear = len(masks) == len(words) - 1 and all(words[name] <= NEVER_CLASSES for name in masks)
    return masks if (alike or clear) and len(masks) < len(words) else set()


def without_masks(below: Names, outside: dict[int, str]) -> Names:
    """Leave out the masks in folders beside the images that they belong to: `images/1.jpg`, `masks/1.png`."""
    siblings: dict[Name, set[str]] = {}
    for parts in below.values():
        for depth in range(min(len(parts) - 1, 3)):
            siblings.setdefault(parts[:depth], set()).add(parts[depth])
    aside = {folder: masks for folder, names in siblings.items() if (masks := masks_beside(names))}
    if not aside:
        return below
    kept = {}
    for k, parts in below.items():
        depth = next((d for d in range(len(parts) - 1) if parts[:d] in aside), -1)
        if depth >= 0 and parts[depth] in aside[parts[:depth]]:
            outside[k] = "masks or annotations beside the images"
        else:
            kept[k] = parts if depth < 0 else parts[:depth] + parts[depth + 1 :]
    return kept


def parts_joined(below: Names, said: list[str]) -> Names:
    """Leave out the folders at the top if they are parts of one set, and each holds the same classes: `fold1/cat/…`."""
    tops = {parts[0] for parts in below.values()}
    words = {words_of(top) for top in tops}
    (word, *others) = words or {("",)}
    if len(tops) < 2 or others or len(word) != 1 or word[0] not in PARTS or min(map(len, below.values())) < 3:
        return below
    inside: dict[str, set[str]] = {}
    for parts in below.values():
        inside.setdefault(parts[0], set()).add(parts[1])
    if len(set.intersection(*inside.values())) < 2:
        return below
    said.append(f"{', '.join(map(one_line, sorted(tops)[:3]))} … are parts of one set, and the folders in them its "
                "classes; --layout classes reads them as classes")  # fmt: skip
    return {k: parts[1:] for k, parts in below.items()}


def doubts(below: Names) -> list[str]:
    """Return what should be said of folders that are read as classes, and may be something else."""
    inside: dict[str, set[str]] = {}
    for parts in below.values():
        if len(parts) > 1:
            inside.setdefault(parts[0], set()).add(parts[1] if len(parts) > 2 else "")
    if len(inside) < 2:
        return []
    some = ", ".join(map(one_line, sorted(inside)[:3])) + (" …" if len(inside) > 3 else "")
    common = sorted(set.intersection(*inside.values()) - {""})
    said = []
    if len(common) > 1:
        parts_of = ", ".join(map(one_line, common[:3])) + (" …" if len(common) > 3 else "")
        said.append(f"{some} are read as the classes, and {parts_of}, which all of them hold, as parts of a class; "
                    "if these are the classes, name one of the folders that hold them")  # fmt: skip
    if all(map(DATES.fullmatch, inside)):
        said.append(f"{some} are read as classes, and look like dates or the folders of a camera; "
                    "--layout flat reads all images as one class")  # fmt: skip
    return said
