"""Ranks without MPI: threads of one process that share a batch, so that the arithmetic is tested in a second.

    results = on_ranks(3, lambda ranks: ranks.all_gather(np.array([ranks.rank])))

The real thing, processes under mpiexec, is tested by test_distributed_mpi.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

import numpy as np

from minisimclr.backend import device_of, is_array, to_device, to_numpy

SECONDS = 60  # a rank that waits longer for the others is stuck


class ThreadRanks:
    """One of several threads, as collective.Ranks."""

    def __init__(self, rank: int, size: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._slots, self._barrier = rank, size, slots, barrier
        self.sent = 0  # bytes that this rank gave

    def all_gather(self, array: Any) -> Any:
        """Stack the arrays of all ranks. A shape or dtype that differs is refused, as MPI would mix up the bytes."""
        assert is_array(array), type(array)  # a number has no dtype to send
        device, array = device_of(array), to_numpy(array)  # a GPU's arrays travel through the host
        self.sent += array.nbytes
        self._slots[self.rank] = array.copy()
        self._barrier.wait()
        given = list(self._slots)
        self._barrier.wait()  # nobody writes before all have read
        assert len({(a.shape, a.dtype) for a in given}) == 1, [(a.shape, a.dtype) for a in given]
        return to_device(np.stack(given), device)

    def all_reduce(self, array: Any) -> Any:
        """Add up in the order of the ranks."""
        total, *others = self.all_gather(array)
        for part in others:
            total = total + part
        return total

    def broadcast(self, array: Any) -> Any:
        """Return the array of rank 0."""
        return self.all_gather(array)[0]


def on_ranks(size: int, task: Callable[[Any], Any]) -> list[Any]:
    """Run task(ranks) on `size` threads, and return what they returned. The first exception is raised here."""
    slots: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=SECONDS)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = Context().run(task, ThreadRanks(rank, size, slots, barrier))
        except BaseException as error:
            errors.append(error)
            barrier.abort()  # the others stop waiting

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results
