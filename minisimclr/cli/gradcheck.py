"""`minisimclr gradcheck`: compare every operation with independent references."""

from __future__ import annotations

import argparse
import os
import sys

from .console import saying

HELP = "compare the value and the gradient of every operation with independent references"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def run_command(options: argparse.Namespace) -> int:
    """Print the table of all operations, and return 1 if one of them fails."""
    from ..checks import report  # here, because it loads SciPy's special functions, which no other command needs

    with saying("checking every operation"):
        text, passed = report.main_table(color=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(text, flush=True)
    return 0 if passed else 1
