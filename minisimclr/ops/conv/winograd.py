"""Winograd's 3×3 convolution: the fast twin of `conv2d` for stride 1, padding 1 and float32.

Four outputs of a 3-tap filter need 4·3 = 12 multiplications, or so it seems. Read backwards, filtering is the
product of a polynomial of 4 coefficients with one of 3, and the product of degree 5 is known as soon as one knows
its values at 6 points, which takes 6 multiplications (Toom–Cook). In two dimensions 36 in place of 144:

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ d B) ] A      d (6,6) window of the map, w (3,3), y (4,4) tile of the output     (3.5)

G, Bᵀ go to the values at the 6×6 points, Aᵀ comes back (the names are those of Lavin & Gray 2016). All windows
and channels share the transforms, so that ⊙ becomes, at each of the 36 points p, one matrix product:

    U = (G⊗G) w,   V = (Bᵀ⊗Bᵀ) d,   Mₚ = Vₚ Uₚ,   y = (Aᵀ⊗Aᵀ) M      Vₚ (rows,C), Uₚ (C,D), rows = tiles·N    (3.6)

The transforms are products with small dense matrices; in our layout their other side, (36, N·C), is one slab.
Each line of (3.6) is linear, and the way back takes their transposes in reverse. One M̄ serves both gradients:

    M̄ = (A⊗A) ȳ,   V̄ₚ = M̄ₚ Uₚᵀ,   d̄ = (B⊗B) V̄,   Ūₚ = Vₚᵀ M̄ₚ,   w̄ = (Gᵀ⊗Gᵀ) Ū                           (3.7)

Memory: besides the results, BLOCK_BYTES a thread or PHASE_BYTES in all for V and M, and twice 36·C·D numbers for
U and Ū. These buffers are kept for the next call: filling fresh pages would take longer than some of the products.
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
from .products import SMALL, by_columns, by_rows, over_rows, unpacked_products

TILE, WINDOW = 4, 6
POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))  # and ∞

BLOCK_BYTES = 3 << 20  # of V and M while a thread takes a block through all of (3.6) by itself …
PHASE_BYTES = 32 << 20  # … and when all threads share one block, because U is too large for a core's cache:
SHARED_U = 1 << 20  # … from this size of U on
PIECE = 4096  # columns of a transform at a time
GAP = 16  # unused numbers, a line of the cache, between a buffer's places (see _buffer)
METHODS = ("auto", "direct", "winograd", "plain", "slabs", "padded")

Tile: TypeAlias = tuple[int, int]  # its row and column among the tiles
Piece: TypeAlias = tuple[int, slice]  # the number of a tile in its run, and some images


def applies(xp: Any, x: Array, w: Array, stride: int, padding: int, method: str) -> bool:
    """Whether conv2d should leave this one to us. In float64, where exactness is wanted, never."""
    if method not in METHODS:
        raise ValueError(f"conv2d: method must be one of {', '.join(METHODS)}; not {method!r}")
    if method not in ("auto", "winograd") or xp.__name__ != "numpy" or (stride, padding, len(w)) != (1, 1, 3):
        return False
    if not (x.dtype == w.dtype == "float32") or not x.size or not w.size:
        return False
    return method == "winograd" or worthwhile(x.shape, w.shape[3])


def worthwhile(shape: tuple[int, ...], D: int) -> bool:
    """Where this is faster than nine products, as measured (benchmarks/notes.md): from 16 channels on (from 33 on if
    BLAS takes slim products without packing), if the nine products, which leave out what lies beyond the edge, are
    at least 64 for every 36 of ours (3.6)."""
    H, W, _, C = shape
    enough = C * D > 32 * 32 if unpacked_products() else True
    return enough and min(C, D) >= 16 and (3 * H - 2) * (3 * W - 2) >= 64 * -(-H // TILE) * -(-W // TILE)


# ── The transforms ────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _matrices() -> tuple[list[list[Fraction]], ...]:
    """Aᵀ (4,6), G (6,3) and Bᵀ (6,6) from the points.

    Aᵀ and G take values at the points: powers 0…3 and 0…2 of each. Bᵀ holds the coefficients of Π(x − q) over the
    other points q, the numerators of Lagrange's polynomials; their denominators go into G. At ∞ a polynomial's
    value is its leading coefficient.

    The usual points 0, ±1, ±2 give whole numbers, which matters to those who write the transforms out as
    additions. To us any points cost the same; ±2/3, ±3/2 round off less than half as much.
    """

    def product(roots: list[Fraction]) -> list[Fraction]:
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
    """Aᵀ⊗Aᵀ (16,36), G⊗G (36,9) and Bᵀ⊗Bᵀ (36,36), rounded once."""
    small = [xp.asarray([[float(number) for number in row] for row in matrix]) for matrix in _matrices()]
    at, g, bt = (xp.kron(m, m).astype("float32") for m in small)
    return at, g, bt


def _at_points(xp: Any, w: Array) -> Array:
    """U = (G⊗G) w: (36,C,D)."""
    _, g, _ = _transforms(xp)
    C, D = w.shape[2:]
    u, flat = _buffer(xp, "U", 36, C, D), w.reshape(9, -1)
    parallel(lambda part: xp.matmul(g, flat[:, part], out=_flat(u)[:, part]), blocks(C * D, 2 * PIECE))
    return u


def _from_points(xp: Any, du: Array) -> Array:
    """w̄ = (Gᵀ⊗Gᵀ) Ū: (3,3,C,D)."""
    _, g, _ = _transforms(xp)
    C, D = du.shape[1:]
    dw = xp.empty((9, C * D), du.dtype)
    parallel(lambda part: xp.matmul(g.T, _flat(du)[:, part], out=dw[:, part]), blocks(C * D, 2 * PIECE))
    return dw.reshape(3, 3, C, D)


# ── The convolution ───────────────────────────────────────────────────────────────────────────────


def convolution(xp: Any, x: Array, w: Array) -> tuple[Array, Vjp]:
    """conv2d with stride 1 and padding 1 by (3.6).

    Shapes: x (H,W,N,C), w (3,3,C,D) -> (H,W,N,D)
    VJP:    dx and dw by (3.7), in one walk
    """
    (H, W, N, C), D = x.shape, w.shape[3]
    plan = _plan(H, W, N, C, D)
    y = xp.empty((H, W, N, D), x.dtype)
    u = _at_points(xp, w)

    def block(task: tuple[slice, list[Tile]]) -> None:
        images, run = task
        _forward(xp, x[:, :, images], u, y[:, :, images], run, plan.points)

    tasks = [(images, run) for images in plan.images for run in plan.runs]
    if plan.shared:
        for task in tasks:
            block(task)
    else:
        parallel(block, tasks)

    def vjp(dy: Array) -> tuple[Array, Array]:
        dx = xp.empty(x.shape, x.dtype)
        ut = _at_points(xp, w).transpose(0, 2, 1)
        ut = xp.ascontiguousarray(ut) if C * D <= SMALL else ut  # unpacked, a transposed matrix is slow to read
        sums = [_buffer(xp, f"dU of worker {k}", 36, C, D) for k in range(plan.workers)]

        def work(worker: int) -> None:  # images of its own, so that no two threads add to the same place
            mine = plan.images[worker :: plan.workers]
            for images in mine:
                for run in plan.runs:
                    new_dx = run is plan.runs[0]
                    _backward(
                        xp,
                        x[:, :, images],
                        ut,
                        dy[:, :, images],
                        dx[:, :, images],
                        sums[worker],
                        run,
                        plan.points,
                        new_dx,
                        new_du=new_dx and images is mine[0],
                    )

        parallel(work, range(plan.workers))
        return dx, _from_points(xp, functools.reduce(xp.add, sums))

    return y, vjp


def _forward(xp: Any, x: Array, u: Array, y: Array, run: list[Tile], points: int) -> None:
    """(3.6) for a run of tiles: into the points, 36 products (`points` of them in one call), and out."""
    at, _, bt = _transforms(xp)
    N, (C, D) = x.shape[2], u.shape[1:]
    v, m = _buffer(xp, "V", 36, len(run), N, C), _buffer(xp, "M", 36, len(run), N, D)

    def enter(piece: Piece) -> None:
        k, images = piece
        by_columns(xp, bt, _read(xp, x[:, :, images], run[k], -1, WINDOW), _flat(v[:, k, images]))

    def multiply(p: slice) -> None:
        by_rows(xp, _rows(v[p]), u[p], _rows(m[p]))

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
    xp: Any,
    x: Array,
    ut: Array,
    dy: Array,
    dx: Array,
    du: Array,
    run: list[Tile],
    points: int,
    new_dx: bool,
    new_du: bool,
) -> None:
    """(3.7) for a run of tiles; its part of d̄ is added to dx, its Ū to du (or, if new, is the first there)."""
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
        by_rows(xp, mp, ut[p], vp)  # V has done its work, V̄ takes its place

    def leave(images: slice) -> None:  # the windows of neighbours overlap, so all those of an image are one task
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


# ── Who works on what ─────────────────────────────────────────────────────────────────────────────


class Plan(NamedTuple):
    """A block is some images of a run of tiles. Its threads, if shared, meet after each line of (3.6);
    else each thread takes blocks of its own, small enough to stay in its cache from line to line, and takes them
    through all points in one call: threads that call often wait for each other at Python's lock."""

    images: list[slice]
    runs: list[list[Tile]]
    shared: bool
    workers: int
    points: int  # how many of the 36 products are one call


