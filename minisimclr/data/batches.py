"""What a data set is, and how an epoch walks through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, free_bytes, to_device

RESIDENT_SHARE = 0.5  # of a device's free memory is what images may take; the network needs the rest


class DataError(ValueError):
    """Data that cannot be used: one line that names the folder or file and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images of one size, with a label each (which pre-training never looks at)."""

    images: NDArray[np.uint8]     # (N,H,W,3)
    labels: NDArray[np.int64]     # (N,), indices into class_names
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


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
