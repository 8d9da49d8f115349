"""The table of accuracies, as text."""

from __future__ import annotations

from ..protocols.compare import Score


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
