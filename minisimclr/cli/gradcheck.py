"""`minisimclr gradcheck`: hold every operation's value and gradient against independent ones."""

from __future__ import annotations

import argparse
import os
import sys

from ..checks import report
from .console import saying

HELP = "hold every operation's value and gradient against independent ones"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none of its own."""


def run_command(options: argparse.Namespace) -> int:
    with saying("checking every operation"):
        text, passed = report.main_table(color=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(text)
    return 0 if passed else 1
