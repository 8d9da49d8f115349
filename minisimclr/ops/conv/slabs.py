"""Convolution and pooling on feature maps in the layout (H, W, N, C): the batch inside the image.

Why this layout. A 3×3 convolution is nine matrix products, one for each kernel tap (i, j):

    y[r, s] = Σᵢⱼ x[r+i−1, s+j−1] wᵢⱼ          x[·,·] (N,C), wᵢⱼ (C,D), y[·,·] (N,D)      (3.1)

With the batch inside, a run of pixels along a row is one contiguous slab of memory, also when it is
shifted by a pixel; so the products of a whole run are ONE product of a (W·N, C) slab with wᵢⱼ. There is
nothing to copy, nothing to unfold, and padding is no array of zeros but the question which rows and
columns take part. The gradients are the same nine products, transposed:

    dx[r+i−1, s+j−1] += g[r, s] wᵢⱼᵀ                                                        (3.2)
    dwᵢⱼ = Σᵣₛ x[r+i−1, s+j−1]ᵀ g[r, s]                                                     (3.3)
"""

from __future__ import annotations

from typing import Any, TypeAlias

from ...backend import Array
from ...processor import blocks, parallel, threads
from .products import SMALL, by_rows, over_rows

SLAB_BYTES = 1 << 20  # of output at a time: a slab, its input and the kernel then fit a core's cache
THIN = 160  # a kernel over fewer numbers than this (K·K·C: the stems) is one product per row

Meeting: TypeAlias = tuple[int, range, range]  # kernel offset k; the outputs; the inputs they meet there
Overlap: TypeAlias = tuple[int, slice, slice]  # the same of a part of the outputs, counted from where it starts


