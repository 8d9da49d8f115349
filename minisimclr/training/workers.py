"""Worker processes that make the views of coming steps ahead of time.

The plain way, `step_views` in batches.py, makes the views of a step when the step asks for them. If the images are
large this takes long, and the other cores wait meanwhile. With n workers, worker k makes the views of every n-th step
from the k-th on. Each shares two slots of memory with the training process: it fills one while the other is in use.

If a GPU computes, workers read photos and cut their crops, which arrive in several parcels; the GPU does the rest.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array
from ..data import Dataset
from ..processor import blas_at_one_thread, keep_freed_memory, set_threads
from .config import Config
from .parcels import NOTHING, laid_out, parcels_of, shared_array
from .photos import CHUNK, Crops, cut, views_of_crops
from .run import Interrupted
from .signals import signals_blocked

NO_GUARD = 70  # exit code of a worker whose script begins to train when it is imported; of sysexits.h
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h: a request that the kernel sends this process a signal when its parent ends
PATIENCE = 3.0  # seconds that a worker has to answer after a signal asked to stop; views take much less
TICK = 0.1  # seconds between two looks whether a signal came
SLOTS = 2  # slots of shared memory per worker: the step uses one while the worker fills the other

Views: TypeAlias = Callable[[int], tuple[Array, Array]]  # step -> views a, views b: float32 (B,size,size,3)
MakeViews: TypeAlias = Callable[[Config, Any], Callable[[int], Any]]  # batches.step_views; or crops of a step


@contextmanager
def team(
    make: MakeViews, workers: int, config: Config, images: Any, steps: range, stop: Sequence[int] = (), **options: Any
) -> Iterator[Views]:
    """Start the workers, yield the function that asks them in turn for the views that `make` makes, and end them.

    images   an array, uint8 (N,H,W,3), or photos; for a GPU photos, of which `make` cuts crops
    options  those of `make`: own, and share, the part of each batch whose views are made here

    `stop` is empty until a signal asks to stop. A worker that is stuck is then waited for no longer than PATIENCE.
    """
    options |= {"own": cut} if config.device == "cuda" else {}
    make, count = functools.partial(make, **options), len(range(config.batch)[options.get("share") or slice(None)])
    photos: Any = images if isinstance(images, Dataset) else None
    shared = photos.shared(_copied) if photos else (_copied(images), images.shape)  # one copy serves all
    room = room_for(config, count, photos if (cropped := config.device == "cuda") else None)
    finish = functools.partial(views_of_crops, config, count)  # of crops, on the device
    started: list[_Worker] = []
    try:
        for k in range(workers):
            # worker k makes every n-th step from the k-th on, so no worker waits for another
            label, own = f"{k + 1} of {workers}", steps[k::workers]
            started.append(_Worker(label, make, config, shared, own, room))

        def parcel(step: int) -> Crops:
            worker = started[steps.index(step) % workers]  # the workers take turns
            broken, found = worker.receive(stop, f"stopped after step {step} of {steps.stop}")
            for index, why in broken.items():  # photos that the worker could not decode
                photos.tell(index, why)
            return found

        def views(step: int) -> tuple[Array, Array]:
            i = steps.index(step)
            if i:  # the previous step does not need its views any more
                started[(i - 1) % workers].free()
            a, b = parcel(step).pixels  # no copy: the slot stays ours until `free`
            return a, b

        def crops(step: int) -> Iterator[Crops]:
            left = 2 * count
            while left:
                yield (found := parcel(step))
                started[steps.index(step) % workers].free()  # they are on the device by now
                left -= len(found.rows)

        yield (lambda step: finish(crops(step))) if cropped else views
    finally:  # also after an error, or a signal: no worker outlives its use
        for worker in started:
            worker.stop()


def room_for(config: Config, count: int, photos: Any = None) -> int:
    """Return the size of a slot in bytes: for two views of `count` images, or for crops of photos."""
    if photos is None:
        return 2 * count * config.size**2 * 12  # 3 floats a pixel
    return max(CHUNK, int(3 * photos.sizes.prod(axis=1).max()))  # a crop is at most a photo


def leave_if_only_imported() -> None:
    """End this process if it is a worker that imports the user's script, and the script trains as it is imported.

    A new process begins with that import. Were the script to train there, the worker would write into the folder of
    the run and start workers of its own. It ends without a word; the training process says what is missing.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself knows it
        raise SystemExit(NO_GUARD)


_CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy threads' locks without the threads