def _plan(H: int, W: int, N: int, C: int, D: int) -> Plan:
    shared = 4 * 36 * C * D > SHARED_U
    workers = 1 if shared else min(threads(), N)
    rows = max(1, (PHASE_BYTES if shared else BLOCK_BYTES) // (4 * 36 * (C + D)))
    images = min(rows, -(-N // workers), N if shared else 32)
    tiles = [(i, j) for i in range(-(-H // TILE)) for j in range(-(-W // TILE))]
    runs = [tiles[part] for part in blocks(len(tiles), max(1, rows // images))]
    return Plan(blocks(N, images), runs, shared, workers, points=3 if shared else 36)


# ── Tiles, windows, buffers ───────────────────────────────────────────────────────────────────────


def _overlap(maps: Array, tile: Tile, offset: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a window, `size` wide and beginning `offset` from the tile, lies on the maps: there, and in itself."""
    here, inside = [], []
    for k, side in zip(tile, maps.shape):
        start = k * TILE + offset
        first, last = max(0, start), min(side, start + size)
        here.append(slice(first, last))
        inside.append(slice(first - start, last - start))
    return (here[0], here[1]), (inside[0], inside[1])


def _read(xp: Any, maps: Array, tile: Tile, offset: int, size: int) -> Array:
    """A window of the maps as (size², N·C), zero where it sticks out."""
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


_kept = threading.local()


def _buffer(xp: Any, name: str, places: int, *shape: int) -> Array:
    """An array (places, *shape) for use until this thread asks for the same name again: the memory stays.

    A transform reads and writes the same spot of all 36 places at once. Their sizes are multiples of large powers
    of two, at which a cache has one and the same few lines for all of them: hence the GAP (1.6 times as fast).
    """
    size = math.prod(shape)
    flat = vars(_kept).get(name)
    if flat is None or flat.size < places * (size + GAP):
        flat = vars(_kept)[name] = xp.empty(places * (size + GAP), "float32")
    return flat[: places * (size + GAP)].reshape(places, size + GAP)[:, :size].reshape(places, *shape)