def _meetings(size: int, out: int, kernel: int, stride: int, padding: int) -> list[Meeting]:
    """Along one side: which outputs meet which inputs at each kernel offset.

    Output t meets input t·stride + k − padding, if that is inside the map.
    """
    meetings = []
    for k in range(kernel):
        first = max(0, -((k - padding) // stride))
        last = min(out - 1, (size - 1 + padding - k) // stride)
        inputs = range(first * stride + k - padding, last * stride + k - padding + 1, stride)
        if first <= last:
            meetings.append((k, range(first, last + 1), inputs))
    return meetings


def _turned(meetings: list[Meeting]) -> list[Meeting]:
    """The same meetings seen from the inputs: the gradient's way back."""
    return [(k, there, here) for k, here, there in meetings]


def _at(position: int, meetings: list[Meeting]) -> list[tuple[int, int]]:
    """Whom one position meets: pairs of kernel offset and partner."""
    return [(k, there[here.index(position)]) for k, here, there in meetings if position in here]


def _within(part: slice, meetings: list[Meeting]) -> list[Overlap]:
    """The meetings of the positions in `part`."""
    found = []
    for k, here, there in meetings:
        first = max(0, -((here.start - part.start) // here.step))  # −(−a//b) rounds a/b up
        stop = max(0, -((here.start - part.stop) // here.step))
        if here[first:stop]:
            found.append((k, _slice(here[first:stop], part.start), _slice(there[first:stop])))
    return found


def _slice(positions: range, origin: int = 0) -> slice:
    return slice(positions.start - origin, positions[-1] + 1 - origin, positions.step)


# ── Convolution ───────────────────────────────────────────────────────────────────────────────────


def convolution(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Any]:
    """conv2d by (3.1), slab by slab.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)
    VJP:    dx by (3.2), dw by (3.3)
    """
    (H, W, N, C), (K, _, _, D) = x.shape, w.shape
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    if x.dtype == w.dtype == "float16":
        return _rounded(xp, x, w, stride, padding)
    rows = _meetings(H, out_h, K, stride, padding)
    columns = _meetings(W, out_w, K, stride, padding)
    thin = K > 1 and K * K * C <= THIN

    y = xp.empty((out_h, out_w, N, D), xp.result_type(x, w))
    (_unfolded_product if thin else _sum_of_products)(xp, y, x, w, rows, columns)

    def vjp(g: Array) -> tuple[Any, Any]:
        def dx() -> Array:
            back = xp.empty(x.shape, g.dtype)
            wt = w.transpose(0, 1, 3, 2)
            wt = xp.ascontiguousarray(wt) if C * D <= SMALL else wt
            _sum_of_products(xp, back, g, wt, _turned(rows), _turned(columns))
            return back

        def dw() -> Array:
            return (_unfolded_gradient if thin else _kernel_gradient)(xp, x, g, w, rows, columns)

        return dx, dw

    return y, vjp


def _rounded(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Any]:
    """Half precision on a CPU, which does not compute in it: float32 inside, each result rounded once."""
    y, back = convolution(xp, x.astype(xp.float32), w.astype(xp.float32), stride, padding)

    def vjp(g: Array) -> tuple[Any, Any]:
        dx, dw = back(g.astype(xp.float32))
        return lambda: dx().astype(x.dtype), lambda: dw().astype(w.dtype)

    return y.astype(x.dtype), vjp


def _sum_of_products(
    xp: Any, out: Array, source: Array, matrices: Array, rows: list[Meeting], columns: list[Meeting]
) -> None:
    """out[r, s] = Σᵢⱼ source[p, q] · matrixᵢⱼ over the (p, q) that (r, s) meets: (3.1) and, turned round, (3.2).

    A task is a run of pixels of one row. With stride 2 a slab of `source` is copied, otherwise it is a view.
    """
    if all(meetings == [(0, range(side), range(side))] for meetings, side in zip((rows, columns), out.shape)):
        out, source = (a.reshape(1, -1, *a.shape[2:]) for a in (out, source))  # 1×1: no neighbours, so all is one row
        rows, columns = ([(0, range(side), range(side))] for side in out.shape[:2])
    (height, width, N, D), C = out.shape, source.shape[-1]
    parts = blocks(width, max(1, SLAB_BYTES // max(1, N * D * out.itemsize)))
    meetings = [(part, _within(part, columns)) for part in parts]

    def run(task: tuple[int, slice, list[Overlap]]) -> None:
        r, part, inside = task
        target = out[r, part]
        taps = [(i, p, *overlap) for i, p in _at(r, rows) for overlap in inside]
        whole = next((tap for tap in taps if tap[3] == slice(0, len(target), 1)), None)
        if whole:  # the first product that reaches every output is put there, the others are added
            taps.remove(whole)
            i, p, j, _, there = whole
            by_rows(xp, source[p, there].reshape(-1, C), matrices[i, j], target.reshape(-1, D))
        else:
            target[...] = 0
        buffer = xp.empty((len(target) * N if taps else 0, D), out.dtype)
        for i, p, j, here, there in taps:
            slab = source[p, there].reshape(-1, C)
            product = buffer[: len(slab)]
            by_rows(xp, slab, matrices[i, j], product)
            target[here] += product.reshape(target[here].shape)

    parallel(run, [(r, part, inside) for r in range(height) for part, inside in meetings])


def _kernel_gradient(xp: Any, x: Array, g: Array, w: Array, rows: list[Meeting], columns: list[Meeting]) -> Array:
    """(3.3). Each thread sums over rows of its own, so that a row is in the cache for all its taps."""
    (height, width, _, D), C = g.shape, x.shape[-1]
    workers = min(threads(), height)
    parts = xp.zeros((workers, *w.shape), g.dtype)
    inside = _within(slice(0, width), columns)

    def work(worker: int) -> None:
        product = xp.empty((C, D), g.dtype)
        for r in range(worker, height, workers):
            for i, p in _at(r, rows):
                for j, here, there in inside:
                    over_rows(xp, x[p, there].reshape(-1, C), g[r, here].reshape(-1, D), product)
                    parts[worker, i, j] += product

    parallel(work, range(workers))
    return parts.sum(axis=0)


# A fast twin for few input channels (the first layer has three): nine products with an inner size of 3
# would keep no processor busy, so the K·K·C numbers under the kernel are laid side by side first, a row at
# a time, and the row is one product. Four times faster for the CIFAR stem; no other layer gains.


def _unfolded(xp: Any, x: Array, r: int, width: int, w: Array, rows: list[Meeting], inside: list[Overlap]) -> Array:
    """What the kernel covers at each pixel of output row r: (width·N, K·K·C), zero where it sticks out."""
    covered = xp.zeros((width, x.shape[2], *w.shape[:3]), x.dtype)
    for i, p in _at(r, rows):
        for j, here, there in inside:
            covered[here, :, i, j] = x[p, there]
    return covered.reshape(width * x.shape[2], w.size // w.shape[-1])


def _unfolded_product(xp: Any, out: Array, x: Array, w: Array, rows: list[Meeting], columns: list[Meeting]) -> None:
    height, width, N, D = out.shape
    inside = _within(slice(0, width), columns)

    def run(r: int) -> None:
        covered = _unfolded(xp, x, r, width, w, rows, inside)
        xp.matmul(covered, w.reshape(-1, D), out=out[r].reshape(width * N, D))

    parallel(run, range(height))


def _unfolded_gradient(xp: Any, x: Array, g: Array, w: Array, rows: list[Meeting], columns: list[Meeting]) -> Array:
    height, width, N, D = g.shape
    parts = xp.empty((height, w.size // D, D), g.dtype)
    inside = _within(slice(0, width), columns)

    def run(r: int) -> None:
        covered = _unfolded(xp, x, r, width, w, rows, inside)
        xp.matmul(covered.T, g[r].reshape(width * N, D), out=parts[r])

    parallel(run, range(height))
    return parts.sum(axis=0).reshape(w.shape)
