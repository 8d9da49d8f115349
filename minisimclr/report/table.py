"""The table of accuracies: as text, and as it was kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..evaluation.scores import Confusion, uncertainty
from ..protocols.compare import USUAL, Score, Vote
from ..storage import open_regular

LARGEST = 1 << 24  # size of results.json, bytes; ours have 2,000, and with confusions of many classes a few million


def table(scores: list[Score], counts: Mapping[str, int] | None = None) -> str:
    """Return the accuracies in percent: a row for each representation, kNN and linear probe for each split.

    counts  the number of test images of each split; with them each accuracy has its uncertainty
    """
    splits = list(scores[0].knn)
    width = max(len(score.name) for score in scores)
    cell = 11 if counts else 6

    def shown(accuracy: float, split: str) -> str:
        doubt = f" ±{100 * uncertainty(accuracy, counts[split]):.1f}" if counts else ""
        return f"{100 * accuracy:.1f}{doubt}"

    heads = f"{'kNN':>{cell}}   {'linear':>{cell}}"
    lines = [
        " " * width + "".join(f"   {split:^{len(heads)}}" for split in splits).rstrip(),
        " " * width + f"   {heads}" * len(splits),
    ]
    for score in scores:
        cells = [f"{shown(score.knn[s], s):>{cell}}   {shown(score.probe[s], s):>{cell}}" for s in splits]
        lines.append(f"{score.name:<{width}}   " + "   ".join(cells))
    return "\n".join(lines)


def details(scores: list[Score], class_names: tuple[str, ...]) -> str:
    """Return what stands below the table, of the linear classifier on h: the majority, the classes, their confusion."""
    lines = []
    found = next(score for score in scores if score.name == "SimCLR, h").probe_confusion
    for split, confusion in found.items():
        pairs = [f"{class_names[a]} taken for {class_names[b]} {100 * p:.0f} %" for a, b, p in confusion.confused()]
        mean, largest = 100 * confusion.per_class, 100 * confusion.majority
        lines.append("; ".join([f"{split}: mean over the classes {mean:.1f}", f"largest class {largest:.1f}", *pairs]))
    return "\n".join(lines)


def confusion_matrix(confusion: Confusion, class_names: tuple[str, ...]) -> str:
    """Return the counts as text: a row for each class, a column for each class that was given."""
    width = max(len(name) for name in class_names)
    cell = max(4, len(str(confusion.counts.max())) + 1)
    head = " " * width + "".join(f"{name[: cell - 1]:>{cell}}" for name in class_names)
    numbers = ["".join(f"{n:>{cell}}" for n in row) for row in confusion.counts]
    return "\n".join([head, *(f"{name:<{width}}{row}" for name, row in zip(class_names, numbers))])


def read_results(path: Path, steps: int, train_images: int, test_images: Mapping[str, int]) -> tuple[list[Score], Vote]:
    """Return the scores in results.json, and how the neighbours voted, if they are those of this step and these images.

    Else there are no scores, and the vote is the usual one. The file is untrusted: what is not as
    `minisimclr evaluate` writes it counts for nothing.
    """
    try:
        with os.fdopen(open_regular(path, LARGEST), "rb") as file:
            kept = json.loads(file.read(LARGEST + 1))
        if (kept["steps"], kept["train_images"], kept["test_images"]) != (steps, train_images, dict(test_images)):
            return [], USUAL
        scores = [
            Score(str(score["name"]), _shares(score["knn"], test_images), _shares(score["probe"], test_images))
            for score in kept["scores"]
        ]
        return scores, _vote(kept.get("k", USUAL.k), kept.get("temperature", USUAL.temperature))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):  # 10⁴⁰⁰ is a JSON number, too
        return [], USUAL


def _vote(k: Any, temperature: Any) -> Vote:
    """Return how the neighbours voted. Raises: ValueError for what `evaluate` would not have taken."""
    if type(k) is not int or k < 1 or type(temperature) not in (int, float) or not 0 < float(temperature) < math.inf:
        raise ValueError("k is a number of neighbours, and a temperature is positive")
    return Vote(k, float(temperature))


def _shares(given: Mapping[str, Any], splits: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each split. Raises: ValueError or a LookupError if one is missing, or no share."""
    shares = {split: float(given[split]) for split in splits}
    if not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError("a share lies in [0,1]")
    return shares
