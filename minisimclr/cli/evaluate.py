"""`minisimclr evaluate`: measure how well h, and z, tell the classes apart."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from .. import report
from ..data import Dataset, sound
from ..protocols.compare import PROBES, Score, check_data, compare
from ..report.table import confusion_matrix, details
from ..storage import Content, shown, write_all
from ..training.run import Run, fingerprint, load_run
from ..values import number, whole
from .common import add_run, remark, reported, splits_of_run
from .console import note, saying, show

MOST_KEPT = 100  # number of classes of which results.json has the confusion; of 1,000 it would have 7 MB
HELP = "measure how well h, and z, tell the classes apart"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --k, --knn-temperature, --probe, and the run."""
    parser.add_argument("--k", type=int, default=20, metavar="N", help="number of neighbours that vote (default: 20)")
    parser.add_argument(
        "--knn-temperature",
        type=float,
        default=0.1,
        metavar="T",
        help="a neighbour of cosine similarity s votes with weight exp(s/T) (default: 0.1)",
    )
    parser.add_argument(
        "--probe",
        choices=tuple(PROBES),
        default="quick",
        help="linear classifier: quick, L-BFGS with the best of 4 penalties; transfer, with the best of 45, the "
        "paper's protocol; sgd, 90 epochs of SGD (default: quick)",
    )
    add_run(parser)


def run_command(options: argparse.Namespace) -> None:
    """Evaluate a run.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    run = load_run(options.run, options.device)
    remark(run)
    source = options.data or run.config.data
    train, tests = splits_of_run(run, options)
    for line in check_data(run, train, tests, source, other=options.data is not None):
        note(line)
    evaluated(run, train, tests, k=options.k, temperature=options.knn_temperature, probe=options.probe, source=source)


def evaluated(
    run: Run,
    train: Dataset,
    tests: dict[str, Dataset],
    *,
    k: int,
    temperature: float,
    probe: str = "quick",
    source: str = "doodles",
) -> None:
    """Print the table and keep it, with the pictures, in the run's folder.

    Results on other images than those of the run are kept beside its own, under the name of these images.
    """
    assert run.folder is not None
    if not 0 < number("--knn-temperature", temperature) < math.inf:  # NaN is refused as well
        raise ValueError(f"--knn-temperature must be above 0 and finite, not {temperature:g}")
    if whole("--k", k, 1) > len(train):
        note(f"k = {k} neighbours are more than the {len(train)} training images; k is now {len(train)}")
        k = len(train)
    with saying("comparing representations") as say:
        scores = compare(run, train, tests, k=k, temperature=temperature, probe=probe, progress=say)
    (train,), tests = sound(train), {split: sound(data)[0] for split, data in tests.items()}
    if k > len(train):
        note(f"only {len(train)} training images could be decoded; k is now {len(train)}")
        k = len(train)
    images, name = fingerprint(train), shown(Path(source).name or source)
    own = run.images in ("", images)
    made = {"data": source, "images": images, "steps": run.steps, "k": k, "temperature": temperature, "probe": probe}
    contents = _contents(scores, train, tests, made, name)
    show("\n" + contents["table.txt"].rstrip("\n"))
    files = {_kept_as(file, "" if own else f"{name}-{images[-8:]}"): content for file, content in contents.items()}
    # The pictures are of the images that the run was trained on.
    vote = report.Vote(k, temperature)
    pictures = reported(run, train, next(iter(tests.values())), scores, vote) if own else {}
    here: dict[Path, Content] = {run.folder / file: content for file, content in files.items()}
    write_all({**here, **pictures})  # all or none: they belong together
    if not own:
        show(f"These are not the run's images: the results are kept as {', '.join(files)}")


def _contents(
    scores: list[Score], train: Dataset, tests: dict[str, Dataset], made: dict[str, Any], name: str
) -> dict[str, str]:
    """Return the results as files, by name."""
    counts, classes = {split: len(data) for split, data in tests.items()}, len(train.class_names)
    found = next(score for score in scores if score.name == "SimCLR, h").probe_confusion
    settings = (
        f"{name}: accuracy in percent, ± its uncertainty by the number of test images; {classes} classes, "
        f"chance {100 / classes:.1f}; k = {made['k']}; probe {made['probe']}"
    )
    results = {
        **made,
        "train_images": len(train),
        "test_images": counts,
        "scores": [score.as_dict() for score in scores],
        "majority": {split: confusion.majority for split, confusion in found.items()},
        "class_names": list(train.class_names),
        "confusion": {split: confusion.counts.tolist() for split, confusion in found.items() if classes <= MOST_KEPT},
    }
    matrices = [f"{split}\n{confusion_matrix(confusion, train.class_names)}" for split, confusion in found.items()]
    return {
        "table.txt": f"{report.table(scores, counts)}\n\n{settings}\n{details(scores, train.class_names)}\n",
        "confusion.txt": "\n\n".join(["SimCLR, h, linear: a row for each class, a column for what it was taken for",
                                      *matrices]) + "\n",
        "results.json": json.dumps(results, indent=2) + "\n",
    }  # fmt: skip


def _kept_as(file: str, of: str) -> str:
    """Return the name of a file of results: of those on other images it says which."""
    stem, _, kind = file.rpartition(".")
    return f"{stem}-{re.sub('[^A-Za-z0-9]+', '-', of)[-60:].strip('-')}.{kind}" if of else file
