"""Convolution in few large products: the twin of `conv2d`'s direct form for a GPU.

There every call launches a kernel, which costs microseconds whatever its size, so a product a row and tap, hundreds
in all, would leave the processor waiting. On a map that really is surrounded by zeros each tap is ONE product.
Write the padded map as a matrix of its pixels, Wₚ to a row, N images to a pixel:

    P (Hₚ·Wₚ·N, C):   the pixel (r+i, s+j) is (i·Wₚ + j)·N rows further on than (r, s), whatever r and s are

so the taps of all outputs at once are the same rows of P, shifted, and a shifted matrix is a view:

    Y[:L] = Σᵢⱼ P[oᵢⱼ : oᵢⱼ+L] wᵢⱼ,      oᵢⱼ = (i·Wₚ + j)·N,  L = ((H'−1)·Wₚ + W')·N                    (3.8)

Y is as wide as P. In the columns beyond W' a window would reach around the edge into the next row; what is
computed there is never read. On the way back they receive no gradient, G = 0 there, and

    dP[oᵢⱼ : oᵢⱼ+L] += G[:L] wᵢⱼᵀ,       dwᵢⱼ = P[oᵢⱼ : oᵢⱼ+L]ᵀ G[:L]                                    (3.9)

With stride s the padded map is dealt out to s×s smaller ones, its phases: every s-th row and column, from each
beginning. Tap (i, j) finds its pixels in phase (i mod s, j mod s), shifted by (⌊i/s⌋, ⌊j/s⌋): (3.8) again.

Sums of half-precision products are kept in float32 and rounded once. Memory: the phases and Y, or dP and G.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...backend import Array
from ...engine.autograd import Vjp
from .cublas import add_product

THIN = 160  # a kernel over fewer numbers than this (K·K·C: the stems) is one product in all, see `_unfolded`


class Grid(NamedTuple):
    """Where the pixels of one convolution lie."""

    map: tuple[int, int]  # H, W
    out: tuple[int, int]  # H', W'
    phase: tuple[int, int]  # sides of a phase: of the whole padded map, if the stride is 1
    kernel: int
    stride: int
    padding: int

    @property
    def phases(self) -> int:
        """How many a side: a kernel smaller than the stride does not touch all of them."""
        return min(self.stride, self.kernel)

    def taps(self, N: int) -> Iterator[tuple[int, int, int, int, slice]]:
        """Of each tap: i, j, its phase (row, column), and the rows of the phase that it multiplies, o … o+L."""
        length = ((self.out[0] - 1) * self.phase[1] + self.out[1]) * N
        for i in range(self.kernel):
            for j in range(self.kernel):
                start = (i // self.stride * self.phase[1] + j // self.stride) * N
                yield i, j, i % self.stride, j % self.stride, slice(start, start + length)

    def overlap(self, axis: int, phase: int) -> tuple[slice, slice]:
        """What of a phase lies on the map, along one axis: where in the phase, and where on the map."""
        first = max(0, -((phase - self.padding) // self.stride))  # the t-th is at t·stride + phase − padding
        last = min(self.phase[axis], -((phase - self.padding - self.map[axis]) // self.stride))
        start = first * self.stride + phase - self.padding
        return slice(first, last), slice(start, start + (last - first) * self.stride, self.stride)


def convolution(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Vjp]:
    """conv2d by (3.8).

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)
    VJP:    dx and dw by (3.9)
    """
    (H, W, N, C), (K, _, _, D) = x.shape, w.shape
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    reach = (K - 1) // stride
    grid = Grid((H, W), (out_h, out_w), (out_h + reach, out_w + reach), K, stride, padding)
    dtype = xp.result_type(x, w)
    thin = K > 1 and K * K * C <= THIN

    if thin:
        y = (_unfolded(xp, x, grid) @ w.reshape(-1, D)).reshape(out_h, out_w, N, D)
    else:
        slab = xp.zeros((out_h * grid.phase[1] * N, D), _wide(xp, dtype))
        phases = _dealt(xp, x, grid)
        for i, j, a, b, rows in grid.taps(N):
            add_product(xp, slab[: rows.stop - rows.start], phases[a][b][rows], w[i, j])
        y = _cropped(xp, slab, grid, N).astype(dtype, copy=False)

    def vjp(g: Array) -> tuple[Any, Any]:
        def dx() -> Array:
            wide = _wide(xp, g.dtype)
            G = _spread(xp, g, grid)
            back = [
                [xp.zeros((grid.phase[0] * grid.phase[1] * N, C), wide) for _ in range(grid.phases)]
                for _ in range(grid.phases)
            ]
            for i, j, a, b, rows in grid.taps(N):
                add_product(xp, back[a][b][rows], G[: rows.stop - rows.start], w[i, j].T)
            return _collected(xp, back, grid, N).astype(g.dtype, copy=False)

        def dw() -> Array:
            if thin:
                return (_unfolded(xp, x, grid).T @ g.reshape(-1, D)).reshape(w.shape)
            G, phases = _spread(xp, g, grid), _dealt(xp, x, grid)
            products = [phases[a][b][rows].T @ G[: rows.stop - rows.start] for _, _, a, b, rows in grid.taps(N)]
            return xp.stack(products).reshape(w.shape)

        return dx, dw

    return y, vjp


def _wide(xp: Any, dtype: Any) -> Any:
    """In what sums are kept: float32 for half precision."""
    return xp.float32 if dtype.itemsize == 2 else dtype


# ── To the phases and back ────────────────────────────────────────────────────────────────────────


def _dealt(xp: Any, x: Array, grid: Grid) -> list[list[Array]]:
    """The map, surrounded by zeros, as its phases: (Hₚ·Wₚ·N, C) each."""
    N, C = x.shape[2:]
    if grid.phase == grid.map and grid.stride == 1:  # nothing to surround it with: the map itself
        return [[xp.ascontiguousarray(x).reshape(-1, C)]]
    phases: list[list[Array]] = []
    for a in range(grid.phases):
        in_rows, rows = grid.overlap(0, a)
        phases.append([])
        for b in range(grid.phases):
            in_columns, columns = grid.overlap(1, b)
            phase = xp.zeros((*grid.phase, N, C), x.dtype)
            phase[in_rows, in_columns] = x[rows, columns]
            phases[-1].append(phase.reshape(-1, C))
    return phases


def _collected(xp: Any, phases: list[list[Array]], grid: Grid, N: int) -> Array:
    """The adjoint of `_dealt`: the map of the phases, without what surrounded it; 0 at pixels in no phase."""
    C = phases[0][0].shape[-1]
    if grid.phase == grid.map and grid.stride == 1:
        return phases[0][0].reshape(*grid.map, N, C)
    x = xp.zeros((*grid.map, N, C), phases[0][0].dtype)
    for a, row in enumerate(phases):
        in_rows, rows = grid.overlap(0, a)
        for b, phase in enumerate(row):
            in_columns, columns = grid.overlap(1, b)
            x[rows, columns] = phase.reshape(*grid.phase, N, C)[in_rows, in_columns]
    return x


def _cropped(xp: Any, slab: Array, grid: Grid, N: int) -> Array:
    """Y without the columns that are never read: (H',W',N,D)."""
    out_h, out_w = grid.out
    return xp.ascontiguousarray(slab.reshape(out_h, grid.phase[1], N, -1)[:, :out_w])


def _spread(xp: Any, g: Array, grid: Grid) -> Array:
    """The adjoint of `_cropped`: G (H'·Wₚ·N, D), 0 in those columns."""
    out_h, out_w = grid.out
    if grid.phase[1] == out_w:
        return xp.ascontiguousarray(g).reshape(-1, g.shape[-1])
    G = xp.zeros((out_h, grid.phase[1], *g.shape[2:]), g.dtype)
    G[:, :out_w] = g
    return G.reshape(-1, g.shape[-1])


def _unfolded(xp: Any, x: Array, grid: Grid) -> Array:
    """What the kernel covers at each output, side by side: (H'·W'·N, K·K·C).

    For the first layer, whose taps with three channels each would keep no processor busy.
    """
    (N, C), (out_h, out_w), K = x.shape[2:], grid.out, grid.kernel
    covered = xp.empty((out_h, out_w, N, K, K, C), x.dtype)
    phases = _dealt(xp, x, grid)
    for i, j, a, b, _ in grid.taps(N):
        r, s = i // grid.stride, j // grid.stride
        covered[:, :, :, i, j] = phases[a][b].reshape(*grid.phase, N, C)[r : r + out_h, s : s + out_w]
    return covered.reshape(-1, K * K * C)
