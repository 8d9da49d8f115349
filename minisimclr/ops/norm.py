"""Normalisation: batch norm over all but the last axis, and rows of unit length.

Batch norm sees a feature map (H,W,N,C) as a table of M = H·W·N rows and C columns. It is bound by
memory, not by arithmetic, so the table is walked in chunks that fit a core's cache.
"""

from __future__ import annotations

from typing import Any

from ..autograd import Vjp, primitive
from ..backend import Array, blocks, parallel

CHUNK_BYTES = 1 << 20  # of the table at a time: smaller, and handing chunks to threads costs more than the work


def moments(xp: Any, x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance of each channel, in two passes: E[x²] − E[x]² would cancel.

    Shapes: x (…,C) -> mean (C,), variance (C,), in the dtype of x
    """
    table = x.reshape(-1, x.shape[-1])
    mean = _column_sums(xp, table, lambda rows: rows) / len(table)
    variance = _column_sums(xp, table, lambda rows: (rows - mean) ** 2) / len(table)
    return mean, variance


def _column_sums(xp: Any, table: Array, term: Any, *others: Array) -> Array:
    """Σ over the rows of term(rows), chunk by chunk. A row of ones times a matrix is the fastest column sum."""
    chunks = _chunks(table)
    sums = xp.empty((len(chunks), table.shape[1]), table.dtype)

    def run(task: tuple[int, slice]) -> None:
        k, rows = task
        terms = term(table[rows], *(other[rows] for other in others))
        xp.matmul(xp.ones((1, len(terms)), table.dtype), terms, out=sums[k:k + 1])

    parallel(run, enumerate(chunks))
    return sums.sum(axis=0)


def _chunks(table: Array) -> list[slice]:
    return blocks(len(table), max(1, CHUNK_BYTES // max(1, table.shape[1] * table.itemsize)))


@primitive
def batch_norm(xp: Any, x: Array, scale: Array, shift: Array, *,
               mean: Array, variance: Array, eps: float = 1e-5, batch: bool) -> tuple[Array, Vjp]:
    """x̂ = (x − mean)/√(variance + ε), then y = scale·x̂ + shift, channel by channel.

    batch=True says that mean and variance are those of x itself (training), so that they carry gradient
    too; batch=False that they are constants (running statistics, evaluation).

    Shapes: x (…,C), scale (C,), shift (C,) -> y (…,C)
    VJP:    dscale = Σ g·x̂,  dshift = Σ g,                                                          (3.4)
            dx = scale/σ · (g − [dshift + x̂·dscale]/M)   the bracket only if batch
    """
    table = x.reshape(-1, x.shape[-1])
    inverse = 1 / xp.sqrt(variance + xp.asarray(eps, x.dtype))
    slope = scale * inverse                # y = slope·x + level, two numbers a channel
    level = shift - mean * slope
    y = xp.empty(table.shape, x.dtype)

    def forward(rows: slice) -> None:
        xp.multiply(table[rows], slope, out=y[rows])
        y[rows] += level

    parallel(forward, _chunks(table))

    def vjp(g: Array) -> tuple[Array, Array, Array]:
        g = g.reshape(table.shape)
        dshift = _column_sums(xp, g, lambda rows: rows)
        dscale = _column_sums(xp, g, lambda rows, x: rows * (x - mean), table) * inverse
        dx = xp.empty(table.shape, g.dtype)
        towards_mean = dshift / len(table)
        towards_spread = dscale * inverse / len(table)

        def back(rows: slice) -> None:
            part = dx[rows]
            if batch:
                xp.subtract(table[rows], mean, out=part)
                part *= towards_spread
                xp.subtract(g[rows], part, out=part)
                part -= towards_mean
                part *= slope
            else:
                xp.multiply(g[rows], slope, out=part)

        parallel(back, _chunks(table))
        return dx.reshape(x.shape), dscale, dshift

    return y.reshape(x.shape), vjp


@primitive
def l2_normalize(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Scale each row to unit length; a row of zeros stays zero.

    Shapes: x (N,D) -> u (N,D)
    VJP:    dx = (g − u⟨u,g⟩)/|x|, and 0 for a row of zeros                                        (5.2)
    """
    largest = xp.abs(x).max(axis=1, keepdims=True)  # divided out first: squares neither overflow nor vanish
    empty = largest == 0
    scaled = x / xp.where(empty, 1, largest)
    norm = xp.sqrt((scaled * scaled).sum(axis=1, keepdims=True))
    u = scaled / xp.where(empty, 1, norm)

    def vjp(g: Array) -> Array:
        across = g - u * (u * g).sum(axis=1, keepdims=True)
        return xp.where(empty, 0, across / xp.where(empty, 1, norm) / xp.where(empty, 1, largest))

    return u, vjp
