"""The command line: demo, pretrain, evaluate, embed, report, gradcheck.

Exit codes: 0 done; 1 a check failed; 2 usage, configuration or data refused; 3 training turned non-finite;
4 input/output; 130 SIGINT; 143 SIGTERM. An error is one line; --debug shows where it came from.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from .. import backend
from ..processor import set_threads
from ..training.run import Interrupted
from ..training.train import NonFiniteError
from . import demo, embed, evaluate, gradcheck, pretrain, report
from .console import complain

COMMANDS = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "report": report,
    "embed": embed,
    "gradcheck": gradcheck,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Raises: SystemExit for --help and for options that cannot be read; with --debug, what the command raised.
    """
    options = _parser().parse_args(arguments)
    try:
        set_threads(options.threads)
        code: int | None = options.command(options)
        return code or 0
    except Exception as error:
        if options.debug:
            raise
        return _explained(error)
    except KeyboardInterrupt:
        complain("stopped")
        return 130


def _explained(error: Exception) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, Interrupted):
        print(f"minisimclr: {error}", file=sys.stderr)
        return 128 + error.signum
    code = 3 if isinstance(error, NonFiniteError) else 4 if isinstance(error, OSError) else 2
    if isinstance(error, BrokenPipeError):  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if isinstance(error, (ValueError, NonFiniteError)):
        complain(str(error))
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
    elif isinstance(error, MemoryError):  # CuPy's OutOfMemoryError is one too
        complain(f"not enough memory{backend.whose_memory(error)}; use a smaller --batch, --size or --width")
    elif isinstance(error, (RuntimeError, ImportError)):
        complain(str(error))
    else:
        complain(f"unexpected {type(error).__name__}: {error}; --debug shows where it came from")
        return 1
    return code


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minisimclr", description="SimCLR from scratch in NumPy and CuPy.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=module.run_command)
        sub.add_argument(
            "--threads",
            type=int,
            default=None,
            metavar="N",
            help="number of threads (default: $MINISIMCLR_THREADS, else the number of usable cores)",
        )
        sub.add_argument("--debug", action="store_true", help="show a traceback for an error")
        module.add_options(sub)
    return parser
