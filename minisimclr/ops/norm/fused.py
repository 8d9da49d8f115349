"""Normalisation: batch norm over all but the last axis, and rows of unit length.

Batch norm sees a feature map (H,W,N,C) as a table of M = H·W·N rows and C columns. It is bound by memory,
not by arithmetic: what costs is how often the table is walked. So what follows it in a ResNet, the way around
the block and the ReLU, is done in the same walk, in chunks that stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp, primitive
from ...processor import parallel, pieces

CHUNK_BYTES = 2 << 20  # of the table at a time: in smaller ones threads wait for Python's lock too often


def moments(xp: Any, x: Array, method: str = "auto") -> tuple[Array, Array]:
    """Mean and (biased) variance of each channel, in two passes, for E[x²] − E[x]² would cancel: but chunk by chunk,
    so that the second pass finds its chunk in the cache. The variance of the whole is the mean of the chunks'
    variances plus the variance of their means.

    Shapes: x (…,C) -> mean (C,), variance (C,), in the dtype of x, or in float32 if that is half precision
    """
    table = x.reshape(-1, x.shape[-1])
    chunks, wide = _chunks(xp, table), _wide(xp, table)
    means = xp.empty((len(chunks), table.shape[1]), wide)
    variances = xp.empty_like(means)
    share = xp.empty(len(chunks), wide)

    def run(task: tuple[int, slice]) -> None:
        chunk, rows = task
        part = table[rows].astype(wide, copy=False)
        share[chunk] = len(part) / len(table)
        means[chunk] = _sum(xp, part) / len(part)
        centred = part - means[chunk]
        centred *= centred
        variances[chunk] = _sum(xp, centred) / len(part)

    parallel(run, enumerate(chunks))
    mean = share @ means
    return mean, share @ (variances + (means - mean) ** 2)


def _sum(xp: Any, table: Array) -> Array:
    """Over the rows: a row of ones times a matrix is the fastest sum."""
    return xp.ones(len(table), table.dtype) @ table


def _column_sums(xp: Any, table: Array, terms: Callable[[slice], tuple[Array, ...]], count: int = 1) -> Array:
    """Sums over the rows of each of `count` terms: (count, C). A row of ones times a matrix is the fastest sum."""
    chunks = _chunks(xp, table)
    wide = _wide(xp, table)
    sums = xp.empty((len(chunks), count, table.shape[1]), wide)

    def run(task: tuple[int, slice]) -> None:
        chunk, rows = task
        ones = xp.ones((1, rows.stop - rows.start), wide)
        for k, term in enumerate(terms(rows)):
            xp.matmul(ones, term.astype(wide, copy=False), out=sums[chunk, k : k + 1])

    parallel(run, enumerate(chunks))
    return sums.sum(axis=0)


def _wide(xp: Any, table: Array) -> Any:
    """In what is computed: float32 for half precision, which is rounded once, where it is stored."""
    return xp.result_type(table.dtype, xp.float32)


def _chunks(xp: Any, table: Array) -> list[slice]:
    return pieces(xp, len(table), max(1, CHUNK_BYTES // max(1, table.shape[1] * table.itemsize)))


@primitive
def batch_norm(
    xp: Any,
    x: Array,
    scale: Array,
    shift: Array,
    *around: Array,
    mean: Array,
    variance: Array,
    eps: float = 1e-5,
    batch: bool,
    relu: bool = False,
    method: str = "auto",
) -> tuple[Array, Vjp]:
    """x̂ = (x − mean)/√(variance + ε), then y = scale·x̂ + shift, channel by channel.

    batch=True says that mean and variance are those of x itself (training), so that they carry gradient
    too; batch=False that they are constants (running statistics, evaluation).
    `around`, at most one array of the shape of x, is added to y, and relu=True takes max(y, 0) of it all.

    x and `around` may be of half precision, and then y is; what belongs to a channel is float32.

    Shapes: x (…,C), scale (C,), shift (C,), around (…,C) -> y (…,C)
    VJP:    g ← g where y > 0, if relu;   daround = g
            dscale = Σ g·x̂,  dshift = Σ g,                                                          (3.4)
            dx = scale/σ · (g − [dshift + x̂·dscale]/M)   the bracket only if batch
    """
    if not all(a.shape == x.shape[-1:] for a in (scale, shift, mean, variance)):
        raise ValueError(f"batch_norm: for {x.shape}, scale, shift, mean and variance must have shape {x.shape[-1:]}")
    if any(a.shape != x.shape for a in around):
        raise ValueError(f"batch_norm: what is added must have the shape of x, {x.shape}, not {around[0].shape}")
    shape = x.shape
    table = x.reshape(-1, shape[-1])
    added = [a.reshape(table.shape) for a in around]
    inverse = 1 / xp.sqrt(variance + eps)
    slope = scale * inverse  # y = slope·x + level, two numbers a channel
    level = shift - mean * slope
    value = xp.empty(shape, x.dtype)
    y = value.reshape(table.shape)
    wide = _wide(xp, table)

    def forward(rows: slice) -> None:
        part = y[rows] if wide == y.dtype else xp.empty(y[rows].shape, wide)
        xp.multiply(table[rows], slope, out=part)
        part += level
        for a in added:
            part += a[rows]
        if relu:
            xp.clip(part, 0, xp.inf, out=part)  # a third of the time of maximum with a number
        if wide != y.dtype:
            y[rows] = part

    parallel(forward, _chunks(xp, table))
    others = len(around)  # the vjp keeps their number, not the arrays

    def vjp(g: Array) -> tuple[Array, ...]:
        g = g.reshape(table.shape)
        through = xp.empty(table.shape, g.dtype) if relu else g  # g where the ReLU is open

        def terms(rows: slice) -> tuple[Array, Array]:
            if relu:
                xp.multiply(g[rows], y[rows] > 0, out=through[rows])
            centred = table[rows] - mean
            centred *= through[rows]
            return through[rows], centred

        dshift, dscale = _column_sums(xp, table, terms, count=2)
        dscale = dscale * inverse
        dx = xp.empty(table.shape, g.dtype)

        def back(rows: slice) -> None:
            part = dx[rows] if wide == dx.dtype else xp.empty(dx[rows].shape, wide)
            if batch:
                xp.subtract(table[rows], mean, out=part)
                part *= dscale * inverse / len(table)
                part += dshift / len(table)
                xp.subtract(through[rows], part, out=part)
                part *= slope
            else:
                xp.multiply(through[rows], slope, out=part)
            if wide != dx.dtype:
                dx[rows] = part

        parallel(back, _chunks(xp, table))
        return dx.reshape(shape), dscale, dshift, *[through.reshape(shape)] * others

    return value, vjp
