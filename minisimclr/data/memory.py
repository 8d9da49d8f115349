"""A limit to the memory that all threads together spend on decoding."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 640 << 20  # bytes: a photo of 64 megapixels, with room for a few small ones beside it
PER_PIXEL = 10  # bytes: a larger limit of pixels lets a single image take so many times that


class RefusedError(ValueError):
    """An image that is not decoded, in words that fit behind its name."""


class Budget:
    """Memory that threads share: whoever would exceed it waits until others are done.

    >>> with Budget(100).hold(60):
    ...     pass
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing held."""
        self._held, self._changed = 0, threading.Condition()

    @contextmanager
    def hold(self, cost: int, alone: int = 0) -> Iterator[None]:
        """Hold so many bytes. More than all there are, at most `alone`, are given to one thread while no other has any.

        Raises: RefusedError for what is more than all there are.
        """
        most = max(self.most, alone)
        if cost > most:
            raise RefusedError(
                f"would take {cost >> 20} MiB to decode, more than {most >> 20} MiB; --megapixels raises the limit"
            )
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + cost <= self.most)
            self._held += cost
        try:
            yield
        finally:
            with self._changed:
                self._held -= cost
                self._changed.notify_all()


DECODING = Budget()  # for all threads of this process


if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=DECODING.forget)
