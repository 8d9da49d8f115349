"""The names that people give to splits: train, Training, val, seg_test, test1 …

The part that a folder plays is its `role`: train, val, test or unlabeled. An exact name is enough for one. A name that
only contains one ("seg_train") plays a part beside folders that play another one, for a class may be called "Test 1".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def role(name: str) -> str:
    """Return the role of an exact name, "" for any other.

    >>> role("Validation"), role("cat")
    ('val', '')
    """
    return EXACT.get(name.casefold(), "")


def words_of(name: str) -> tuple[str, ...]:
    """Cut a name into its words, without numbers: "seg_train" → ("seg", "train"), "TrainSet2" → ("train", "set")."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[^\W\d_]+", apart.casefold()))


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
