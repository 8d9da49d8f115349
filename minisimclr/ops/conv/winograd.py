"""Winograd's 3×3 convolution: fewer multiplications, for stride 1, padding 1 and float32.

The plain form (`plain.py`) multiplies nine times for each output pixel. This form gains a factor of four in the
multiplications. Measured on two threads with AVX-512 it takes 0.54–0.63 of the slabs' time from 128 channels on
(docs/03_convolution.md has the table). The price is a rounding error about five times as large.

Four outputs of a 3-tap filter seem to need 4·3 = 12 multiplications. But the transpose of filtering is the product
of a polynomial of 4 coefficients with one of 3. That product has degree 5, so it is known as soon as its values at
6 points are known, and these take 6 multiplications (Toom–Cook). In two dimensions 36 multiplications replace 144:

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A      d (6,6) window of the map, w (3,3), y (4,4) tile of the output     (3.4)

G and A hold powers of the points, Bᵀ coefficients of Lagrange's polynomials (the names are those of Lavin & Gray
2016). All windows and channels share the transforms. So ⊙ becomes one matrix product at each of the 36 points p:

    U = (G⊗G) w,   V = (Bᵀ⊗Bᵀ) d,   Mₚ = Vₚ Uₚ,   y = (Aᵀ⊗Aᵀ) M      Vₚ (rows,C), Uₚ (C,D), rows = tiles·N    (3.5)

The transforms are products with small dense matrices; in our layout their other side, (36, N·C), is one slab.
Each line of (3.5) is linear, so the backward pass is the transposed lines in reverse order. One M̄ serves both
gradients:

    M̄ = (A⊗A) ȳ,   V̄ₚ = M̄ₚ Uₚᵀ,   d̄ = (B⊗B) V̄,   Ūₚ = Vₚᵀ M̄ₚ,   w̄ = (Gᵀ⊗Gᵀ) Ū                           (3.6)

Memory, besides the results: V and M take BLOCK_BYTES for each thread or PHASE_BYTES in all; U and Ū take 36·C·D
numbers each. These buffers are kept for the next call, because mapping fresh pages would take longer than some of
the products.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016
"""

from __future__ import annotations

import functools
import math
import threading
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from ...backend import Array
from ...engine.autograd import Vjp
from ...processor import blocks, parallel, threads
from .products import SMALL_MATRIX, by_columns, by_rows, over_rows

TILE, WINDOW = 4, 6  # output pixels of a tile, and the input pixels that it reads, per side
POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))  # the sixth point is ∞

BLOCK_BYTES = 3 << 20  # V and M of one block, bytes, if each thread takes blocks of its own through all of (3.5)
PHASE_BYTES = 32 << 20  # V and M, bytes, if all threads share one block
SHARED_U = 1 << 20  # size of U, bytes, from which threads share a block: U then fills a core's cache by itself
PIECE = 4096  # columns of one transform: input and output then stay in the cache
PADDING_FLOATS = 16  # unused numbers between a buffer's places, one line of the cache: see `_buffer`

Tile: TypeAlias = tuple[int, int]  # row and column of a tile among the tiles
Piece: TypeAlias = tuple[int, slice]  # number of a tile in its run, and some images


def applies(xp: Any, x: Array, w: Array, stride: int, padding: int) -> bool:
    """True if this form can compute the convolution. In float64, where exactness is wanted, it never does."""
    if xp.__name__ != "numpy" or (stride, padding, len(w)) != (1, 1, 3):
        return False
    return bool(x.dtype == w.dtype == "float32" and x.size and w.size)


