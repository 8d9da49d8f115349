"""The class Dataset, and the error for data that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


# It is a ValueError, so that a caller who knows nothing of data sets can still catch it.
class DataError(ValueError):
    """Data that cannot be used: one line that names the folder or file and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images of one size with a label each. Pre-training never looks at the labels; evaluation does.

    >>> data = Dataset(np.zeros((2, 8, 8, 3), np.uint8), np.array([1, 0]), ("cat", "dog"))
    >>> len(data), [data.class_names[label] for label in data.labels], data.read(1).shape
    (2, ['dog', 'cat'], (8, 8, 3))
    """

    # We keep bytes, as the files do: they take a quarter of the memory of float32. The views turn them into [0,1].
    images: NDArray[np.uint8]  # (N,H,W,3)
    labels: NDArray[np.int64]  # (N,) indices into class_names
    class_names: tuple[str, ...]  # the same for all splits of a source, so that a label means one thing
    files: tuple[str, ...] = ()  # the name of each image's file, or none: drawings and arrays have no files

    def __len__(self) -> int:
        return len(self.labels)  # not of the images: photos (data/stream.py) would have to be decoded for it

    def read(self, index: int, at_least: int = 0) -> NDArray[np.uint8]:
        """Return one image, uint8 (H,W,3). A photo may be shrunk, but its shorter side not below `at_least`."""
        return self.images[index]  # type: ignore[no-any-return]
