"""The two views of each step: made when the step asks for them, or ahead of it by worker processes.

Which images a step sees, and what becomes of them, follows from the seed and the step alone. So it does
not matter who makes the views: with any number of workers they are the same, bit for bit. With n workers,
worker k makes those of every n-th step from the k-th on. Each has two slots of memory that it shares with
the training process: it fills one while the other is in use.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, free_bytes, to_device
from ..data import DataError
from ..nn import method_of
from ..processor import blas_at_one_thread, set_threads
from ..views.augment import two_views
from .config import ORDER, VIEWS, Config

SLOTS = 2  # slots of shared memory per worker: the step uses one while the worker fills the other
RESIDENT_SHARE = 0.5  # share of the device's free memory that images may occupy; the network needs the rest

Views: TypeAlias = Callable[[int], tuple[Array, Array]]  # step -> views a, views b: float32 (B,size,size,3)


# ── Which images, which views ─────────────────────────────────────────────────────────────────────


def epoch_order(count: int, batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the order of an epoch: every image at most once, as full batches, int64 (count // batch, batch).

    What does not fill a batch is left out, and is most likely seen in the next epoch: the number of
    negatives is part of the loss, so a smaller batch would be a different objective.

    Raises: ValueError if batch < 1, DataError if there are fewer images than one batch needs.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if count < batch:
        raise DataError(f"{count} images do not fill a batch of {batch}: choose a smaller batch or add images")
    full = count // batch  # batches that are full
    return rng.permutation(count)[: full * batch].reshape(full, batch)  # (full,B)


def resident(images: NDArray[np.uint8], device: str) -> bool:
    """Return True if all images stay on the device, and False if they are sent there batch by batch."""
    return images.nbytes <= RESIDENT_SHARE * free_bytes(device)  # a CPU, where they are already, has room for all


def batch_source(images: NDArray[np.uint8], device: str) -> Callable[[NDArray[np.int64]], Array]:
    """Return a function from the numbers of some images (B,) to these images, uint8 (B,H,W,3), on the device."""
    if not resident(images, device):
        return lambda chosen: to_device(images[chosen], device)  # (B,H,W,3) through the bus, at each step
    on_device = to_device(images, device)  # once: bytes are a quarter of what the floats of the views would be
    return lambda chosen: on_device[to_device(chosen, device)]


def step_views(config: Config, images: NDArray[np.uint8]) -> Views:
    """Return the function that makes the views of a step, on the device of the configuration."""
    steps_per_epoch = len(images) // config.batch

    @functools.lru_cache(maxsize=1)  # the order of an epoch is asked for at each of its steps
    def batches(epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(images), config.batch, config.rng(ORDER, epoch))  # (steps_per_epoch,B)

    batch_of, method = batch_source(images, config.device), method_of("views", config.method)

    def views(step: int) -> tuple[Array, Array]:
        epoch, k = divmod(step, steps_per_epoch)  # so a resumed run knows its place without being told
        batch, rng = batch_of(batches(epoch)[k]), config.rng(VIEWS, step)  # (B,H,W,3) uint8
        return two_views(batch, rng, config.size, config.strength, config.blur, config.min_area, method=method)

    return views


# ── Ahead of time ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def views_ahead(config: Config, images: NDArray[np.uint8], steps: range, workers: int = 0) -> Iterator[Views]:
    """Yield `step_views` for these steps, to be asked for one after the other; `workers` processes make them ahead.

    The views of a step are valid until the next one is asked for. On a GPU there are no workers: it makes
    the views itself, faster than they could be sent.

    Raises: ValueError for a negative number of workers. A call raises what a worker raised, and ChildProcessError
            if one was killed.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    if workers and steps and config.device == "cpu":
        # more workers than steps would have nothing to do
        with _team(min(workers, len(steps)), config, images, steps) as views:
            yield views
    else:
        yield step_views(config, images)


