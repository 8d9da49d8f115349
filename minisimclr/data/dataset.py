"""What a data set is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """Data that cannot be used: one line that names the folder or file and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images of one size, with a label each (which pre-training never looks at)."""

    images: NDArray[np.uint8]  # (N,H,W,3)
    labels: NDArray[np.int64]  # (N,), indices into class_names
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)
