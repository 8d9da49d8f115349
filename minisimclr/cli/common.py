"""The parts that several commands share: options, splits, and a free folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data import DataError, Dataset, load_dataset
from ..training.run import Run
from .console import saying


def add_device(
    parser: argparse.ArgumentParser, help: str = "device that computes; any will do, whichever trained the run"
) -> None:
    """Add --device."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=f"{help} (default: cpu)")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that looks at a run: --device, --data, and the run itself."""
    add_device(parser)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--data", default=None, help="folder or zip of images (default: those of the run)")


def splits(run: Run, source: str | None) -> tuple[Dataset, dict[str, Dataset]]:
    """Load the training split, and the splits to test on.

    Raises: DataError for data that cannot be used, or that has no classes.
    """
    source, size = source or run.config.data, run.config.size
    with saying(f"loading {source}"):
        train = load_dataset(source, "train", size=size)
        if len(train.class_names) < 2:
            raise DataError(f"{source}: evaluation needs labelled images: at least two folders, one for each class")
        tests = {"test": load_dataset(source, "test", size=size)}
        if source == "doodles":
            tests["unseen style"] = load_dataset(source, "unseen", size=size)
    return train, tests


def free_folder(wanted: Path) -> Path:
    """Return runs/demo, or the first of runs/demo-2, runs/demo-3 … that holds no run."""
    folder, number = wanted, 1
    while (folder / "checkpoint.npz").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
