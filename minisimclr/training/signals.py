"""Signals that ask a run to stop: the first waits for the end of the step.

A second signal acts at once. Without this the first would end Python in the midst of a step, or of a file. The session
looks at what was noted when a step is whole, saves, and raises Interrupted, whose signal is the command's exit code.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Signals that ask a run to stop; SIGHUP, which Windows lacks, is the end of its terminal.
STOPPING = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT, SIGTERM or SIGHUP instead of dying of it; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield received
        return
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    if before.get(STOPPING[-1]) == signal.SIG_IGN and len(STOPPING) == 3:
        del before[STOPPING[-1]]  # nohup: whoever asked for it wants the run to outlive the terminal

    def put_back() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)  # None: not set by Python

    def remember(signum: int, frame: Any) -> None:
        received.append(signum)
        put_back()

    for signum in before:
        signal.signal(signum, remember)
    try:
        yield received
    finally:
        put_back()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Keep signals that ask to stop from a process started inside: the training process decides when to stop."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker  # here: it takes time to import

    resource_tracker.ensure_running()  # else the first start runs it, and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def returns_run(error: BaseException | None) -> bool:
    """Return True for an interrupt in a notebook, and say so: `pretrain` then returns the run as far as it came."""
    ipython = sys.modules.get("IPython")  # whoever runs a notebook has imported it
    if getattr(error, "signum", None) != signal.SIGINT or not ipython or not ipython.get_ipython():
        return False
    print(f"minisimclr: {error}; this is the run so far", file=sys.stderr)
    return True
