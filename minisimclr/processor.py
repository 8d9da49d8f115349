"""The processor: threads, BLAS, and memory that is kept for the next step.

Nothing here changes what is computed: without this file all results would be the same, and take longer.

Threads. NumPy releases Python's lock inside its array functions and its matrix products, so plain Python threads run
them side by side. When BLAS itself splits a large product, everything between the products (the additions, the
exponentials) stays on one core. So we split the *work* instead, into blocks that fit a core's cache, and hold BLAS at
one thread meanwhile:

    parallel(lambda rows: ..., blocks(total, size))

Each block writes its own part of the output. So the result does not depend on which thread takes which block, and is
the same bit for bit at any fixed number of threads.

Memory. A training step allocates arrays of the same sizes as the step before. But glibc, the C library of most Linux
systems, returns large ones to the system as soon as they are freed, and then the system must clear and map every page
anew: 20,000 pages a step of ResNet-18, 9–14 % of its time. `keep_freed_memory` makes glibc keep it, as CuPy does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import numpy as np
import threadpoolctl

from .cores import usable_cores
from .values import by_default, whole

Item = TypeVar("Item")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers by which glibc knows two settings of malloc, from malloc.h


# ── Threads ───────────────────────────────────────────────────────────────────────────────────────

_threads: int | None = None  # set by `set_threads`; None: not set
_blas: threadpoolctl.ThreadpoolController | None = None
_inside = threading.local()  # its attribute `task` is True in a thread that is already working on a block
_hold = threading.RLock()  # guards the two names below
_holders = 0  # number of `blas_at_one_thread` that are open now
_limiter: Any = None  # restores BLAS's former number of threads


def threads() -> int:
    """Return the number of threads: that of `set_threads`, else $MINISIMCLR_THREADS, else the number of usable cores.

    $OMP_NUM_THREADS, by which clusters say how many threads a job may have, is a limit to the last of these.

    Raises: ValueError if $MINISIMCLR_THREADS is no whole number from 1 on.
    """
    if _threads is not None:
        return _threads
    asked = os.environ.get("MINISIMCLR_THREADS", "")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(f"MINISIMCLR_THREADS must be a whole number from 1 on, not {asked!r}")
        return int(asked)
    most = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2": 2 are for regions inside regions
    return min(usable_cores(), int(most)) if most.isdecimal() and int(most) else usable_cores()


def set_threads(count: int | None) -> None:
    """Use this many threads from now on; None returns to the default.

    >>> set_threads(2)
    >>> set_threads(None)

    Raises: ValueError for a number below 1.
    """
    global _threads
    _threads = None if count is None else whole("the number of threads", count, 1)


@functools.cache
def blas_kernels() -> str:
    """Name the BLAS library and its kernels. Checkpoints store the name, because other kernels round otherwise."""
    found = {
        f"{library['internal_api']} {library.get('architecture', '')}".strip()
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    }
    return ", ".join(sorted(found))


def blocks(total: int, size: int) -> list[slice]:
    """Cut range(total) into consecutive slices of at most `size`."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def prefers_large_calls(xp: ModuleType) -> bool:
    """Return True on a GPU, where each call has a fixed cost; on a CPU small blocks, which stay in its cache, win."""
    return xp is not np


def pieces(xp: ModuleType, total: int, size: int) -> list[slice]:
    """Cut `total` rows into blocks of `size`, which fit a core's cache; on a GPU into one block of all rows."""
    return blocks(total, max(1, total) if prefers_large_calls(xp) else size)


@by_default  # the threads inherit NumPy's answers to floating-point errors from the caller
def parallel(task: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Run task(item) for every item on `threads()` threads, BLAS held at one thread each.

    Tasks must not depend on each other and must write to disjoint places. The first exception, if
    any, is raised here after all threads have stopped. A task that calls `parallel` again runs the
    inner items itself.
    """
    items = list(items)
    workers = min(threads(), len(items))
    if workers <= 1 or getattr(_inside, "task", False):
        for item in items:
            task(item)
        return
    queue = iter(items)  # `next` on a list iterator is atomic, so the threads share it as their queue

    def work() -> None:
        _inside.task = True
        try:
            for item in queue:
                task(item)
        except BaseException:
            for _ in queue:  # let the other threads find the queue empty
                pass
            raise
        finally:
            _inside.task = False

    with blas_at_one_thread():
        # Each worker runs in a copy of our context: warnings that are switched off here are off there too.
        others = [_Worker.start(functools.partial(copy_context().run, work)) for _ in range(workers - 1)]
        try:
            work()  # the calling thread works too
        finally:
            errors = [other.wait() for other in others]
        for error in errors:
            if error is not None:
                raise error


class _Worker:
    """A thread that sleeps between jobs. Two bare locks wake it in a third of the time that an executor takes."""

    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.error: BaseException | None = None
        self.go, self.done = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.done.acquire()
        threading.Thread(target=self.live, name="minisimclr", daemon=True).start()

    @classmethod
    def start(cls, job: Callable[[], None]) -> _Worker:
        """Give this job to an idle worker, or to a new one; every `start` is followed by one `wait`."""
        try:
            worker = cls.idle.pop()  # atomic: two threads never get the same one
        except IndexError:
            worker = cls()
        worker.job = job
        worker.go.release()
        return worker

    def wait(self) -> BaseException | None:
        """Wait for the job and return the exception that ended it, or None.

        If the worker has not woken up yet, nothing is left for it to do (the caller has emptied the queue), so we
        take the job back instead of waiting: on a busy machine, waking a worker could take longer than all of the work.
        """
        if self.go.acquire(blocking=False):
            self.job = None
        else:
            self.done.acquire()
        error, self.error = self.error, None
        _Worker.idle.append(self)
        return error

    def live(self) -> None:
        """Sleep until there is a job, do it, and signal that it is done; repeat as long as the program runs."""
        while True:
            self.go.acquire()
            assert self.job is not None
            try:
                self.job()
            except BaseException as error:
                self.error = error
            self.job = None  # else the worker would keep the caller's arrays alive
            self.done.release()


@contextlib.contextmanager
def blas_at_one_thread() -> Iterator[None]:
    """Hold BLAS at one thread; its former number of threads is restored when the last holder leaves.

    A long computation, such as a training run, holds BLAS once for all steps, so that `parallel` need not do it.
    """
    global _blas, _holders, _limiter
    with _hold:
        if _holders == 0:
            if _blas is None:
                _blas = threadpoolctl.ThreadpoolController()
            _limiter = _blas.limit(limits=1, user_api="blas")
            _limiter.__enter__()
        _holders += 1
    try:
        yield
    finally:
        with _hold:
            _holders -= 1
            if _holders == 0:
                _limiter.__exit__(None, None, None)


def _forget_threads() -> None:
    """Start afresh in a forked child, which has none of its parent's threads: no workers, and new locks."""
    global _hold, _holders
    _hold, _holders = threading.RLock(), 0
    _Worker.idle.clear()
    _inside.task = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────


def memory_is_kept() -> bool:
    """Return True if this process has asked to keep the memory of freed arrays, as a training run does."""
    return keep_freed_memory.cache_info().currsize > 0


@functools.cache
def keep_freed_memory() -> None:
    """Keep the memory of freed arrays for the next ones, from now on (glibc only); the peak stays the same."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # take large arrays, too, from the heap …
        mallopt(M_TRIM_THRESHOLD, -1)  # … and never shrink it
