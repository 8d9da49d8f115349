"""The processor: threads, BLAS, and the memory that freed arrays leave behind.

Threads. NumPy releases Python's lock inside its array functions and its matrix products, so plain
Python threads run them side by side. A large product split by BLAS itself leaves everything
around it (the additions, the exponentials) on one core; so we split the *work* instead, into
blocks that fit a core's cache, and hold BLAS at one thread meanwhile:

    parallel(lambda rows: ..., blocks(total, size))

Each block writes its own part of the output, so the result does not depend on which thread takes
which block, and is the same bit for bit at any fixed number of threads.

Memory. A training step takes the arrays of the step before once more. But glibc, the C library of most Linux systems,
returns large ones to the system as soon as they are freed, and then the system must clear and map every page anew:
20,000 pages a step of ResNet-18, 9–14 % of its time. `keep_freed_memory` keeps them, as CuPy and PyTorch do on a GPU.
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

Item = TypeVar("Item")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # the numbers of malloc.h


# ── Threads ───────────────────────────────────────────────────────────────────────────────────────

_threads: int | None = None
_blas: threadpoolctl.ThreadpoolController | None = None
_inside = threading.local()  # .task is True in a thread that is already working on a block
_hold = threading.RLock()
_holders = 0  # how many blas_at_one_thread() are open now
_limiter: Any = None


def threads() -> int:
    """How many threads work: `set_threads`, else $MINISIMCLR_THREADS, else the cores we may use."""
    if _threads is not None:
        return _threads
    asked = os.environ.get("MINISIMCLR_THREADS", "")
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"MINISIMCLR_THREADS must be a whole number from 1 on, not {asked!r}")
        return int(asked)
    return _usable_cores()


def set_threads(count: int | None) -> None:
    """Use this many threads from now on; None returns to the default."""
    global _threads
    if count is not None and count < 1:
        raise ValueError(f"the number of threads must be at least 1, not {count}")
    _threads = count


@functools.cache
def blas_kernels() -> str:
    """Which BLAS computes the products, and for which processor: other kernels round differently."""
    found = {
        f"{library['internal_api']} {library.get('architecture', '')}".strip()
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    }
    return ", ".join(sorted(found))


@functools.cache
def _usable_cores() -> int:
    """The cores this process may use: its affinity, and the quota of its control group if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()  # "max 100000" when there is none: int() refuses it
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def blocks(total: int, size: int) -> list[slice]:
    """Cut range(total) into consecutive slices of at most `size`."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def few_large_calls(xp: ModuleType) -> bool:
    """Whether few calls on large arrays beat many on parts that fit a cache: on a GPU."""
    return xp is not np


def pieces(xp: ModuleType, total: int, size: int) -> list[slice]:
    """How to walk through `total` rows: in blocks of `size`, which fit a core's cache; on a GPU all at once.

    There every call launches a kernel, which costs microseconds whatever its size: a few large ones win.
    """
    return blocks(total, max(1, total) if few_large_calls(xp) else size)


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
        # each in a copy of our context: what NumPy is told not to warn of here holds there too
        others = [_Worker.start(functools.partial(copy_context().run, work)) for _ in range(workers - 1)]
        try:
            work()  # the calling thread works too
        finally:
            errors = [other.wait() for other in others]
        for error in errors:
            if error is not None:
                raise error


class _Worker:
    """A thread that sleeps between jobs. Two bare locks wake it in a third of an executor's time."""

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
        """Have an idle worker, or a new one, do this job; every start is followed by one wait."""
        try:
            worker = cls.idle.pop()  # atomic: two threads never get the same one
        except IndexError:
            worker = cls()
        worker.job = job
        worker.go.release()
        return worker

    def wait(self) -> BaseException | None:
        """Until the job is done; the exception that ended it, if one did.

        By now the caller has emptied the queue. A worker that is not yet awake has nothing left to do,
        so its job is taken back: on a busy machine waking it could take longer than all of the work.
        """
        if self.go.acquire(blocking=False):
            self.job = None
        else:
            self.done.acquire()
        error, self.error = self.error, None
        _Worker.idle.append(self)
        return error

    def live(self) -> None:
        while True:
            self.go.acquire()
            assert self.job is not None
            try:
                self.job()
            except BaseException as error:
                self.error = error
            self.job = None  # keep nothing of the caller's alive
            self.done.release()


@contextlib.contextmanager
def blas_at_one_thread() -> Iterator[None]:
    """Hold BLAS at one thread; what it was before is restored when the last holder leaves.

    A long computation (a training run) holds it once at the outside; then each `parallel` inside is free.
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
    """A forked child has none of its parent's threads: it starts its own pool, with fresh locks."""
    global _hold, _holders
    _hold, _holders = threading.RLock(), 0
    _Worker.idle.clear()
    _inside.task = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def keep_freed_memory() -> None:
    """From now on this process keeps the memory of freed arrays for the next ones. Its peak stays the same.

    Other C libraries than glibc are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # take large arrays, too, from the heap …
        mallopt(M_TRIM_THRESHOLD, -1)  # … and never shrink it
