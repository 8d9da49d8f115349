"""The options that say how a source is read, and the splits that an evaluation takes."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import Counter
from typing import Any

from ..data import DataError, Dataset, Reading, load_dataset, splits_of
from ..data.classes import few, lacking
from ..data.names import HELD, UNLABELLED
from ..data.reading import HOME, LAYOUTS
from ..training.run import Run, fingerprint
from .console import note, saying

NO_LABELS = (
    "evaluation needs labelled images: at least two folders, one for each class; --labels takes labels from file "
    "names or from a CSV file"
)


def add_reading(parser: argparse.ArgumentParser, *, split: bool = True, labels: str = "--labels") -> None:
    """Add the options that settle how the names of a source are understood; `split` adds the one for training.

    labels  the name of the option that says where labels come from
    """
    if split:
        parser.add_argument("--split", metavar="NAME", help="split to train on (default: train)")
    parser.add_argument(
        "--test-split",
        metavar="NAME",
        help=f"split to test on; {HELD} sets a tenth of the training split apart (default: test, else val)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="folder of data sets that are asked for by name, such as cifar10 (default: $MINISIMCLR_DATA, ., data)",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="meaning of the folders at the top: splits, classes or nothing (default: auto)",
    )
    parser.add_argument(
        labels,
        dest="labels",
        metavar="HOW",
        help="folders; names, where cat.12.jpg is a cat; or a CSV file with columns file_name and label "
        "(default: folders)",
    )
    parser.add_argument(
        "--follow-links",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="follow links out of the folder, and links to folders (default: no)",
    )
    parser.add_argument(
        "--megapixels", type=int, metavar="N", help="largest image that is decoded, in millions of pixels (default: 64)"
    )


def chosen_reading(options: argparse.Namespace, stored: str = "") -> Reading:
    """Return the reading that the options ask for; what they leave open is as stored.

    Raises: ValueError for a choice that makes no sense.
    """
    if getattr(options, "data_dir", None):
        os.environ[HOME] = options.data_dir
    names = [item.name for item in dataclasses.fields(Reading)]
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    return dataclasses.replace(Reading.from_text(stored), **given)


class Remarks:
    """The remarks on a source: kept while it is loaded, as its splits have the same to say; then told at once."""

    def __init__(self) -> None:
        self.lines: dict[str, None] = {}
        self.loading = True

    def __call__(self, line: str) -> None:
        """Keep a line, or tell it: of a photo that cannot be decoded after all, when it is embedded."""
        if line not in self.lines and not self.loading:
            note(line)
        self.lines[line] = None

    def tell(self) -> None:
        """Tell what was kept, once the source is loaded."""
        self.loading = False
        for line in self.lines:
            note(line)


def splits(
    run: Run, source: str | None, reading: Reading | None = None, *, labelled: bool = True
) -> tuple[Dataset, dict[str, Dataset]]:
    """Load the training split, and the splits to test on.

    labelled  False takes data without labels, too; the training images are then looked at in place of test images

    Raises: DataError for data that cannot be used, or that has no labels to test with.
    """
    size, reading = run.config.size, reading or Reading.from_text(run.config.reading)
    source = source or run.config.data
    said = Remarks()
    how: dict[str, Any] = {"size": size, "reading": reading, "cache_side": run.config.cache_side}
    with saying(f"loading {source}"):
        there = splits_of(source, reading)
        train = load_dataset(source, reading.split, **how, report=said)
        if not labelled and not any(known for role, known in there.values() if role != "train"):
            return train, {"training": train}
        name = test_split(source, there, reading.test_split)
        if len(train.class_names) < 2:
            raise DataError(f"{source}: {NO_LABELS}")
        tests = {name: load_dataset(source, name, **how, report=said)}
        if fingerprint(tests[name]) == fingerprint(train):  # a split by another name, or the one that was trained on
            raise DataError(f"{source}: {name} has the very images of the training split; --test-split chooses others")
        if source == "doodles" and not reading.test_split:
            tests["unseen style"] = load_dataset(source, "unseen", size=size)
    said.tell()
    say_what_is_uneven(source, train, tests)
    return train, tests


def all_splits(run: Run, source: str, reading: Reading, wanted: str | None) -> dict[str, Dataset]:
    """Load the split that is wanted, or every split of a source, as the run read its images.

    Raises: DataError for data that cannot be used.
    """
    said = Remarks()
    how: dict[str, Any] = {"size": run.config.size, "reading": reading, "cache_side": run.config.cache_side}
    names = [wanted] if wanted else list(splits_of(source, reading))
    found = {name: load_dataset(source, name, **how, report=said) for name in names}
    said.tell()
    return found


def test_split(source: str, there: dict[str, tuple[str, bool]], wanted: str) -> str:
    """Return the split to test on: the wanted one, else the test split, else that for validation, which is said.

    `there` has the role of each split, and whether it has labels. A split without labels is never chosen.

    Raises: DataError if there is none.
    """
    if wanted:
        return wanted
    for part in ("test", "val"):
        for name, (role, labelled) in there.items():
            if role == part and labelled:
                if part == "val":
                    why = "the test split has no labels" if "test" in dict(there.values()) else "there is no test split"
                    note(f"{source}: {why}; {name} is taken")
                return name
    if not any(labelled for _, labelled in there.values()):
        raise DataError(f"{source}: {NO_LABELS}")
    names = [name if labelled else f"{name} (no labels)" for name, (_, labelled) in there.items()]
    raise DataError(
        f"{source}: no labelled split to test on; there are: {few(names)}; --test-split chooses one, and "
        f"--test-split {HELD} sets a tenth of the training split apart"
    )


def say_what_is_uneven(source: str, train: Dataset, tests: dict[str, Dataset]) -> None:
    """Note classes that one split lacks, and a class so large that guessing it looks like learning.

    Raises: DataError for a split without labels, or one whose classes training has not one of.
    """
    for name, data in tests.items():
        if data.class_names == (UNLABELLED,):
            raise DataError(f"{source}: {name} has no labels, and cannot be scored; --test-split or --labels settle it")
        if not set(data.labels.tolist()) & set(train.labels.tolist()):
            raise DataError(f"{source}: {name} and the training split have no class in common")
    for name, data in {"the training split": train, **tests}.items():
        absent = lacking(data.labels.tolist(), data.class_names)
        if absent:
            note(
                f"{source}: {name} has no image of {few(absent)}"
                + ("; such images count as wrong" if data is train else "")
            )
        label, count = Counter(data.labels.tolist()).most_common(1)[0]
        classes = len(data.class_names)
        if data is not train and 2 * count * classes >= len(data) * (classes + 1):  # 3/4 of two, 11/20 of ten
            note(f"{source}: {100 * count / len(data):.0f} % of {name} is {few([data.class_names[label]])}: "
                 "whoever always says so is right as often")  # fmt: skip