@contextmanager
def _team(workers: int, config: Config, images: NDArray[np.uint8], steps: range) -> Iterator[Views]:
    """Start the workers, yield the function that asks them in turn, and end them."""
    shared = _CONTEXT.RawArray("B", images.nbytes)  # one copy of the images serves all workers
    np.copyto(_array(shared, np.uint8, images.shape), images)
    team: list[_Worker] = []
    try:
        for k in range(workers):
            # every n-th step from the k-th on: no worker waits for another
            team.append(_Worker(f"{k + 1} of {workers}", config, shared, images.shape, steps[k::workers]))

        def views(step: int) -> tuple[Array, Array]:
            i = steps.index(step)  # the workers take turns
            if i:  # the step before is done with its views
                team[(i - 1) % workers].free()
            return team[i % workers].receive(i // workers)

        yield views
    finally:  # also after an error, or a signal: no worker outlives its use
        for worker in team:
            worker.stop()


_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy threads' locks without the threads


class _Worker:
    """A process that makes the views of some steps, one after the other, as seen by the training process.

    The two share memory and a pipe. The worker says through the pipe that a slot is full, and the training process
    that a slot may be overwritten.
    """

    def __init__(
        self, label: str, config: Config, shared_images: Any, images_shape: tuple[int, ...], steps: range
    ) -> None:
        self.label = label
        shape = SLOTS, 2, config.batch, config.size, config.size, 3
        memory = _CONTEXT.RawArray("B", 4 * math.prod(shape))
        self.slots = _array(memory, np.float32, shape)  # (SLOTS,2,B,size,size,3)
        self.connection, there = _CONTEXT.Pipe()
        arguments = (there, config, shared_images, images_shape, memory, shape, steps)
        self.process = _CONTEXT.Process(target=_work, args=arguments, daemon=True)
        with _signals_blocked():
            self.process.start()
        there.close()  # as long as this end were open here, nobody would notice that the worker has ended

    def receive(self, turn: int) -> tuple[Array, Array]:
        """Wait for the views of the worker's step number `turn`, and return them: float32 (B,size,size,3) each."""
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise ChildProcessError(
                f"worker process {self.label} ended with exit code {self.process.exitcode}; "
                "a negative one is the signal that killed it (−9: perhaps for want of memory)"
            ) from None
        if error is not None:  # what the worker raised is raised here, where somebody reads it
            raise error
        a, b = self.slots[turn % SLOTS]  # no copy: the slot stays ours until `free`
        return a, b

    def free(self) -> None:
        """Tell the worker that its previous slot may be overwritten."""
        with suppress(OSError):  # that the worker is gone is noticed when its views are asked for
            self.connection.send(None)

    def stop(self) -> None:
        """End the process; it holds nothing that would be lost."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(
    connection: Connection,
    config: Config,
    shared_images: Any,
    images_shape: tuple[int, ...],
    shared_slots: Any,
    shape: tuple[int, ...],
    steps: range,
) -> None:
    """Run in the worker: fill its slots in turn, say so, and wait for the word before a slot is filled again."""
    set_threads(1)  # the other cores have workers of their own
    slots = _array(shared_slots, np.float32, shape)  # (SLOTS,2,B,size,size,3)
    try:
        with blas_at_one_thread():
            views = step_views(config, _array(shared_images, np.uint8, images_shape))
            for k, step in enumerate(steps):
                if k >= SLOTS:
                    connection.recv()
                slots[k % SLOTS][0], slots[k % SLOTS][1] = views(step)  # (B,size,size,3) each
                connection.send(None)
            connection.recv()  # stay until the last views are used
    except (EOFError, OSError):
        return  # the training process is gone
    except Exception as error:
        connection.send(error)


def _array(shared: Any, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return shared memory as an array."""
    return np.frombuffer(shared, dtype).reshape(shape)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keep SIGINT and SIGTERM from a process that is started inside: to stop is the training process's decision."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the first start runs it, and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
