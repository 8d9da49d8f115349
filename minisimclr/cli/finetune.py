"""`minisimclr finetune`: train a classifier on few labels, from a run or from scratch."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..evaluation.scores import uncertainty
from ..protocols.compare import check_data
from ..protocols.finetune import CURVE, STARTS, found_among, identity, labels_of_each, point
from ..report.label_curve import label_curve
from ..storage import Content, open_regular, shown, write_all
from ..training.run import Run, load_run
from .common import add_run, splits_of_run
from .console import note, saying, show

HELP = "train a classifier on few labels, from a run's encoder or from scratch"
LARGEST = 1 << 24  # size of finetune.json, bytes; a point takes 500


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --labels, --from, --curve, the settings of the training, and the run."""
    parser.add_argument(
        "--from",
        dest="start",
        choices=STARTS,
        default="simclr",
        help="first weights: those of the run, or random ones, which is the supervised baseline (default: simclr)",
    )
    parser.add_argument(
        "--curve",
        action="store_true",
        help=f"the label-efficiency curve: {', '.join(map(str, CURVE))} labels a class, from both, as one figure",
    )
    parser.add_argument("--epochs", type=int, default=None, metavar="N", help="passes over the labelled images "
                        "(default: the paper's 60, or 30 from 10%% on, and at least 200 steps)")  # fmt: skip
    parser.add_argument("--batch", type=int, default=128, metavar="N", help="images per step (default: 128)")
    parser.add_argument("--lr", type=float, default=None, metavar="X", help="peak learning rate per 256 images "
                        "(default: 0.05, the paper's; from scratch 0.1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of labels, crops and order (default: 0)")
    add_run(parser, labels="--labels-from")  # here --labels says how many
    parser.add_argument(
        "--labels",
        dest="amount",
        default="1%",
        metavar="N",
        help="labels: a share as 1%%, or a number for each class (default: 1%%)",
    )


def run_command(options: argparse.Namespace) -> None:
    """Fine-tune, or draw the curve; points that are there already are not made again.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    run = load_run(options.run, options.device)
    source = options.data or run.config.data
    train, tests = splits_of_run(run, options)
    for line in check_data(run, train, tests, source, other=options.data is not None):
        note(line)
    made = {name: getattr(options, name) for name in ("epochs", "batch", "lr", "seed")}
    wanted = [(options.amount, options.start)]
    if options.curve:
        most = max((train.labels == label).sum() for label in set(train.labels))
        counts = [count for count in CURVE if count <= most] or [int(most)]
        if len(counts) < len(CURVE):
            note(f"no class has more than {most} labelled images: the curve ends at {counts[-1]} labels a class")
        wanted = [(str(count), start) for count in counts for start in STARTS]
    labels_of_each(train.labels, options.amount)  # before the work, not after it
    points, name = stored_points(options.run / "finetune.json"), shown(Path(source).name or source)
    for labels, start in wanted:
        found = found_among(points, identity(run, train, labels, start, **made), tests)
        if found is None:
            found = _made(run, train, tests, labels, start, made) | {"data": source}
            points.append(dict(found))
            keep(options.run, points, {})  # after each point: what was made is not made again
        _tell(found)
    if options.curve:
        chosen = [found_among(points, identity(run, train, labels, start, **made), tests) for labels, start in wanted]
        title = f"{name}, {next(iter(tests))}: accuracy after fine-tuning"
        keep(options.run, points, {"finetune.png": label_curve(filter(None, chosen), next(iter(tests)), title)})
        show(str(options.run / "finetune.png"))


def _made(
    run: Run, train: Dataset, tests: dict[str, Dataset], labels: str, start: str, made: dict[str, Any]
) -> dict[str, Any]:
    with saying(f"{labels} labels from {start}") as say:

        def progress(step: int, steps: int, loss: float) -> None:
            say(f"step {step + 1}/{steps}, loss {loss:.2f}")

        return point(run, train, tests, labels, start, **made, progress=progress)


def _tell(found: Mapping[str, Any]) -> None:
    """Print a point on a line."""
    labels = found["labels"] if "%" in found["labels"] else f"{found['labels']} a class"
    accuracies = [
        f"{split} {100 * score['accuracy']:.1f} ±{100 * uncertainty(score['accuracy'], score['images']):.1f} "
        f"(mean over classes {100 * score['per_class']:.1f})"
        for split, score in found["scores"].items()
    ]
    show(f"{found['start']:8} {labels:>12} ({found['count']:,} images)   {', '.join(accuracies)}")


def stored_points(path: Path) -> list[dict[str, Any]]:
    """Return the points of finetune.json, none without the file.

    Raises: ValueError if it is not ours; nothing is then overwritten.
    """
    try:
        with os.fdopen(open_regular(path, LARGEST), "rb") as file:
            points = json.loads(file.read(LARGEST))["points"]
        if all(_is_point(found) for found in points):
            return list(points)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OSError(f"{shown(path)}: {error}; move it away") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{shown(path)} holds no points of fine-tuning; move it away")


def _is_point(found: dict[str, Any]) -> bool:
    """Return True if what is shown of a point can be shown. Raises: KeyError or TypeError if something is not there."""
    right = isinstance(found["labels"], str) and found["start"] in STARTS and type(found["count"]) is int
    for score in found["scores"].values():
        shares = score["accuracy"], score["per_class"]
        right = right and all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
        right = right and type(score["images"]) is int and score["images"] > 0
    return right


def keep(folder: Path, points: list[dict[str, Any]], pictures: dict[str, bytes]) -> None:
    """Write the points, and the figure if there is one: all or none."""
    files: dict[str, Content] = {"finetune.json": json.dumps({"points": points}, indent=2) + "\n", **pictures}
    write_all({folder / name: content for name, content in files.items()})
