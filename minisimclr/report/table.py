"""The table of accuracies: as text, and as it was kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..protocols.compare import Score
from ..storage import open_regular

LARGEST = 1 << 24  # size of results.json, bytes; ours have 2,000, and with confusions of many classes a few million


def table(scores: list[Score]) -> str:
    """Return the accuracies in percent: a row for each representation, kNN and linear probe for each split."""
    splits = list(scores[0].knn)
    width = max(len(score.name) for score in scores)
    lines = [
        " " * width + "".join(f"   {split:^15}" for split in splits).rstrip(),
        " " * width + "   " + "   ".join("   kNN   linear" for _ in splits),
    ]
    for score in scores:
        cells = [f"{100 * score.knn[s]:6.1f} {100 * score.probe[s]:8.1f}" for s in splits]
        lines.append(f"{score.name:<{width}}   " + "   ".join(cells))
    return "\n".join(lines)


def read_scores(path: Path, steps: int, train_images: int, test_images: Mapping[str, int]) -> list[Score]:
    """Return the scores in results.json, if they are those of this many steps, on this many images; else none.

    The file is untrusted: what is not as `minisimclr evaluate` writes it counts for nothing.
    """
    try:
        with os.fdopen(open_regular(path, LARGEST), "rb") as file:
            kept = json.loads(file.read(LARGEST + 1))
        if (kept["steps"], kept["train_images"], kept["test_images"]) != (steps, train_images, dict(test_images)):
            return []
        return [
            Score(str(score["name"]), _shares(score["knn"], test_images), _shares(score["probe"], test_images))
            for score in kept["scores"]
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _shares(given: Mapping[str, Any], splits: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each split. Raises: ValueError or a LookupError if one is missing, or no share."""
    shares = {split: float(given[split]) for split in splits}
    if not all(0 <= share <= 1 for share in shares.values()):
        raise ValueError("a share lies in [0,1]")
    return shares
