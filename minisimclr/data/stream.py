"""Photos: images in files, of any size, that are decoded when they are asked for.

The plain Dataset lacks two things. All of its images are squares of `size` pixels, and a random crop of such a square
is a blur: a twelfth of the area of 32×32 pixels is 9×9. And all of them must fit in memory.

Here a photo is kept at a shorter side of 4·size by default, so that the smallest crop has about as many pixels as its
view. This file reads and decodes. It knows no views: which photo is wanted, and how fine, is passed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..processor import parallel
from .dataset import DataError, Dataset
from .stores import CacheError, Pixels, Share, Some, Store, central_square, one_line, without_warnings

LARGEST_ARRAY = 2**30  # largest array of squares, bytes; whoever needs more reads block by block
REPLACED, LEFT_OUT = "the next image takes its place", "it is left out"
TOLERATED = 10  # number of files that may be unreadable, or a twentieth of all images if that is more


class Photos(Dataset):
    """A data set of photos. `read` gives one of them as it is kept; `images` are made when they are first asked for.

    sizes        int64 (N,2): height and width of each photo as it is kept
    fingerprint  number of the photos, and checksum of their bytes, their order and their sizes
    kept         a few words that say how they are kept
    unreadable   number of a photo that could not be decoded after all -> why; `replaced` has their names
    """

    path: Path
    size: int
    sizes: NDArray[np.int64]
    fingerprint: str
    store: Store
    kept: str
    report: Callable[[str], None]
    unreadable: dict[int, str]
    replaced: dict[str, str]
    untold: dict[str, str]

    def __init__(
        self, path: Path, files: Sequence[str], labels: NDArray[np.int64], class_names: tuple[str, ...], **facts: Any
    ) -> None:
        own = {"path": path, "files": tuple(files), "labels": labels, "class_names": class_names}
        vars(self).update(
            own | facts | {"unreadable": {}, "replaced": {}, "untold": {}}
        )  # not by assignment: the class is frozen, as Dataset is

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what another process does not need, or cannot get."""
        return {name: value for name, value in vars(self).items() if name != "images"} | {"report": _quiet}

    def __repr__(self) -> str:
        return f"Photos({self.path}: {self.fingerprint})"

    def shared(self, share: Share) -> Photos:
        """Return the photos as other processes are to have them, and free what is then in memory twice."""
        vars(self)["store"] = self.store.shared(share)
        return self

    def read(self, index: int, at_least: int = 0) -> Pixels:
        """Return a photo, uint8 (H,W,3), as it is kept; an original may be smaller, but not below `at_least`.

        One that cannot be decoded is replaced by the next in file order that can, so that a batch is always full.

        Raises: DataError if more photos than are tolerated cannot be decoded.
        """
        while (pixels := self._decoded(index, at_least)) is None:
            index, at_least = (index + 1) % len(self), 0  # whole, as its size is another
        return pixels

    def read_all(self, chosen: Sequence[int], at_least: Sequence[int]) -> list[Pixels]:
        """Read several photos; threads share them, because Pillow decodes without Python's lock."""
        photos: list[Any] = [None] * len(chosen)

        def read(i: int) -> None:
            photos[i] = self.read(int(chosen[i]), int(at_least[i]))

        with without_warnings():
            parallel(read, range(len(chosen)))
        return photos

    def square(self, index: int) -> Pixels:
        """Return the central square of a photo, or of the one that takes its place: uint8 (size,size,3)."""
        return central_square(self.read(index, 2 * self.size), self.size)

    def squares(self, rows: Any) -> Pixels:
        """Return the central squares of some photos, uint8 (n,size,size,3); black where one cannot be decoded.

        Those are then among the `unreadable`, and `embed` gives them rows of NaN.
        """
        chosen = np.arange(len(self))[rows].tolist()
        squares = np.zeros((len(chosen), self.size, self.size, 3), np.uint8)

        def fill(i: int) -> None:
            pixels = self._decoded(chosen[i], 2 * self.size, LEFT_OUT)
            if pixels is not None:
                squares[i] = central_square(pixels, self.size)

        with without_warnings():
            parallel(fill, range(len(chosen)))
        return squares

    def __getitem__(self, rows: Any) -> Pixels:
        """Return the same as `squares`, so that photos are cut into blocks, or picked, as an array is."""
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            one: Pixels = self.squares([rows])[0]  # (size,size,3)
            return one
        return self.squares(rows)

    def only(self, rows: NDArray[np.int64]) -> Photos:
        """Return some of the photos, by their numbers, as a data set of the same source."""
        facts = {"size": self.size, "sizes": self.sizes[rows], "fingerprint": self.fingerprint, "kept": self.kept}
        names, store = [self.files[k] for k in rows.tolist()], Some(self.store, rows)
        return Photos(self.path, names, self.labels[rows], self.class_names, store=store, report=self.report, **facts)

    @property
    def square_bytes(self) -> int:
        """The bytes that all central squares take."""
        return len(self) * self.size**2 * 3

    @property
    def fits(self) -> bool:
        """True if the central squares may be one array."""
        return self.square_bytes <= LARGEST_ARRAY

    @cached_property
    def images(self) -> Pixels:
        """All central squares, uint8 (N,size,size,3). Raises: DataError if they take more than a GiB."""
        size = self.size
        if not self.fits:
            raise DataError(
                f"{self.path}: {len(self):,} images of {size}×{size} pixels are no single array: "
                f"{self.square_bytes / 2**30:.1f} GiB; take the data set itself, and its read(index) or squares(rows)"
            )
        squares = self.squares(slice(None))
        for index, why in sorted(self.unreadable.items()):  # any other square would have the wrong label
            raise DataError(f"{self.path}: {self.files[index]} cannot be decoded ({why}); take it out")
        return squares

    def as_images(self) -> Any:
        """Return `images`; or the photos themselves, which are cut and picked like an array, where that cannot be."""
        if "images" not in vars(self):
            if not self.fits or self.unreadable:
                return self
            squares = self.squares(slice(None))
            if self.unreadable:  # whoever takes an array cannot know which of its rows mean nothing
                return self
            vars(self)["images"] = squares
        return self.images

    def tell(self, index: int, why: str, then: str = REPLACED) -> None:
        """Note that a photo cannot be decoded, and say so once, and what is done `then`.

        Raises: DataError if there are now more of them than are tolerated.
        """
        with _noting:
            if index in self.unreadable:
                return
            self.unreadable[index] = self.replaced[self.files[index]] = self.untold[self.files[index]] = why
        if len(self.unreadable) > tolerated(len(self)):
            raise DataError(
                f"{self.path}: {len(self.unreadable)} of {len(self):,} images cannot be decoded any more, "
                f"such as {self.files[index]} ({why})"
            )
        self.report(f"{self.path}: {self.files[index]} cannot be decoded ({why}); {then}")

    def news(self) -> dict[str, Any]:
        """Return the photos that were replaced since this was called last, for the record of a run."""
        found = dict(self.untold)
        self.untold.clear()
        return {"replaced": found} if found else {}

    def _decoded(self, index: int, at_least: int, then: str = REPLACED) -> Pixels | None:
        """Return a photo, or None if it cannot be decoded."""
        if index in self.unreadable:
            return None
        try:
            return self.store.pixels(index, at_least)
        except (MemoryError, CacheError):
            raise
        except Exception as error:  # a decoder may raise anything for hostile bytes
            self.tell(index, one_line(error), then)
        return None


_noting = threading.Lock()


def _quiet(line: str) -> None:
    """Say nothing: the training process tells what its workers find."""


def tolerated(count: int) -> int:
    """Return how many of `count` images may be unreadable."""
    return max(TOLERATED, count // 20)
