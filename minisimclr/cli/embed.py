"""`minisimclr embed`: write h and z of every image to an .npz file."""

from __future__ import annotations

import argparse

import numpy as np

from ..data import load_dataset
from ..evaluation.embed import embed
from ..storage import require_replaceable, write
from ..training.run import load_run
from .common import add_run, path_name
from .console import show
from .sources import chosen_reading

HELP = "write h and z of every image to an .npz file"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --to, and the run."""
    parser.add_argument("--to", type=path_name, required=True, metavar="FILE.npz", help="file to write")
    add_run(parser)


def run_command(options: argparse.Namespace) -> None:
    """Embed a split of a data set.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    require_replaceable(options.to)  # before the work, not after it
    run = load_run(options.run, options.device)
    reading = chosen_reading(options, "" if options.data else run.config.reading)
    source = options.data or run.config.data
    data = load_dataset(source, options.split or "test", size=run.config.size, reading=reading)
    h, z = embed(run.model, data.images)
    names = np.array(data.class_names)
    write(options.to, lambda file: np.savez(file, h=h, z=z, labels=data.labels, class_names=names))
    show(f"{options.to}: h {h.shape}, z {z.shape}, labels, class_names")
