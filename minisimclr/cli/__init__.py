"""The command line, one file a command.

Exit codes: 0 done; 1 a check failed; 2 usage, configuration or data refused; 3 training turned non-finite;
4 input/output; 129 SIGHUP; 130 SIGINT; 143 SIGTERM. An error is one line; --debug shows where it came from.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any, NoReturn

from ..processor import set_threads
from ..training.distributed import RankError
from ..training.run import Interrupted
from . import data, demo, duplicates, embed, evaluate, export, finetune, gradcheck, neighbours, pretrain, report
from .console import complain, exit_code, explanation
from .streams import safe_streams

COMMANDS = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "finetune": finetune,
    "report": report,
    "embed": embed,
    "export": export,
    "neighbours": neighbours,
    "duplicates": duplicates,
    "data": data,
    "gradcheck": gradcheck,
}


def entry() -> NoReturn:
    """Run a command as a process: what `minisimclr` and `python -m minisimclr` do."""
    code: Any = 130
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # __main__.py: until here Ctrl-C ended us without a word
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt:
        pass
    except SystemExit as stop:
        code = stop.code
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; what is left is Python's own exit
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Raises: SystemExit for --help and for options that cannot be read; with --debug, what the command raised.
    """
    try:
        with safe_streams():
            try:
                return _run(arguments)
            except KeyboardInterrupt:
                complain("stopped")
                return 130
    except KeyboardInterrupt:  # a second one, or one before there was anything to stop
        return 130


def _run(arguments: list[str] | None) -> int:
    debug = True
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:
            debug = False
            sys.stdout.flush()  # the help may have nowhere to go
            raise
        debug = options.debug
        set_threads(options.threads)
        code: int | None = options.command(options)
        sys.stdout.flush()
        return code or 0
    except Exception as error:
        if debug:
            raise
        return _explained(error)


def _explained(error: Exception) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, Interrupted):
        print(f"minisimclr: {error}", file=sys.stderr)
    elif not isinstance(error, RankError):  # of that one, the rank that failed has spoken
        complain("".join(f"{note}: " for note in getattr(error, "__notes__", ())) + explanation(error))
    return exit_code(error)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minisimclr", description="SimCLR from scratch in NumPy and CuPy.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP[0].upper() + module.HELP[1:] + ".")
        sub.set_defaults(command=module.run_command)
        sub.add_argument(
            "--threads",
            type=int,
            default=None,
            metavar="N",
            help="number of threads (default: $MINISIMCLR_THREADS, else the usable cores, at most $OMP_NUM_THREADS)",
        )
        sub.add_argument("--debug", action="store_true", help="show a traceback for an error")
        module.add_options(sub)
    return parser
