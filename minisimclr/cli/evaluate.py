"""`minisimclr evaluate`: measure how well h, and z, tell the classes apart."""

from __future__ import annotations

import argparse
import dataclasses
import json

from .. import report
from ..data import Dataset
from ..protocols.compare import compare
from ..storage import Content, write_all
from ..training.run import Run, load_run
from .common import add_run, remark, reported, splits_of_run
from .console import saying, show

HELP = "measure how well h, and z, tell the classes apart"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --k, --knn-temperature, and the run."""
    parser.add_argument("--k", type=int, default=20, metavar="N", help="number of neighbours that vote (default: 20)")
    parser.add_argument(
        "--knn-temperature",
        type=float,
        default=0.1,
        metavar="T",
        help="a neighbour of cosine similarity s votes with weight exp(s/T) (default: 0.1)",
    )
    add_run(parser)


def run_command(options: argparse.Namespace) -> None:
    """Evaluate a run.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    run = load_run(options.run, options.device)
    remark(run)
    evaluated(run, *splits_of_run(run, options), k=options.k, temperature=options.knn_temperature)


def evaluated(run: Run, train: Dataset, tests: dict[str, Dataset], k: int, temperature: float) -> None:
    """Print the table and keep it, with the pictures, in the run's folder."""
    assert run.folder is not None
    with saying("comparing representations") as say:
        scores = compare(run, train, tests, k=k, temperature=temperature, progress=say)
    text = report.table(scores)
    classes = len(train.class_names)
    settings = f"accuracy in percent; {classes} classes, chance {100 / classes:.1f}; k = {k}"
    results = {
        "steps": run.steps,
        "k": k,
        "temperature": temperature,
        "train_images": len(train),
        "test_images": {name: len(data) for name, data in tests.items()},
        "scores": [dataclasses.asdict(score) for score in scores],
    }
    pictures = reported(run, train, next(iter(tests.values())), scores)
    show(f"\n{text}\n\n{settings}")
    files: dict[str, Content] = {
        "table.txt": f"{text}\n\n{settings}\n",
        "results.json": json.dumps(results, indent=2) + "\n",
    }
    here = {run.folder / name: content for name, content in files.items()}
    write_all({**here, **pictures})  # all or none: they belong together
