"""`minisimclr report`: make the page and the pictures of a run again."""

from __future__ import annotations

import argparse

from .. import report
from ..protocols.compare import other_images
from ..storage import write_all
from ..training.run import load_run
from .common import add_run, remark, reported, splits_of_run
from .console import note, show

HELP = "make the page of a run, report.html, and its pictures again"
add_options = add_run


def run_command(options: argparse.Namespace) -> None:
    """Write the page and the pictures into the folder of the run, and print their paths.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    run = load_run(options.run, options.device)
    remark(run)
    train, tests = splits_of_run(run, options, labelled=False)
    if options.data is None and (text := other_images(run, train, run.config.data)):
        note(f"{text}; the page shows these; --data names others")
    counts = {name: len(data) for name, data in tests.items()}
    scores, vote = report.read_results(options.run / "results.json", run.steps, len(train), counts)
    files = reported(run, train, next(iter(tests.values())), scores, vote)
    write_all(files)  # all or none: they show the same run
    show(*map(str, files))
