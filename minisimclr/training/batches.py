"""The two views of each step: made when the step asks for them, or ahead of it by worker processes.

Which images a step sees, and what becomes of them, follows from the seed and the step alone. So it does
not matter who makes the views: with any number of workers they are the same, bit for bit. With n workers,
worker k makes those of every n-th step from the k-th on. Each has two places in memory that it shares with
the training process: it fills one while the other is in use.
"""

from __future__ import annotations

import functools
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
from ..processor import blas_at_one_thread, set_threads
from ..views.augment import two_views
from .config import ORDER, VIEWS, Config

PLACES = 2  # of each worker: views of so many steps wait, at most
ENTRY = "<f4"  # of a view
RESIDENT_SHARE = 0.5  # of a device's free memory is what images may take; the network needs the rest

Views: TypeAlias = Callable[[int], tuple[Array, Array]]  # step -> views a, views b: float32 (B,size,size,3)


def epoch_order(count: int, batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every image at most once, in random order, as full batches: int64 (count // batch, batch).

    What does not fill a batch is left out, and is most likely seen in the next epoch: the number of
    negatives is part of the loss, so a smaller batch would be a different objective.
    Raises ValueError if batch < 1, DataError if there are fewer images than one batch needs.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    if count < batch:
        raise DataError(f"{count} images do not fill a batch of {batch}: choose a smaller batch or add images")
    full = count // batch
    return rng.permutation(count)[: full * batch].reshape(full, batch)


def resident(images: NDArray[np.uint8], device: str) -> bool:
    """Whether all images stay on the device (on a CPU they are there already), or are sent batch by batch."""
    return images.nbytes <= RESIDENT_SHARE * free_bytes(device)


def batch_source(images: NDArray[np.uint8], device: str) -> Callable[[NDArray[np.int64]], Array]:
    """A function from the numbers of some images (B,) to these images, uint8 (B,H,W,3), on the device.

    All images are sent there once, if they take at most RESIDENT_SHARE of its free memory.
    """
    if not resident(images, device):
        return lambda chosen: to_device(images[chosen], device)
    at_home = to_device(images, device)
    return lambda chosen: at_home[to_device(chosen, device)]


def step_views(config: Config, images: NDArray[np.uint8]) -> Views:
    """The function that makes the views of a step, on the device of the configuration."""
    steps_per_epoch = len(images) // config.batch
    batch_of = batch_source(images, config.device)

    @functools.lru_cache(maxsize=1)
    def batches(epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(images), config.batch, config.rng(ORDER, epoch))

    def views(step: int) -> tuple[Array, Array]:
        epoch, k = divmod(step, steps_per_epoch)
        batch = batch_of(batches(epoch)[k])  # (B,H,W,3) uint8
        return two_views(batch, config.rng(VIEWS, step), config.size, config.strength, config.blur, config.min_area)

    return views


@contextmanager
def views_ahead(config: Config, images: NDArray[np.uint8], steps: range, workers: int = 0) -> Iterator[Views]:
    """`step_views` for these steps, to be asked for one after the other; made ahead by `workers` processes, if any.

    What is returned for a step is valid until the next one is asked for. On a GPU there are no workers: it makes
    the views itself. Raises what a worker raised; ChildProcessError if one was killed.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    workers = min(workers, len(steps))
    if not workers or config.device != "cpu":
        yield step_views(config, images)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks without the threads
    shared_images = context.RawArray("B", images.nbytes)
    np.copyto(_array(shared_images, np.uint8, images.shape), images)
    shape = PLACES, 2, config.batch, config.size, config.size, 3
    team: list[tuple[Any, Connection, NDArray[np.float32]]] = []
    try:
        for k in range(workers):
            here, there = context.Pipe()
            places = context.RawArray("B", 4 * int(np.prod(shape)))
            process = context.Process(
                target=_work,
                args=(there, config, shared_images, images.shape, places, shape, steps[k::workers]),
                daemon=True,
            )
            with _signals_blocked():
                process.start()
            there.close()  # else nobody would notice when the worker ends
            team.append((process, here, _array(places, ENTRY, shape)))

        def views(step: int) -> tuple[Array, Array]:
            i = steps.index(step)
            if i:
                _tell(team[(i - 1) % workers][1])  # the place of the step before is free again
            process, connection, of_worker = team[i % workers]
            try:
                error = connection.recv()
            except (EOFError, OSError):
                process.join()
                raise ChildProcessError(
                    f"worker process {i % workers + 1} of {workers} ended with exit code {process.exitcode}; "
                    "a negative one is the signal that killed it (−9: perhaps for want of memory)"
                ) from None
            if error is not None:
                raise error
            a, b = of_worker[i // workers % PLACES]
            return a, b

        yield views
    finally:
        for process, connection, _ in team:  # workers hold nothing that would be lost
            process.kill()
            process.join()
            connection.close()


def _work(
    connection: Connection,
    config: Config,
    shared_images: Any,
    images_shape: tuple[int, ...],
    shared_places: Any,
    shape: tuple[int, ...],
    steps: range,
) -> None:
    """What a worker does: fill its places in turn, say so, and wait for the word before it fills one again."""
    set_threads(1)
    places = _array(shared_places, ENTRY, shape)
    try:
        with blas_at_one_thread():
            views = step_views(config, _array(shared_images, np.uint8, images_shape))
            for k, step in enumerate(steps):
                if k >= PLACES:
                    connection.recv()
                places[k % PLACES][0], places[k % PLACES][1] = views(step)
                connection.send(None)
            connection.recv()  # stay until the last views are used
    except (EOFError, OSError):
        return  # the training process is gone
    except Exception as error:
        connection.send(error)


def _tell(connection: Connection) -> None:
    with suppress(OSError):  # that it is gone is noticed when its views are asked for
        connection.send(None)


def _array(shared: Any, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(shared, dtype).reshape(shape)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started meanwhile never receives SIGINT and SIGTERM: to stop is the training process's decision."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else the first start runs it, and unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
