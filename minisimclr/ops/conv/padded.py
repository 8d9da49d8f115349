"""Convolution in few large products: the form for a GPU.

The plain form (`plain.py`) multiplies a slice of the padded map by each tap's matrix. To BLAS such a slice is a
stack of small matrices, or a copy. The slab form cuts it into hundreds of products, one for each row and tap. But
on a GPU each call launches a kernel, which costs microseconds whatever its size, and small calls leave it waiting.
This form gains ONE large product per tap, on a view, added to the output in the same call where cuBLAS is at hand;
and it keeps the sums of half-precision products in float32. How much faster it is on a GPU has not been measured.

Write the padded map as a matrix P (Hₚ·Wₚ·N, C) of its pixels, with Wₚ pixels in a row and N images in a pixel. The
pixel (r+i, s+j) then lies (i·Wₚ + j)·N rows below the pixel (r, s), whatever r and s are. So the taps of all
outputs at once are the same rows of P, shifted, and a shifted matrix is a view:

    Y[:L] = Σᵢⱼ P[oᵢⱼ : oᵢⱼ+L] wᵢⱼ,      oᵢⱼ = (i·Wₚ + j)·N,  L = ((H'−1)·Wₚ + W')·N                    (3.7)

Y is as wide as P. In the columns beyond W' a window reaches across the edge into the next row; what is computed
there is never read. In the backward pass these columns receive no gradient, G = 0 there, and

    dP[oᵢⱼ : oᵢⱼ+L] += G[:L] wᵢⱼᵀ,       dwᵢⱼ = P[oᵢⱼ : oᵢⱼ+L]ᵀ G[:L]                                    (3.8)

With stride s the padded map is split into s×s smaller maps, its phases: phase (a, b) holds every s-th row from row
a on and every s-th column from column b on. Tap (i, j) finds its pixels in phase (i mod s, j mod s), shifted by
(⌊i/s⌋, ⌊j/s⌋), and (3.7) holds for each phase.

Memory: the phases and Y in the forward pass; dP and G in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ...backend import Array
from ...engine.autograd import Vjp
from ..shapes import sum_dtype
from .cublas import add_product
from .products import is_thin


class Grid(NamedTuple):
    """The geometry of one convolution: where its pixels lie."""

    map: tuple[int, int]  # H, W
    out: tuple[int, int]  # H', W'
    phase: tuple[int, int]  # height and width of a phase; with stride 1 that is the whole padded map
    kernel: int
    stride: int
    padding: int

    @property
    def phases(self) -> int:
        """Phases per side: the stride, or the kernel size if that is smaller (the other phases are never read)."""
        return min(self.stride, self.kernel)

    def taps(self, N: int) -> Iterator[tuple[int, int, int, int, slice]]:
        """Yield i, j, the tap's phase (row, column), and the rows o…o+L of that phase that the tap multiplies."""
        length = ((self.out[0] - 1) * self.phase[1] + self.out[1]) * N
        for i in range(self.kernel):
            for j in range(self.kernel):
                start = (i // self.stride * self.phase[1] + j // self.stride) * N
                yield i, j, i % self.stride, j % self.stride, slice(start, start + length)

    def overlap(self, axis: int, phase: int) -> tuple[slice, slice]:
        """The part of a phase that lies on the map, along one axis: as a slice of the phase, and of the map."""
        # entry t of the phase is pixel t·stride + phase − padding of the map
        first = max(0, -((phase - self.padding) // self.stride))
        last = min(self.phase[axis], -((phase - self.padding - self.map[axis]) // self.stride))
        start = first * self.stride + phase - self.padding
        return slice(first, last), slice(start, start + (last - first) * self.stride, self.stride)


def convolution(xp: Any, x: Array, w: Array, stride: int, padding: int) -> tuple[Array, Vjp]:
    """Convolve by (3.7), one large product per tap.

    Shapes: x (H,W,N,C), w (K,K,C,D) -> (H',W',N,D)
    VJP:    dx and dw by (3.8)
    """
    (H, W, N, _), (K, _, _, D) = x.shape, w.shape
    out_h, out_w = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
    reach = (K - 1) // stride  # the largest shift of a tap inside its phase, rows or columns
    grid = Grid((H, W), (out_h, out_w), (out_h + reach, out_w + reach), K, stride, padding)
    dtype = xp.result_type(x, w)
    thin = is_thin(w.shape)

    if thin:
        y = (_unfolded(xp, x, grid) @ w.reshape(-1, D)).reshape(out_h, out_w, N, D)  # a single product
    else:
        slab = xp.zeros((out_h * grid.phase[1] * N, D), sum_dtype(xp, dtype))  # Y (H'·Wₚ·N, D)
        phases = _split(xp, x, grid)  # (Hₚ·Wₚ·N, C) each
        for i, j, a, b, rows in grid.taps(N):
            add_product(xp, slab[: rows.stop - rows.start], phases[a][b][rows], w[i, j])
        y = _cropped(xp, slab, grid, N).astype(dtype, copy=False)

    def vjp(g: Array) -> tuple[Any, Any]:  # g (H',W',N,D)
        return lambda: _input_gradient(xp, g, w, grid), lambda: _kernel_gradient(xp, x, g, w, grid)

    return y, vjp


def _input_gradient(xp: Any, g: Array, w: Array, grid: Grid) -> Array:
    """Compute dx (H,W,N,C) by (3.8)."""
    N, C = g.shape[2], w.shape[2]
    wide = sum_dtype(xp, g.dtype)
    G = _spread(xp, g, grid)  # (H'·Wₚ·N, D)
    dphases = [
        [xp.zeros((grid.phase[0] * grid.phase[1] * N, C), wide) for _ in range(grid.phases)] for _ in range(grid.phases)
    ]
    for i, j, a, b, rows in grid.taps(N):
        add_product(xp, dphases[a][b][rows], G[: rows.stop - rows.start], w[i, j].T)
    return _joined(xp, dphases, grid, N).astype(g.dtype, copy=False)


def _kernel_gradient(xp: Any, x: Array, g: Array, w: Array, grid: Grid) -> Array:
    """Compute dw (K,K,C,D) by (3.8)."""
    if is_thin(w.shape):
        return (_unfolded(xp, x, grid).T @ g.reshape(-1, g.shape[-1])).reshape(w.shape)
    G, phases = _spread(xp, g, grid), _split(xp, x, grid)
    products = [phases[a][b][rows].T @ G[: rows.stop - rows.start] for _, _, a, b, rows in grid.taps(x.shape[2])]
    return xp.stack(products).reshape(w.shape)  # (K·K, C, D) -> (K,K,C,D)


# ── Splitting a map into phases, and joining them ─────────────────────────────────────────────────


def _split(xp: Any, x: Array, grid: Grid) -> list[list[Array]]:
    """Split the map, surrounded by zeros, into its phases: (Hₚ·Wₚ·N, C) each."""
    N, C = x.shape[2:]
    if grid.phase == grid.map and grid.stride == 1:  # no padding: the map itself is the only phase
        return [[xp.ascontiguousarray(x).reshape(-1, C)]]
    phases: list[list[Array]] = []
    for a in range(grid.phases):
        in_rows, rows = grid.overlap(0, a)
        phases.append([])
        for b in range(grid.phases):
            in_columns, columns = grid.overlap(1, b)
            phase = xp.zeros((*grid.phase, N, C), x.dtype)
            phase[in_rows, in_columns] = x[rows, columns]
            phases[-1].append(phase.reshape(-1, C))  # (Hₚ·Wₚ·N, C)
    return phases


def _joined(xp: Any, phases: list[list[Array]], grid: Grid, N: int) -> Array:
    """Join phases to a map (H,W,N,C) without its ring of zeros: the adjoint of `_split`. A pixel in no phase is 0."""
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
    """Cut off the columns of Y that are never read: (H'·Wₚ·N, D) -> (H',W',N,D)."""
    out_h, out_w = grid.out
    return xp.ascontiguousarray(slab.reshape(out_h, grid.phase[1], N, -1)[:, :out_w])


def _spread(xp: Any, g: Array, grid: Grid) -> Array:
    """Put zeros into those columns, the adjoint of `_cropped`: g (H',W',N,D) -> G (H'·Wₚ·N, D)."""
    out_h, out_w = grid.out
    if grid.phase[1] == out_w:
        return xp.ascontiguousarray(g).reshape(-1, g.shape[-1])
    G = xp.zeros((out_h, grid.phase[1], *g.shape[2:]), g.dtype)
    G[:, :out_w] = g
    return G.reshape(-1, g.shape[-1])


def _unfolded(xp: Any, x: Array, grid: Grid) -> Array:
    """Lay side by side what the kernel covers at each output: (H'·W'·N, K·K·C).

    This serves the first layer, whose taps with three channels each would keep no processor busy.
    """
    (N, C), (out_h, out_w), K = x.shape[2:], grid.out, grid.kernel
    covered = xp.empty((out_h, out_w, N, K, K, C), x.dtype)
    phases = _split(xp, x, grid)
    for i, j, a, b, _ in grid.taps(N):
        r, s = i // grid.stride, j // grid.stride
        covered[:, :, :, i, j] = phases[a][b].reshape(*grid.phase, N, C)[r : r + out_h, s : s + out_w]
    return covered.reshape(-1, K * K * C)
