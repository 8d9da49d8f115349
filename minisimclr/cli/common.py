"""The parts that several commands share: options, the splits of a run, and a free folder."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from .. import report
from ..data import DataError, Dataset
from ..protocols.compare import Score
from ..training import record
from ..training.folders import require_free
from ..training.run import Run
from .console import note, saying
from .sources import add_reading, chosen_reading, splits

MOST_RUNS = 1000  # number of folders that are tried; the error of the last one is then told


def add_device(
    parser: argparse.ArgumentParser, help: str = "device that computes; any will do, whichever trained the run"
) -> None:
    """Add --device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"{help} (default: cpu)")


def add_run(parser: argparse.ArgumentParser, labels: str = "--labels") -> None:
    """Add the options of a command that looks at a run: --device, --data, how that is read, and the run itself."""
    add_device(parser)
    parser.add_argument("run", type=path_name, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--data", type=some_text, default=None, help="folder or zip of images (default: those of the run)"
    )
    add_reading(parser, labels=labels)


def splits_of_run(
    run: Run, options: argparse.Namespace, *, labelled: bool = True
) -> tuple[Dataset, dict[str, Dataset]]:
    """Load the training split of a run, or of --data, and the splits to test on.

    labelled  False takes data without labels, too; the training images are then looked at in place of test images

    Raises: DataError for data that cannot be used, or that has no labels.
    """
    stored = "" if options.data else run.config.reading  # other data have other names
    try:
        return splits(run, options.data, chosen_reading(options, stored), labelled=labelled)
    except DataError as error:
        source = Path(run.config.data)
        if options.data or source.exists():
            raise
        raise DataError(f"{error}; if the images of the run lie elsewhere now, --data says where") from None


def free_folder(wanted: Path) -> Path:
    """Return the wanted folder, or the first of wanted-2, wanted-3 … in which a run can be begun."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            require_free(folder)
        except (ValueError, OSError):
            if number < MOST_RUNS:
                continue
        break
    return folder


def some_text(text: str) -> str:
    """Return the value of an option. Raises: ArgumentTypeError if it is empty: "." is not what was meant."""
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def path_name(text: str) -> Path:
    """Return the path that an option names. Raises: ArgumentTypeError for an empty name."""
    return Path(some_text(text))


def remark(run: Run) -> None:
    """Say what is wrong with the record of a run, if anything is."""
    assert run.folder is not None
    for line in record.remarks(run.folder / "metrics.jsonl", run.steps):
        note(line)


def reported(run: Run, train: Dataset, test: Dataset, scores: Sequence[Score], vote: report.Vote) -> dict[Path, bytes]:
    """Look at a run, and return the files of its report; say so if they show no curves.

    vote  the settings of kNN that the scores were made with: the table and the rest of the page then tell the same
    """
    assert run.folder is not None
    with saying("looking at neighbours and drawing"):
        findings = report.look(run, train, test, scores, vote)
        files = report.drawn(findings)
    if not findings.history:
        note("report.html has no curves: metrics.jsonl holds nothing to draw")
    return {run.folder / name: content for name, content in files.items()}
