"""`minisimclr report`: draw the pictures of a run again."""

from __future__ import annotations

import argparse

from .. import report
from ..training.run import load_run
from .common import add_run, leave_out, remark, splits_of_run
from .console import show

HELP = "draw the pictures of a run again"
add_options = add_run


def run_command(options: argparse.Namespace) -> None:
    """Draw the pictures into the folder of the run, and print their paths.

    Raises: CheckpointError for a run that cannot be loaded, DataError for data that cannot be used.
    """
    run = load_run(options.run, options.device)
    remark(run)
    train, tests = splits_of_run(run, options)
    paths = report.draw_all(run, train, next(iter(tests.values())), options.run)
    leave_out(path.name for path in paths)
    show(*map(str, paths))