def worthwhile(shape: tuple[int, ...], D: int) -> bool:
    """True where this form was measured to be faster than the slabs (benchmarks/notes.md).

    That is with more than 32 channels: with fewer, the transforms cost what the products save. A small map gains
    nothing: the slabs, which leave out what lies outside the map, must take at least 64 products for 36 of (3.5).
    """
    H, W, _, C = shape
    enough = C * D > 32 * 32 and min(C, D) >= 16
    return enough and (3 * H - 2) * (3 * W - 2) >= 64 * -(-H // TILE) * -(-W // TILE)


# ── The transforms ────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _matrices() -> tuple[list[list[Fraction]], ...]:
    """Compute Aᵀ (4,6), G (6,3) and Bᵀ (6,6) from the points.

    Aᵀ and G evaluate polynomials: their entries are the powers 0…3 and 0…2 of the points. Bᵀ holds the coefficients
    of Π(x − q) over the other points q, the numerators of Lagrange's polynomials; the denominators go into G. At ∞ a
    polynomial's value is its leading coefficient.

    The usual points 0, ±1, ±2 give whole numbers, which helps those who write the transforms out as additions. We
    multiply by a matrix, so all points cost the same, and ±2/3, ±3/2 round off less than half as much.
    """

    def product(roots: list[Fraction]) -> list[Fraction]:
        """The coefficients of Π(x − root), lowest power first."""
        coefficients = [Fraction(1)]
        for root in roots:
            shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
            coefficients = [a - b for a, b in zip(shifted, scaled)]
        return coefficients

    at = [[*(p**k for p in POINTS), Fraction(k == TILE - 1)] for k in range(TILE)]
    g, bt = [], []
    for p in POINTS:
        others = [q for q in POINTS if q != p]
        denominator = functools.reduce(lambda a, q: a * (p - q), others, Fraction(1))
        g.append([p**k / denominator for k in range(3)])
        bt.append([*product(others), Fraction(0)])
    return at, [*g, [Fraction(0), Fraction(0), Fraction(1)]], [*bt, product(list(POINTS))]


@functools.cache
def _transforms(xp: Any) -> tuple[Array, Array, Array]:
    """Compute Aᵀ⊗Aᵀ (16,36), G⊗G (36,9) and Bᵀ⊗Bᵀ (36,36), rounded once."""
    small = [xp.asarray([[float(number) for number in row] for row in matrix]) for matrix in _matrices()]
    at, g, bt = (xp.kron(m, m).astype("float32") for m in small)
    return at, g, bt


def _at_points(xp: Any, w: Array) -> Array:
    """Compute U = (G⊗G) w: (3,3,C,D) -> (36,C,D)."""
    _, g, _ = _transforms(xp)
    C, D = w.shape[2:]
    u, flat = _buffer(xp, "U", 36, C, D), w.reshape(9, -1)  # (36,C,D), (9,C·D)
    parallel(lambda part: xp.matmul(g, flat[:, part], out=_flat(u)[:, part]), blocks(C * D, 2 * PIECE))
    return u


def _from_points(xp: Any, du: Array) -> Array:
    """Compute w̄ = (Gᵀ⊗Gᵀ) Ū: (36,C,D) -> (3,3,C,D)."""
    _, g, _ = _transforms(xp)
    C, D = du.shape[1:]
    dw = xp.empty((9, C * D), du.dtype)
    parallel(lambda part: xp.matmul(g.T, _flat(du)[:, part], out=dw[:, part]), blocks(C * D, 2 * PIECE))
    return dw.reshape(3, 3, C, D)


# ── The convolution ───────────────────────────────────────────────────────────────────────────────


def convolution(xp: Any, x: Array, w: Array, stride: int = 1, padding: int = 1) -> tuple[Array, Vjp]:
    """Convolve with stride 1 and padding 1 by (3.5).

    Shapes: x (H,W,N,C), w (3,3,C,D) -> (H,W,N,D)
    VJP:    dx and dw by (3.6), in one pass over memory
    """
    (H, W, N, C), D = x.shape, w.shape[3]
    plan = _plan(H, W, N, C, D)
    y, u = xp.empty((H, W, N, D), x.dtype), _at_points(xp, w)

    def compute_block(task: tuple[slice, list[Tile]]) -> None:
        images, run = task
        _forward(xp, x[:, :, images], u, y[:, :, images], run, plan.points)

    tasks = [(images, run) for images in plan.images for run in plan.runs]
    if plan.shared:  # the threads share the work inside each block
        for task in tasks:
            compute_block(task)
    else:
        parallel(compute_block, tasks)

    def vjp(dy: Array) -> tuple[Array, Array]:
        dx = xp.empty(x.shape, x.dtype)
        ut = _at_points(xp, w).transpose(0, 2, 1)  # (36,D,C)
        # BLAS does not pack small products (products.py), and then reads a transposed matrix slowly
        ut = xp.ascontiguousarray(ut) if C * D <= SMALL_MATRIX else ut
        sums = [_buffer(xp, f"dU of worker {k}", 36, C, D) for k in range(plan.workers)]

        def add_blocks(worker: int) -> None:
            """Take every block of this worker's images, so that no two threads add to the same place."""
            mine = plan.images[worker :: plan.workers]
            for images in mine:
                maps = x[:, :, images], dy[:, :, images], dx[:, :, images]
                for run in plan.runs:
                    first = run is plan.runs[0]
                    _backward(xp, maps, ut, sums[worker], run, plan.points, first, first and images is mine[0])

        parallel(add_blocks, range(plan.workers))
        return dx, _from_points(xp, functools.reduce(xp.add, sums))

    return y, vjp


def _forward(xp: Any, x: Array, u: Array, y: Array, run: list[Tile], points: int) -> None:
    """Compute (3.5) for a run of tiles: V at the points, 36 products (`points` of them in one call), then y."""
    at, _, bt = _transforms(xp)  # (16,36), …, (36,36)
    N, (C, D) = x.shape[2], u.shape[1:]
    v, m = _buffer(xp, "V", 36, len(run), N, C), _buffer(xp, "M", 36, len(run), N, D)

    def enter(piece: Piece) -> None:
        k, images = piece
        by_columns(xp, bt, _read(xp, x[:, :, images], run[k], -1, WINDOW), _flat(v[:, k, images]))

    def multiply(p: slice) -> None:
        by_rows(xp, _rows(v[p]), u[p], _rows(m[p]))  # (points, tiles·N, C) (points, C, D)

    def leave(piece: Piece) -> None:
        k, images = piece
        here, inside = _overlap(y, run[k], 0, TILE)
        tile = _buffer(xp, "tile", TILE * TILE, images.stop - images.start, D)
        by_columns(xp, at, _flat(m[:, k, images]), _flat(tile))
        y[:, :, images][here] = _square(tile)[inside]

    pieces = [(k, images) for images in blocks(N, max(1, PIECE // max(C, D))) for k in range(len(run))]
    parallel(enter, pieces)
    parallel(multiply, blocks(36, points))
    parallel(leave, pieces)


def _backward(
    xp: Any, maps: tuple[Array, ...], ut: Array, du: Array, run: list[Tile], points: int, new_dx: bool, new_du: bool
) -> None:
    """Compute (3.6) for a run of tiles. d̄ is added to dx, Ū to du; new_dx, new_du: overwrite instead.

    Shapes: maps x (H,W,N,C), dy (H,W,N,D) and dx (H,W,N,C); ut (36,D,C), du (36,C,D)
    """
    x, dy, dx = maps
    at, _, bt = _transforms(xp)
    N, (D, C) = x.shape[2], ut.shape[1:]
    v, m = _buffer(xp, "V", 36, len(run), N, C), _buffer(xp, "M", 36, len(run), N, D)

    def enter(piece: Piece) -> None:
        k, images = piece
        by_columns(xp, bt, _read(xp, x[:, :, images], run[k], -1, WINDOW), _flat(v[:, k, images]))
        by_columns(xp, at.T, _read(xp, dy[:, :, images], run[k], 0, TILE), _flat(m[:, k, images]))

    def multiply(p: slice) -> None:
        vp, mp = _rows(v[p]), _rows(m[p])
        product = du[p] if new_du else _buffer(xp, "Ū", *du[p].shape)
        over_rows(xp, vp, mp, product)
        if not new_du:
            du[p] += product
        by_rows(xp, mp, ut[p], vp)  # V is not needed any more, so V̄ takes its place

    def leave(images: slice) -> None:  # the windows of neighbours overlap, so one task takes all those of an image
        window, part = _buffer(xp, "window", WINDOW * WINDOW, images.stop - images.start, C), dx[:, :, images]
        if new_dx:
            part[...] = 0
        for k, tile in enumerate(run):
            here, inside = _overlap(dx, tile, -1, WINDOW)
            by_columns(xp, bt.T, _flat(v[:, k, images]), _flat(window))
            part[here] += _square(window)[inside]

    parts = blocks(N, max(1, min(PIECE // max(C, D), -(-N // threads()))))
    parallel(enter, [(k, images) for images in parts for k in range(len(run))])
    parallel(multiply, blocks(36, points))
    parallel(leave, parts)


# ── Sharing the work ──────────────────────────────────────────────────────────────────────────────


class Plan(NamedTuple):
    """The division of a convolution into blocks: some images of a run of tiles each.

    Threads that share a block wait for each other after each line of (3.5). Otherwise each thread takes blocks of its
    own, which stay in its cache from line to line, and takes them through all points in one call: threads that call
    often wait for each other at Python's lock.
    """

    images: list[slice]
    runs: list[list[Tile]]
    shared: bool
    workers: int
    points: int  # how many of the 36 products are taken in one call


def _plan(H: int, W: int, N: int, C: int, D: int) -> Plan:
    """Choose blocks whose V and M fit the memory that they may take."""
    shared = 4 * 36 * C * D > SHARED_U
    workers = 1 if shared else min(threads(), N)
    rows = max(1, (PHASE_BYTES if shared else BLOCK_BYTES) // (4 * 36 * (C + D)))
    images = min(rows, -(-N // workers), N if shared else 32)
    tiles = [(i, j) for i in range(-(-H // TILE)) for j in range(-(-W // TILE))]
    runs = [tiles[part] for part in blocks(len(tiles), max(1, rows // images))]
    return Plan(blocks(N, images), runs, shared, workers, points=3 if shared else 36)


# ── Tiles, windows, buffers ───────────────────────────────────────────────────────────────────────


def _overlap(maps: Array, tile: Tile, offset: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a window that lies on the maps: as slices of the maps, and as slices of the window.

    The window is `size` pixels wide and begins `offset` pixels from the tile's first.
    """
    here, inside = [], []
    for k, side in zip(tile, maps.shape):
        start = k * TILE + offset
        first, last = max(0, start), min(side, start + size)
        here.append(slice(first, last))
        inside.append(slice(first - start, last - start))
    return (here[0], here[1]), (inside[0], inside[1])


def _read(xp: Any, maps: Array, tile: Tile, offset: int, size: int) -> Array:
    """Copy a window of the maps: (size², N·C), zero outside the maps."""
    here, inside = _overlap(maps, tile, offset, size)
    window = _buffer(xp, "window", size * size, *maps.shape[2:])
    part, place = maps[here], _square(window)
    if part.shape != place.shape:
        place[...] = 0
    place[inside] = part
    return _flat(window)


def _flat(a: Array) -> Array:
    """(36,N,C) -> (36,N·C), a view: one column for each number that is transformed."""
    return a.reshape(len(a), -1)


def _rows(a: Array) -> Array:
    """(points,tiles,N,C) -> (points,tiles·N,C), a view."""
    return a.reshape(len(a), -1, a.shape[-1])


def _square(a: Array) -> Array:
    """(size²,N,C) -> (size,size,N,C), a view."""
    return a.reshape(math.isqrt(len(a)), -1, *a.shape[1:])


_kept = threading.local()  # the buffers of each thread, by name


def _buffer(xp: Any, name: str, places: int, *shape: int) -> Array:
    """Return an array (places, *shape) to use until this thread asks for the same name again; its memory is kept.

    A transform reads and writes the same spot of all 36 places at once. The places' sizes are multiples of large
    powers of two, and a cache has only a few lines for addresses that far apart. PADDING_FLOATS numbers between the
    places shift them against each other, which is 1.6 times as fast.
    """
    size = math.prod(shape)
    apart = size + PADDING_FLOATS  # distance from one place to the next
    flat = vars(_kept).get(name)
    if flat is None or flat.size < places * apart:
        flat = vars(_kept)[name] = xp.empty(places * apart, "float32")
    return flat[: places * apart].reshape(places, apart)[:, :size].reshape(places, *shape)
