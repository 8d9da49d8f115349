"""The two views of each step, made when the step asks for them or ahead of time.

The images that a step sees, and the crops and colours of their views, follow from the seed and the step alone. So it
does not matter who makes the views: with any number of workers (workers.py) they are the same, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, free_bytes, to_device
from ..data import DataError, Dataset, Reading, load_dataset
from ..nn import method_of
from ..values import view_pair, whole
from ..views import two_views
from .config import ORDER, VIEWS, Config
from .large_batch import made_late, two_views_late
from .photos import photo_views

MOST_WORKERS = 64  # processes; each takes memory of its own for the package, 60 MiB, and for two batches of views
RESIDENT_SHARE = 0.5  # share of the device's free memory that images may occupy; the network needs the rest

Views: TypeAlias = Callable[[int], tuple[Array, Array]]  # step -> views a, views b: float32 (B,size,size,3)


# ── Which images, which views ─────────────────────────────────────────────────────────────────────


def training_images(config: Config, cache: Path | None = None, report: Callable[[str], None] | None = None) -> Dataset:
    """Load the images that a configuration names; `cache` and `report` are those of `load_dataset`."""
    reading = Reading.from_text(config.reading)  # how the names in the data are read, where they leave a choice
    how: dict[str, Any] = {"size": config.size, "cache_side": config.cache_side, "cache": cache, "report": report}
    return load_dataset(config.data, reading.split, reading=reading, **how)


def epoch_order(count: int, batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the order of an epoch: every image at most once, as full batches, int64 (count // batch, batch).

    Images that do not fill a batch are left out, and most likely seen in the next epoch. The number of negatives is
    part of the loss, so a smaller batch would be a different objective.

    Raises: ValueError if batch < 1, DataError if there are fewer images than one batch needs.
    """
    if batch < 1:  # else the division below would fail, with a message about division
        raise ValueError(f"batch must be at least 1, not {batch}")
    if count < batch:
        raise DataError(f"{count} images do not fill a batch of {batch}: choose a smaller batch or add images")
    full = count // batch  # number of full batches
    return rng.permutation(count)[: full * batch].reshape(full, batch)  # (full,B)


def resident(images: NDArray[np.uint8], device: str) -> bool:
    """Return True if all images stay on the device, and False if they are sent there batch by batch."""
    return images.nbytes <= RESIDENT_SHARE * free_bytes(device)  # always on a CPU, whose free_bytes is infinity


def batch_source(images: NDArray[np.uint8], device: str) -> Callable[[NDArray[np.int64]], Array]:
    """Return a function from the numbers of some images (B,) to these images, uint8 (B,H,W,3), on the device."""
    if not resident(images, device):
        return lambda chosen: to_device(images[chosen], device)  # (B,H,W,3) through the bus, at each step
    on_device = to_device(images, device)  # once, as bytes: floats would take four times the memory
    return lambda chosen: on_device[to_device(chosen, device)]  # (B,H,W,3); only the B numbers go through the bus


def step_views(config: Config, images: NDArray[np.uint8] | Dataset, own: Any = None, share: Any = None) -> Views:
    """Return the function that makes the views of a step, on the device of the configuration."""
    # own: the user's function that makes them instead, the `views` of `pretrain`; share: a slice, the part of each
    # batch whose views this process makes. None means ours, and all of the batch.
    steps_per_epoch, share = len(images) // config.batch, share or slice(0, config.batch)

    @functools.lru_cache(maxsize=1)  # each step of an epoch asks for the order of the whole epoch
    def batches(epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(images), config.batch, config.rng(ORDER, epoch))  # (steps_per_epoch,B)

    batch_of = (lambda chosen: chosen) if isinstance(images, Dataset) else batch_source(images, config.device)
    # A view is the same whoever makes it: all random numbers of the batch are drawn, and those of the share are used.
    method = method_of("views", config.method)
    settings = (config.size, config.strength, config.blur, config.min_area, method, (share.start, config.batch))
    both = two_views_late if made_late(config) else two_views  # late: one chunk's at a time
    make: Callable[..., tuple[Array, Array]] = lambda batch, rng: both(batch, rng, *settings, config.views)  # noqa: E731
    if own is not None:
        make = lambda batch, rng: view_pair(own(batch, rng), len(batch))  # noqa: E731
    if isinstance(images, Dataset):  # photos, each of its own size: they are read and cropped one by one
        make, share = functools.partial(photo_views, config, images, own, share), slice(0, config.batch)

    def views(step: int) -> tuple[Array, Array]:
        epoch, k = divmod(step, steps_per_epoch)  # the step alone tells a resumed run where in the epoch it is
        batch, rng = batch_of(batches(epoch)[k][share]), config.rng(VIEWS, step)  # uint8 (B,H,W,3)
        return make(batch, rng)  # (B,size,size,3) each

    return views


# ── Ahead of time ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def views_ahead(
    config: Config, images: Any, steps: range, workers: int = 0, stop: Any = (), own: Any = None, share: Any = None
) -> Iterator[Views]:
    """Yield a function that gives the views of these steps, one after the other; `workers` processes make them ahead.

    The views of a step are valid until those of the next are asked for. If a GPU computes, workers only read
    photos and cut the crops. For an array none are started then: the GPU makes views faster than one can send them.

    Raises: ValueError for a number of workers outside 0…MOST_WORKERS. A call raises what a worker raised,
            ChildProcessError if one was killed, and Interrupted if one is stuck after a signal was put into `stop`.
    """
    workers = whole("workers", workers, 0, MOST_WORKERS)
    crops = config.device == "cuda" and own is None and isinstance(images, Dataset)
    if (config.device == "cuda" and not crops) or not workers or not steps:  # no steps: the resumed run is complete
        yield step_views(config, images, own, share)
        return
    from .workers import team  # here, for the time that multiprocessing takes to import

    # More workers than steps would have nothing to do.
    with team(step_views, min(workers, len(steps)), config, images, steps, stop, own=own, share=share) as views:
        yield views