class _Worker:
    """A process that makes the views of some steps, one after the other, as seen by the training process.

    The two share memory and a pipe. The worker says through the pipe that a slot is full, and the training process
    that a slot may be overwritten.
    """

    def __init__(
        self, label: str, make: MakeViews, config: Config, shared_images: Any, steps: range, room: int
    ) -> None:
        self.label, self.received = label, 0  # received: number of parcels so far
        memory = _CONTEXT.RawArray("B", SLOTS * room)
        self.slots = shared_array(memory, np.uint8, (SLOTS, room))
        self.connection, there = _CONTEXT.Pipe()
        arguments = (there, make, config, shared_images, memory, room, steps)
        self.process = _CONTEXT.Process(target=_work, args=arguments, daemon=True)
        with signals_blocked():
            self.process.start()
        there.close()  # if the worker's end stayed open here, nobody would notice that the worker has ended

    def receive(self, stop: Sequence[int], words: str) -> tuple[dict[int, str], Crops]:
        """Wait until the worker has filled its next slot; return the photos that it found broken, and what is there.

        Raises: Interrupted, with these words, if the worker does not answer soon after a signal asked to stop.
        """
        try:
            left = PATIENCE
            while not self.connection.poll(TICK):
                left -= TICK if stop else 0
                if left < 0:
                    raise Interrupted(words, stop[0])
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            if self.process.exitcode == NO_GUARD:
                raise RuntimeError(
                    "workers need a main guard: each of them imports the script first, so what trains must stand "
                    'below `if __name__ == "__main__":`'
                ) from None
            raise ChildProcessError(
                f"worker process {self.label} ended with exit code {self.process.exitcode}; "
                "a negative one is the signal that killed it (−9: perhaps for want of memory)"
            ) from None
        if isinstance(message, Exception):  # raise the worker's exception here, where somebody reads it
            raise message
        broken, kind, shapes, rows, drawn = message
        arrays = laid_out(self.slots[self.received % SLOTS], kind, shapes)
        self.received += 1
        return broken, Crops(rows, arrays, drawn)

    def free(self) -> None:
        """Tell the worker that its previous slot may be overwritten."""
        with suppress(OSError):  # if the worker has ended, `receive` will notice
            self.connection.send(None)

    def stop(self) -> None:
        """End the process; nothing that it holds would be missed."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(
    connection: Connection,
    make: MakeViews,
    config: Config,
    shared_images: Any,
    shared_slots: Any,
    room: int,
    steps: range,
) -> None:
    """Run in the worker: fill its slots in turn, report each, and wait for `free` before a slot is filled again."""
    _die_with_parent()
    set_threads(1)  # the other cores have workers of their own
    keep_freed_memory()  # views of photos ask for thousands of new pages a step, which take a fifth of their time
    slots = shared_array(shared_slots, np.uint8, (SLOTS, room))
    try:
        with blas_at_one_thread():
            images: Any = shared_images
            if not isinstance(images, Dataset):
                images = shared_array(images[0], np.uint8, images[1])
            broken = getattr(images, "unreadable", {})  # numbers of photos, with the reason; it grows
            views, told, sent, free = make(config, images), 0, 0, SLOTS
            for step in steps:
                parcels = parcels_of(views, step, room)
                while True:
                    if not free:  # before the next views are made, which would take memory of their own
                        _talk(connection.recv)
                        free += 1
                    rows, arrays, drawn = next(parcels, NOTHING)
                    if not arrays:
                        break
                    kind, shapes = arrays[0].dtype, [array.shape for array in arrays]
                    for place, array in zip(laid_out(slots[sent % SLOTS], kind, shapes), arrays):
                        place[...] = array
                    _talk(connection.send, (dict([*broken.items()][told:]), kind, shapes, rows, drawn))
                    told, sent, free = len(broken), sent + 1, free - 1
            _talk(connection.recv)  # stay until the last views are used
    except Exception as error:  # of reading or changing an image: also an OSError, which says which file it was
        if not isinstance(error, _GoneError):
            connection.send(error)


class _GoneError(Exception):
    """The training process is gone."""


def _talk(call: Callable[..., Any], *message: Any) -> None:
    """Send or receive. Raises: _GoneError if there is nobody at the other end."""
    try:
        call(*message)
    except (EOFError, OSError):
        raise _GoneError from None


def _die_with_parent() -> None:
    """See to it that this process ends when the training process does, even one that is stuck or was stopped."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":  # the kernel also ends a process that runs no thread any more
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _copied(images: NDArray[np.uint8]) -> Any:
    """Copy images into memory that other processes can share."""
    shared = _CONTEXT.RawArray("B", images.nbytes)
    np.copyto(shared_array(shared, np.uint8, images.shape), images)
    return shared
