"""Collectives: what the processes that share a batch tell each other.

Such processes are called ranks. Each makes the views of its share of the images, and sends them through its own copy of
the network. Then there is little that a rank needs from the others, and three calls are enough for it:

    all_gather   gives an array, and gets those of all ranks           embeddings, statistics of batch norm
    all_reduce   gives an array, and gets the sum over all ranks       gradients, the two sums of batch norm
    broadcast    rank 0 gives an array, and all ranks get it           the first weights

All ranks must make the same calls in the same order, with arrays of one shape and dtype. `Alone` is the case of one
process, in which nothing is left to do; training/distributed.py has the case of many, through MPI.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .backend import Array, array_module


class Ranks(Protocol):
    """The processes that share each batch, as one of them sees them."""

    rank: int  # number of this process, from 0 on
    size: int  # number of processes

    def all_gather(self, array: Array) -> Array:
        """Return the arrays of all ranks, stacked in the order of the ranks: (…) -> (size,…)."""

    def all_reduce(self, array: Array) -> Array:
        """Return the sum over all ranks, added in the order of the ranks: every rank gets the same bits."""

    def broadcast(self, array: Array) -> Array:
        """Return the array of rank 0."""


class Alone:
    """One process, which has the whole batch.

    >>> Alone().all_gather(np.ones(3)).shape, Alone().all_reduce(np.ones(3)).shape
    ((1, 3), (3,))
    """

    rank, size = 0, 1

    def all_gather(self, array: Array) -> Array:
        """Return the array, as the only one of a stack."""
        return array[None]  # (1,…)

    def all_reduce(self, array: Array) -> Array:
        """Return the array: the sum over one."""
        return array

    def broadcast(self, array: Array) -> Array:
        """Return the array."""
        return array


ALONE = Alone()


def share(count: int, ranks: Ranks) -> slice:
    """Return the part of `count` images that belongs to this rank. The shares differ by one image at most.

    >>> share(10, ALONE)
    slice(0, 10, None)
    """
    return slice(count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size)


def all_rows(ranks: Ranks, rows: Array) -> tuple[Array, slice]:
    """Join the rows of all ranks, in their order; say which of them are those of this rank. Their number may differ.

    Shapes: rows (n,D) -> (N,D), with N = Σ n
    """
    xp = array_module(rows)
    counts = [int(n) for n in ranks.all_gather(np.array(len(rows)))]  # (size,)
    first = sum(counts[: ranks.rank])
    padded = xp.zeros((max(counts), *rows.shape[1:]), rows.dtype)  # a collective takes arrays of one shape
    padded[: len(rows)] = rows
    stacked = ranks.all_gather(padded)  # (size,most,D)
    joined = xp.concatenate([part[:n] for part, n in zip(stacked, counts)])  # (N,D)
    return joined, slice(first, first + len(rows))


def add_up(ranks: Ranks, arrays: list[Array]) -> None:
    """Replace each array by its sum over all ranks, in place: all of them travel in one message.

    It is the sum and not the mean. Every rank's gradient is by the loss of the whole batch, and that is a mean already.
    """
    if ranks.size == 1:
        return
    xp = array_module(*arrays)
    flat = ranks.all_reduce(xp.concatenate([array.ravel() for array in arrays]))
    for array in arrays:
        array[...] = flat[: array.size].reshape(array.shape)
        flat = flat[array.size :]


def broadcast_text(ranks: Ranks, text: str) -> str:
    """Return the text of rank 0."""
    code = np.frombuffer(text.encode(), np.uint8)
    length = int(ranks.broadcast(np.array(len(code))))
    code = code if ranks.rank == 0 else np.empty(length, np.uint8)
    return bytes(ranks.broadcast(code)).decode()
