"""Standard streams that cannot spoil a command, be they closed, full or not there at all.

Python makes a stream None that was closed when it started, raises in the midst of a print when the reader is gone or
the encoding lacks a letter, and once more at the exit. A command's work must not be lost for that. So while it runs,
whatever goes wrong on stderr is passed over; so is a reader of stdout that is gone (`| head -1`); and a disk that is
full under stdout is an error of the command.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def safe_streams() -> Iterator[None]:
    """Put safe streams in the places of sys.stdout and sys.stderr."""
    _fill_gaps()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = _Safe(before[0] or nowhere, forgiving=False)
        sys.stderr = _Safe(before[1] or nowhere, forgiving=True)
        try:
            yield
        finally:
            with suppress(OSError):
                sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def _fill_gaps() -> None:
    """Open what is closed of the descriptors 0, 1 and 2: a file of ours would get the number, and C's messages."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


class _Safe:
    """A stream whose `write` and `flush` do not raise, but for a disk that is full if it is not forgiving."""

    def __init__(self, stream: Any, forgiving: bool) -> None:
        self._stream, self._forgiving = stream, forgiving
        self._error: OSError | None = None  # argparse, for one, passes over what `write` raises: `flush` tells again

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; letters that the encoding lacks are spelled out."""
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self._error is not None:
            raise self._error
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        """Return True on a terminal, and False for a stream that is closed."""
        try:
            return bool(self._stream.isatty())
        except (OSError, ValueError):
            return False

    def _failed(self, error: Exception) -> None:
        """Lead the stream to nowhere, so that the exit is quiet too, and tell what must be told."""
        with suppress(OSError, ValueError):
            number, nowhere = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
        gone = (errno.EPIPE, errno.EBADF, errno.EIO)  # the reader, the descriptor, the terminal
        if isinstance(error, OSError) and error.errno not in gone and not self._forgiving:
            self._error = OSError(error.errno, error.strerror, "standard output")
            raise self._error from None
