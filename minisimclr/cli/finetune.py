"""`minisimclr finetune`: train a classifier on few labels, from a run or from scratch."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..evaluation.scores import uncertainty
from ..protocols.compare import check_data
from ..protocols.finetune import CURVE, STARTS, found_among, identity, labels_of_each, point
from ..report.label_curve import label_curve
from ..storage import Content, changing, open_regular, shown, write_all
from ..training.run import Run, load_run
from .common import add_run, splits_of_run
from .console import note, saying, show

HELP = "train a classifier on few labels, from a run's encoder or from scratch"
RESULTS = ("count", "scores", "seconds", "data")  # what a stored point has beside its identity
LARGEST = 1 << 24  # size of finetune.json, bytes; a point takes 500


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --labels, --from, --curve, the settings of the training, and the run."""
    parser.add_argument(
        "--from",
        dest="start",
        choices=STARTS,
        default=None,
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
        default=None,
        metavar="N",
        help="labels: a share as 1%%, or a number for each class (default: 1%%)",
    )


def run_command(options: argparse.Namespace) -> None:
    """Fine-tune, or draw the curve; points that are there already are not made again.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used, ValueError for
            options that do not go together.
    """
    given = {"--labels": options.amount, "--from": options.start}
    if options.curve and (extra := [name for name, value in given.items() if value is not None]):
        raise ValueError(f"--curve takes its own labels, from both starts: leave out {' and '.join(extra)}")
    run = load_run(options.run, options.device)
    source = options.data or run.config.data
    train, tests = splits_of_run(run, options)
    for line in check_data(run, train, tests, source, other=options.data is not None):
        note(line)
    made = {name: getattr(options, name) for name in ("epochs", "batch", "lr", "seed")}
    wanted = _of_curve(train) if options.curve else [(given["--labels"] or "1%", given["--from"] or "simclr")]
    if given["--labels"] is not None:
        labels_of_each(train.labels, given["--labels"])  # before the work, not after it
    chosen, name = [], shown(Path(source).name or source)
    for labels, start in wanted:
        points = stored_points(options.run / "finetune.json")  # each time: another command may have made it meanwhile
        found = found_among(points, identity(run, train, labels, start, **made), tests)
        if found is None:
            found = _made(run, train, tests, labels, start, made) | {"data": source}
            keep(options.run, [found], {})  # after each point: what was made is not made again
        _tell(found)
        chosen.append(found)
    if options.curve:
        title = f"{name}, {next(iter(tests))}: accuracy after fine-tuning"
        keep(options.run, chosen, {"finetune.png": label_curve(chosen, next(iter(tests)), title)})
        show(str(options.run / "finetune.png"))


def _of_curve(train: Dataset) -> list[tuple[str, str]]:
    """Return labels and start of each point of the curve; say so if there are too few images for all of it."""
    most = max((train.labels == label).sum() for label in set(train.labels))
    counts = [count for count in CURVE if count <= most] or [int(most)]
    if len(counts) < len(CURVE):
        note(f"no class has more than {most} labelled images: the curve ends at {counts[-1]} labels a class")
    return [(str(count), start) for count in counts for start in STARTS]


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


def _known_by(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stored point is known by: its identity, and the images of each split that it was scored on."""
    scored = {split: (score["images"], score.get("fingerprint")) for split, score in found["scores"].items()}
    return {name: value for name, value in found.items() if name not in RESULTS} | {"scores": scored}


def keep(folder: Path, made: Sequence[Mapping[str, Any]], pictures: dict[str, bytes]) -> None:
    """Add the points to those that are stored, and write the figure if there is one: all or none.

    What another command stored meanwhile stays, and of two points that are known by the same the first.

    Raises: what `stored_points` raises; TimeoutError if another command does not finish writing.
    """
    path = folder / "finetune.json"
    with changing(path):
        points = stored_points(path)
        for found in made:
            if not any(_known_by(p) == _known_by(found) for p in points):
                points.append(dict(found))
        files: dict[str, Content] = {path.name: json.dumps({"points": points}, indent=2) + "\n", **pictures}
        write_all({folder / name: content for name, content in files.items()})
