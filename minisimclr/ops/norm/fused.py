"""Batch norm, shortcut and ReLU in one pass over memory.

The plain form (`plain.py`) takes the whole map through memory more than ten times, on one thread. Batch norm hardly
computes anything, so its time is the time of those passes. The shortcut and the ReLU that follow in a ResNet add
three passes, and the plain form keeps x̂ for the backward pass, as large as the map. Here

* a chunk of the map takes all steps while it is in a core's cache, shortcut and ReLU among them;
* threads take chunks of their own;
* x̂ is not kept: the backward pass computes it again from x, which the graph keeps anyway;
* half precision is computed in float32 and rounded once, where it is stored;
* the statistics are sums of deviations from a typical row, so that a mean far above the deviation costs no digits.

Measured on a two-core CPU at a layer of ResNet-18 (32×32 maps, 128 views, 64 channels, statistics, value and
gradients): on one thread the plain form takes 1.7 times as long, and 1.8 times as long with a shortcut and a ReLU.
It gains nothing from a second thread.

In the whole file a feature map (H,W,N,C) is a table of M = H·W·N rows and C columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array
from ...engine.autograd import Vjp
from ...processor import parallel, pieces
from ..shapes import sum_dtype

CHUNK_BYTES = 2 << 20  # size of a chunk, bytes; with smaller ones threads wait for Python's lock too often
SAMPLE = 64  # rows whose mean stands for a typical row of a chunk; more would take time and save no digit


def moments(xp: Any, x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel.

    A sum of 8,000 numbers near 1,000 is right to 5 digits in float32, and their deviations from 1,000 add up to all of
    its digits. So each chunk subtracts `about`, the mean of a few of its rows, and what is left has a small mean, d:
    the mean is about + d and the variance E[c²] − d², where d² is small beside E[c²]. We work in chunks, so that the
    second pass finds its data in the cache, and combine: the variance of the whole is the mean of the chunks'
    variances plus the variance of the chunks' means.

    Shapes: x (…,C) -> mean (C,), variance (C,), in the dtype of x, or in float32 if that is half precision
    """
    table = x.reshape(-1, x.shape[-1])  # (M,C)
    chunks, wide = _chunks(xp, table), sum_dtype(xp, table.dtype)
    means = xp.empty((len(chunks), table.shape[1]), xp.float64)  # (chunks, C): few, so their digits cost no time
    variances = xp.empty_like(means)
    share = xp.empty(len(chunks), xp.float64)  # each chunk's share of all rows; the last chunk may be smaller

    def measure_chunk(task: tuple[int, slice]) -> None:
        chunk, rows = task
        part = table[rows].astype(wide, copy=False)  # (rows, C)
        share[chunk] = len(part) / len(table)
        about = part[:: -(-len(part) // SAMPLE)].mean(axis=0)  # (C,)
        centred = part - about  # (rows, C)
        d = (_sum(xp, centred) / len(part)).astype(xp.float64)  # (C,)
        means[chunk] = about + d
        centred *= centred
        variances[chunk] = _sum(xp, centred) / len(part) - d * d

    parallel(measure_chunk, enumerate(chunks))
    mean = share @ means  # (C,)
    variance = share @ (variances + (means - mean) ** 2)  # (C,)
    return mean.astype(wide), xp.maximum(variance, 0).astype(wide)


def batch_norm(
    xp: Any,
    x: Array,
    scale: Array,
    shift: Array,
    *shortcut: Array,
    mean: Array,
    variance: Array,
    eps: float,
    totals: Any,
    relu: bool,
) -> tuple[Array, Vjp]:
    """Batch norm, then the shortcut and the ReLU if there are any: see `minisimclr.ops.batch_norm`.

    Shapes: x (…,C), scale (C,), shift (C,), shortcut (…,C) -> y (…,C)
    VJP:    g ← g where y > 0, if relu;  dshortcut = g;  dscale, dshift by (4.4), dx by (4.7)
    """
    shape = x.shape
    table = x.reshape(-1, shape[-1])  # (M,C)
    inverse = 1 / xp.sqrt(variance + eps)  # 1/σ, (C,)
    slope = scale * inverse  # (C,); with slope and level, (4.3) is y = slope·x + level
    level = shift - mean * slope
    value = xp.empty(shape, x.dtype)
    y = value.reshape(table.shape)  # (M,C), the same memory
    _forward(xp, y, table, slope, level, [a.reshape(table.shape) for a in shortcut], relu)
    others = len(shortcut)  # the vjp keeps their number, not the arrays

    def vjp(g: Array) -> tuple[Array, ...]:  # g (…,C)
        g = g.reshape(table.shape)  # (M,C)
        opened = xp.empty(table.shape, g.dtype) if relu else g  # g where the ReLU is open
        sums = _opened_and_summed(xp, opened, g, y, table, mean, relu)  # (2,C)
        dshift, dscale = sums[0], sums[1] * inverse
        terms = None
        if totals is not None:  # in training; other processes may have rows of the batch, too
            all_shift, all_scale, M = totals(dshift, dscale, len(table))
            terms = (all_shift / M, all_scale * inverse / M)
        dx = _input_gradient(xp, opened, table, mean, slope, terms)
        return dx.reshape(shape), dscale, dshift, *[opened.reshape(shape)] * others

    return value, vjp


def _forward(xp: Any, y: Array, table: Array, slope: Array, level: Array, shortcut: list[Array], relu: bool) -> None:
    """Fill y (M,C) with slope·x + level + shortcut, and cut it off at 0 if relu."""
    wide = sum_dtype(xp, table.dtype)

    def fill(rows: slice) -> None:
        part = y[rows] if wide == y.dtype else xp.empty(y[rows].shape, wide)  # (rows, C)
        xp.multiply(table[rows], slope, out=part)
        part += level
        for other in shortcut:
            part += other[rows]
        if relu:
            xp.clip(part, 0, xp.inf, out=part)  # three times as fast here as np.maximum(part, 0)
        if wide != y.dtype:
            y[rows] = part

    parallel(fill, _chunks(xp, table))


def _opened_and_summed(xp: Any, opened: Array, g: Array, y: Array, table: Array, mean: Array, relu: bool) -> Array:
    """Fill `opened` (M,C) with g where the ReLU is open, and return its sums: Σ g and Σ g·(x − mean), (2,C)."""

    def terms(rows: slice) -> tuple[Array, Array]:
        if relu:
            xp.multiply(g[rows], y[rows] > 0, out=opened[rows])
        centred = table[rows] - mean  # (rows, C)
        centred *= opened[rows]
        return opened[rows], centred

    return _channel_sums(xp, table, terms, count=2)


def _input_gradient(
    xp: Any, g: Array, table: Array, mean: Array, slope: Array, terms: tuple[Array, Array] | None
) -> Array:
    """Compute dx (M,C) by (4.7). `terms` are dshift/M and dscale/(σM), or None in evaluation."""
    dx = xp.empty(table.shape, g.dtype)
    wide = sum_dtype(xp, table.dtype)

    def fill(rows: slice) -> None:
        part = dx[rows] if wide == dx.dtype else xp.empty(dx[rows].shape, wide)  # (rows, C)
        if terms is None:
            xp.multiply(g[rows], slope, out=part)
        else:
            dshift, dscale = terms
            xp.subtract(table[rows], mean, out=part)
            part *= dscale
            part += dshift
            xp.subtract(g[rows], part, out=part)
            part *= slope
        if wide != dx.dtype:
            dx[rows] = part

    parallel(fill, _chunks(xp, table))
    return dx


# ── Sums over rows, chunk by chunk ────────────────────────────────────────────────────────────────


def _sum(xp: Any, table: Array) -> Array:
    """Sum over the rows: (rows, C) -> (C,). A row of ones times a matrix is the fastest sum."""
    return xp.ones(len(table), table.dtype) @ table


def _channel_sums(xp: Any, table: Array, terms: Callable[[slice], tuple[Array, ...]], count: int) -> Array:
    """Sum each of `count` terms over all rows of the table: (count, C). `terms` computes them for a chunk of rows."""
    chunks, wide = _chunks(xp, table), sum_dtype(xp, table.dtype)
    sums = xp.empty((len(chunks), count, table.shape[1]), wide)

    def sum_chunk(task: tuple[int, slice]) -> None:
        chunk, rows = task
        ones = xp.ones((1, rows.stop - rows.start), wide)
        for k, term in enumerate(terms(rows)):
            xp.matmul(ones, term.astype(wide, copy=False), out=sums[chunk, k : k + 1])

    parallel(sum_chunk, enumerate(chunks))
    return sums.sum(axis=0)


def _chunks(xp: Any, table: Array) -> list[slice]:
    """Cut the table's rows into chunks of CHUNK_BYTES; on a GPU all rows are one chunk."""
    return pieces(xp, len(table), max(1, CHUNK_BYTES // max(1, table.shape[1] * table.itemsize)))
