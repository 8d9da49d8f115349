"""Convolution slab by slab: the plain form's products, cut to fit a core's cache.

The plain form (`plain.py`) copies the map into a padded one, and takes the whole map through memory once for
each tap: it reads the map and the output nine times, and one thread does it all. Here

* the zeros of the padding are never built: a tap that would read outside the map is left out;
* a run of pixels along a row, about 1 MiB of output, takes all its taps while it is in a core's cache;
* threads take runs of their own. The result does not depend on which thread takes which run.

Measured on a two-core CPU at a layer of ResNet-18 (32×32 maps, 128 views, 64 to 64 channels, value and both
gradients): the plain form takes 1.2–1.4 times as long on one thread and about 3 times as long on two, of which it
uses one.

In the layout (H,W,N,C) a run of pixels along a row is one contiguous slab of memory, also when it is shifted by a
pixel. So the product of a whole run is ONE product of a (pixels·N, C) slab with the (C, D) matrix of the tap, and
nothing is copied unless the stride skips pixels. The book, chapter 3, has the pictures.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ...backend import Array
from ...processor import blocks, parallel, threads
from .products import SMALL_MATRIX, by_rows, is_thin, over_rows

SLAB_BYTES = 1 << 20  # output of one task, bytes: a slab, its input and the kernel then fit a core's cache

Reads: TypeAlias = tuple[int, range, range]  # kernel offset k, the outputs that read there, the inputs they read
Overlap: TypeAlias = tuple[int, slice, slice]  # the same for a part of the outputs, counted from the part's start


# ── Which output reads which input ────────────────────────────────────────────────────────────────


def _reads(size: int, out: int, kernel: int, stride: int, padding: int) -> list[Reads]:
    """List, along one side of the map, which outputs read which inputs at each kernel offset k.

    Output t reads input t·stride + k − padding. Where that lies outside the map, output t is left out.
    """
    reads = []
    for k in range(kernel):
        first = max(0, -((k - padding) // stride))
        last = min(out - 1, (size - 1 + padding - k) // stride)
        inputs = range(first * stride + k - padding, last * stride + k - padding + 1, stride)
        if first <= last:
            reads.append((k, range(first, last + 1), inputs))
    return reads


def _itself(size: int) -> list[Reads]:
    """The reads of a 1×1 kernel with stride 1: each position reads itself."""
    return [(0, range(size), range(size))]


def _swapped(reads: list[Reads]) -> list[Reads]:
    """Return the same pairs with the inputs first, for the backward pass: input p receives from output t."""
    return [(k, inputs, outputs) for k, outputs, inputs in reads]


def _partners(position: int, reads: list[Reads]) -> list[tuple[int, int]]:
    """List the pairs (kernel offset, partner) of one position on the first side of `reads`."""
    return [(k, there[here.index(position)]) for k, here, there in reads if position in here]


def _within(part: slice, reads: list[Reads]) -> list[Overlap]:
    """Restrict `reads` to the positions in `part`."""
    found = []
    for k, here, there in reads:
        first = max(0, -((here.start - part.start) // here.step))  # −(−a//b) is a/b, rounded up
        stop = max(0, -((here.start - part.stop) // here.step))
        if here[first:stop]:
            found.append((k, _as_slice(here[first:stop], part.start), _as_slice(there[first:stop])))
    return found


def _as_slice(positions: range, origin: int = 0) -> slice:
    return slice(positions.start - origin, positions[-1] + 1 - origin, positions.step)


# ── Convolution ───────────────────────────────────────────────────────────────────────────────────


def convolution(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Any]:
    """Convolve by (3.1), slab by slab.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)
    VJP:    dx by (3.2), dw by (3.3)
    """
    (H, W, N, C), (K, _, _, D) = x.shape, w.shape
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    if x.dtype == w.dtype == "float16":
        return _in_single_precision(xp, x, w, stride, padding)
    rows = _reads(H, out_h, K, stride, padding)
    columns = _reads(W, out_w, K, stride, padding)
    thin = is_thin(w.shape)

    y = xp.empty((out_h, out_w, N, D), xp.result_type(x, w))
    (_unfolded_product if thin else _sum_of_products)(xp, y, x, w, rows, columns)

    def vjp(g: Array) -> tuple[Any, Any]:  # g (H',W',N,D)
        def dx() -> Array:
            dx = xp.empty(x.shape, g.dtype)  # (H,W,N,C)
            wt = w.transpose(0, 1, 3, 2)  # (K,K,D,C)
            # BLAS does not pack small products (products.py), and then reads a transposed matrix slowly
            wt = xp.ascontiguousarray(wt) if C * D <= SMALL_MATRIX else wt
            _sum_of_products(xp, dx, g, wt, _swapped(rows), _swapped(columns))
            return dx

        def dw() -> Array:
            return (_unfolded_gradient if thin else _kernel_gradient)(xp, x, g, w, rows, columns)

        return dx, dw

    return y, vjp


def _in_single_precision(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Any]:
    """Convolve half-precision arrays on a CPU, which cannot compute in them: float32 inside, one rounding each."""
    y, vjp_single = convolution(xp, x.astype(xp.float32), w.astype(xp.float32), stride, padding)

    def vjp(g: Array) -> tuple[Any, Any]:
        dx, dw = vjp_single(g.astype(xp.float32))
        return lambda: dx().astype(x.dtype), lambda: dw().astype(w.dtype)

    return y.astype(x.dtype), vjp


def _sum_of_products(
    xp: Any, out: Array, source: Array, matrices: Array, rows: list[Reads], columns: list[Reads]
) -> None:
    """Compute out[r, s] = Σᵢⱼ source[p, q] · matrixᵢⱼ over all (p, q) that (r, s) reads.

    With the inputs as `source` this is (3.1); with g as `source` and the pairs swapped it is (3.2).
    """
    if rows == _itself(out.shape[0]) and columns == _itself(out.shape[1]):
        # a 1×1 kernel has no neighbours, so the whole map may count as one row of pixels
        out, source = (a.reshape(1, -1, *a.shape[2:]) for a in (out, source))  # (1, H·W, N, channels)
        rows, columns = _itself(1), _itself(out.shape[1])
    (height, width, N, D), C = out.shape, source.shape[-1]
    parts = blocks(width, max(1, SLAB_BYTES // max(1, N * D * out.itemsize)))
    column_taps = [(part, _within(part, columns)) for part in parts]

    def fill_run(task: tuple[int, slice, list[Overlap]]) -> None:
        """Take one run of pixels of row r through all its taps."""
        r, part, inside = task
        target = out[r, part]  # (pixels, N, D)
        taps = [(i, p, *overlap) for i, p in _partners(r, rows) for overlap in inside]
        # The product of a tap that reaches every pixel of the run is written there; the others are added to it.
        whole = next((tap for tap in taps if tap[3] == slice(0, len(target), 1)), None)
        if whole:
            taps.remove(whole)
            i, p, j, _, there = whole
            by_rows(xp, source[p, there].reshape(-1, C), matrices[i, j], target.reshape(-1, D))
        else:
            target[...] = 0
        buffer = xp.empty((len(target) * N if taps else 0, D), out.dtype)
        for i, p, j, here, there in taps:
            slab = source[p, there].reshape(-1, C)  # (pixels·N, C): a view, a copy only if the stride skips pixels
            product = buffer[: len(slab)]  # (pixels·N, D)
            by_rows(xp, slab, matrices[i, j], product)
            target[here] += product.reshape(target[here].shape)

    parallel(fill_run, [(r, part, inside) for r in range(height) for part, inside in column_taps])


def _kernel_gradient(xp: Any, x: Array, g: Array, w: Array, rows: list[Reads], columns: list[Reads]) -> Array:
    """Compute dw (K,K,C,D) by (3.3). Each thread sums over rows of its own, and a row takes all its taps at once."""
    (height, width, _, D), C = g.shape, x.shape[-1]
    workers = min(threads(), height)
    sums = xp.zeros((workers, *w.shape), g.dtype)
    inside = _within(slice(0, width), columns)

    def add_rows(worker: int) -> None:
        """Add up the products of every row that this worker owns."""
        product = xp.empty((C, D), g.dtype)
        for r in range(worker, height, workers):
            for i, p in _partners(r, rows):
                for j, here, there in inside:
                    over_rows(xp, x[p, there].reshape(-1, C), g[r, here].reshape(-1, D), product)  # (C,D)
                    sums[worker, i, j] += product

    parallel(add_rows, range(workers))
    return sums.sum(axis=0)


# ── Few input channels ────────────────────────────────────────────────────────────────────────────

# The first layer of a network has three input channels. Products with an inner size of 3 keep no core busy, so
# there the K·K·C numbers below the kernel are laid side by side first, one row of pixels at a time, and the row
# is one product. The CIFAR stem runs four times as fast; no other layer gains.


def _unfolded_row(xp: Any, x: Array, r: int, width: int, w: Array, rows: list[Reads], inside: list[Overlap]) -> Array:
    """Lay side by side what the kernel covers at each pixel of output row r: (width·N, K·K·C), 0 outside the map."""
    covered = xp.zeros((width, x.shape[2], *w.shape[:3]), x.dtype)  # (width, N, K, K, C)
    for i, p in _partners(r, rows):
        for j, here, there in inside:
            covered[here, :, i, j] = x[p, there]
    return covered.reshape(width * x.shape[2], w.size // w.shape[-1])


def _unfolded_product(xp: Any, out: Array, x: Array, w: Array, rows: list[Reads], columns: list[Reads]) -> None:
    """Compute the output by (3.1), one product per row."""
    height, width, N, D = out.shape
    inside = _within(slice(0, width), columns)

    def fill_row(r: int) -> None:
        covered = _unfolded_row(xp, x, r, width, w, rows, inside)  # (width·N, K·K·C)
        xp.matmul(covered, w.reshape(-1, D), out=out[r].reshape(width * N, D))

    parallel(fill_row, range(height))


def _unfolded_gradient(xp: Any, x: Array, g: Array, w: Array, rows: list[Reads], columns: list[Reads]) -> Array:
    """Compute dw by (3.3), one product per row; the rows are added in a fixed order."""
    height, width, N, D = g.shape
    parts = xp.empty((height, w.size // D, D), g.dtype)
    inside = _within(slice(0, width), columns)

    def fill_part(r: int) -> None:
        covered = _unfolded_row(xp, x, r, width, w, rows, inside)  # (width·N, K·K·C)
        xp.matmul(covered.T, g[r].reshape(width * N, D), out=parts[r])  # (K·K·C, D)

    parallel(fill_part, range(height))
    return parts.sum(axis=0).reshape(w.shape)
