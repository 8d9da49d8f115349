"""Data parallelism through MPI: processes, on one machine or many, share each batch.

    mpiexec -n 4 minisimclr pretrain --distributed

Each rank makes the views of its share of the images, and has a copy of the network. The embeddings are gathered for the
loss (ntxent/shared.py), the statistics for batch norm (ops/norm/shared.py), and the gradients are added up after the
backward pass, in one message. So all copies take the same step. Rank 0 alone keeps the run, in a folder like any other.

Two things are not left to MPI.

* It would wait by spinning, and deaf to signals. Here a message is begun, and asked for between short sleeps.
* A rank that fails would leave the others waiting for ever. Here it tells them, and whoever waits listens for that. All
  then end, with one line from the rank that failed. If a process is killed, `mpiexec` ends the others.

A sum is taken in the order of the ranks, wherever MPI would choose an order of its own. So every rank has the same
bits, and so has a run that is repeated on as many ranks. A GPU's arrays travel through the host. No two GPUs were ever
at hand, so that path was run on the stand-in for CuPy alone, with threads in place of processes.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, device_of, to_device, to_numpy
from ..collective import Ranks
from ..storage import one_line
from .checkpoint import NUMERICS
from .run import Run

FIRST_SLEEP, LONGEST_SLEEP = 2e-5, 1e-3  # seconds between two looks at a message: short at first, then twice as long
SHORT = 1 << 18  # bytes that a rank receives if all add up the whole array; up to here one message is better than two
PATIENCE = 20.0  # seconds that a rank waits for the others to end, after one has failed; they may be saving


class RankError(RuntimeError):
    """Another rank failed, and has said so; `code` is the exit code of the processes."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class MPIRanks:
    """The processes that `mpiexec` started, as collective.Ranks."""

    def __init__(self, world: Any) -> None:
        self.rank, self.size = int(world.rank), int(world.size)
        self._world = world
        self._comm, self._news = world.Dup(), world.Dup()  # news come out of turn, so they have a channel of their own
        self._sent: list[Any] = []  # news on their way
        self.failed: dict[int, RankError] = {}  # what each rank that failed has told
        nearby = world.Split_type(_mpi().COMM_TYPE_SHARED)
        self.on_this_machine = int(nearby.size)
        nearby.Free()

    # ── The collectives ───────────────────────────────────────────────────────────────────────────

    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, stacked in their order."""
        given = np.asarray(to_numpy(array), order="C")
        gathered = np.empty((self.size, *given.shape), given.dtype)
        self._wait(self._comm.Iallgather(_bytes(given), _bytes(gathered)))
        return to_device(gathered, device_of(array))

    def all_reduce(self, array: Array) -> Array:
        """Return the sum over all ranks, added in their order."""
        if array.nbytes * self.size <= SHORT:
            return _added(self.all_gather(array))
        # Each rank adds up one slice, so that nobody receives more than twice the array, however many ranks there are.
        given = to_numpy(array)
        length = -(-given.size // self.size)  # of a slice; the last one is filled up with zeros
        slices, theirs = (np.zeros((self.size, length), given.dtype) for _ in "ab")
        slices.reshape(-1)[: given.size] = given.reshape(-1)
        self._wait(self._comm.Ialltoall(_bytes(slices), _bytes(theirs)))  # row r is now rank r's part of my slice
        total = self.all_gather(_added(theirs)).reshape(-1)[: given.size]
        return to_device(total.reshape(given.shape), device_of(array))

    def broadcast(self, array: Array) -> Array:
        """Return the array of rank 0."""
        given = np.array(to_numpy(array), order="C")
        self._wait(self._comm.Ibcast(_bytes(given), root=0))
        return to_device(given, device_of(array))

    def _wait(self, request: Any) -> None:
        """Wait for a message, and let Python run its signal handlers. Raises: RankError if another rank has failed."""
        for pause in _pauses():
            if request.Test():
                return
            self._listen()
            if self.failed:
                raise self.failed[min(self.failed)]
            time.sleep(pause)

    # ── The end ───────────────────────────────────────────────────────────────────────────────────

    def tell(self, message: str, code: int) -> None:
        """Tell all other ranks that this one has failed, and why."""
        text = json.dumps([f"rank {self.rank} of {self.size}: {one_line(message)}", code]).encode()
        others = [rank for rank in range(self.size) if rank != self.rank]
        self._sent += [self._news.Isend(_bytes(np.frombuffer(text, np.uint8)), dest=rank) for rank in others]

    def _listen(self) -> None:
        """Take the news that have come."""
        status = _mpi().Status()
        while self._news.Iprobe(status=status):
            text = np.empty(status.Get_count(_mpi().BYTE), np.uint8)
            self._news.Recv(_bytes(text), source=status.source)
            self.failed[status.source] = RankError(*json.loads(bytes(text)))

    def meet(self, seconds: float) -> bool:
        """Wait until all ranks have come here, but no longer than this; return True if they have."""
        request, end = self._news.Ibarrier(), time.monotonic() + seconds
        for pause in _pauses():
            here = bool(request.Test())
            self._listen()
            if here or time.monotonic() > end:
                return here
            time.sleep(pause)
        raise AssertionError("pauses have no end")

    def end(self, met: bool, code: int) -> None:
        """Leave MPI after a failure. A rank that did not come to `meet` is stuck or dead: then MPI ends all of them."""
        if not met:
            self._world.Abort(code)
        with open(os.devnull, "w") as nowhere:  # MPI would complain of messages that nobody waits for any more
            os.dup2(nowhere.fileno(), 2)
        # No rank may leave without this, or mpiexec would kill those that are a little slower.
        _mpi().Finalize()


@contextmanager
def mpi_ranks(code_of: Callable[[BaseException], int] = lambda error: 1) -> Iterator[MPIRanks]:
    """Join the ranks that `mpiexec` started, and see to it that all of them end if one fails.

    code_of  the exit code of an error, which the other ranks end with, too

    Raises: RuntimeError, in one line, without mpi4py or an MPI; RankError if another rank has failed.
    """
    ranks = MPIRanks(_mpi().COMM_WORLD)
    try:
        yield ranks
        if ranks.meet(float("inf")) and not ranks.failed:
            _mpi().Finalize()
            return
    except BaseException as error:
        own, code = not isinstance(error, RankError), error.code if isinstance(error, RankError) else code_of(error)
        if own:
            ranks.tell(str(error) or type(error).__name__, code)
        atexit.register(ranks.end, ranks.meet(PATIENCE), code)  # at the very end, when this process has spoken
        earlier = [told for rank, told in ranks.failed.items() if rank < ranks.rank]
        if own and not any(str(told).partition(": ")[2] == one_line(str(error)) for told in earlier):
            error.add_note(f"rank {ranks.rank} of {ranks.size}")
            raise
        # All ranks fail alike if an option is wrong. The first of them says so, and that is enough.
    if ranks.failed:
        raise ranks.failed[min(ranks.failed)]


def require_same(ranks: Ranks, run: Run) -> None:
    """Refuse ranks whose runs would not train the same, and settings that only one process supports.

    Raises: ValueError, which names a rank that differs from rank 0, and in what.
    """
    if ranks.size == 1:
        return
    config = run.config
    if "views" in run.own:
        raise ValueError("views of one's own are made by one process: leave out ranks")
    if "model" in run.own and getattr(run.model.objective, "keywords", {}).get("ranks") is not ranks:
        raise ValueError('a model of one\'s own needs objective=minisimclr.objectives.named("nt_xent", ranks=ranks)')
    settings = json.dumps([NUMERICS, config.as_dict()], sort_keys=True)
    for what, text in (("settings", settings), ("images", run.images)):
        sums = ranks.all_gather(np.array(zlib.crc32(text.encode()), np.int64))  # (W,)
        others = np.flatnonzero(sums != sums[0])
        if len(others):
            raise ValueError(f"rank {others[0]} has other {what} than rank 0: give all ranks the same options and data")
    if config.batch < ranks.size:
        raise ValueError(f"a batch of {config.batch} has no image for each of {ranks.size} ranks; use a larger --batch")


def take_over(ranks: Ranks, run: Run, optimizer: Any) -> None:
    """Give the weights, the optimizer's arrays and the position of rank 0 to all ranks."""
    if ranks.size == 1:
        return
    run.steps = int(ranks.broadcast(np.array(run.steps)))
    model, rest = (
        {name: ranks.broadcast(array) for name, array in part.state_dict().items()} for part in (run.model, optimizer)
    )
    run.model.load_state_dict(model)
    optimizer.load_state_dict(rest)


def _mpi() -> Any:
    """Import MPI. Raises: RuntimeError, in one line that says what is missing."""
    try:
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc.finalize = False  # it is called here, or in `end`
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        raise RuntimeError('--distributed needs mpi4py and an MPI: pip install ".[mpi]"') from None
    return MPI


def _pauses() -> Iterator[float]:
    """Yield the seconds to sleep between two looks, without end."""
    pause = FIRST_SLEEP
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_SLEEP)


def _bytes(array: NDArray[Any]) -> list[Any]:
    """Return an array as MPI takes it: as bytes, because MPI has no float16."""
    return [array.reshape(-1).view(np.uint8), _mpi().BYTE]


def _added(parts: Array) -> Array:
    """Add up the arrays of all ranks in their order: (W,…) -> (…)."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return array_module(parts).asarray(total)  # of arrays without dimensions the sum is a number
