"""`minisimclr embed`: write h and z of every image, with its file, class and split."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..data import Dataset
from ..protocols.compare import BLOCK, LARGE_BLOCK
from ..protocols.table import ENDINGS, Rows, require_writer, written
from ..storage import shown, write
from ..training.folders import require_output
from ..training.run import load_run
from .common import add_run, path_name
from .console import saying, show
from .sources import all_splits, chosen_reading

HELP = "write h and z of every image, with its file, class and split"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --to, and the run."""
    help = f"file to write, by its ending: {', '.join(ENDINGS)}"
    parser.add_argument("--to", type=path_name, required=True, metavar="FILE", help=help)
    add_run(parser)


def run_command(options: argparse.Namespace) -> None:
    """Embed all splits of a data set, or the one that --split names.

    Raises: CheckpointError for a run that cannot be loaded; DataError for data that cannot be used; ValueError for an
            ending that is not known.
    """
    require_writer(options.to)
    require_output(options.to)  # before the work, not after it
    run = load_run(options.run, options.device)
    source = options.data or run.config.data
    require_output(options.to, source)  # now that the run has said what it reads
    reading = chosen_reading(options, "" if options.data else run.config.reading)
    with saying(f"loading {source}"):
        found = all_splits(run, source, reading, options.split)
    rows = Rows(source)

    def content(file: object) -> None:
        for split, data in found.items():
            with saying(f"embedding {split}"):
                batch = BLOCK if type(data) is Dataset else LARGE_BLOCK
                rows.add(split, data, *run.embed(data, batch=batch))
        written(file, options.to, rows)

    # The file is open before the first image is embedded: a folder that cannot be written to is noticed now.
    write(Path(options.to), content)
    show(f"{shown(options.to)}: {rows.words()}")
