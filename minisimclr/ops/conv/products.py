"""Products of a long matrix with a small one, cut into pieces that BLAS need not pack.

For a large product BLAS first copies ("packs") both matrices into the order in which the processor's registers
want them. For a long, thin product that copy costs as much as the multiplication, and OpenBLAS skips it below a
limit. A convolution is made of such products: slabs of thousands of rows times a kernel of 64×64 numbers or fewer,
or transforms of 36×36. We cut a long product into equal pieces below the limit, all of them in one call, which is
up to twice as fast. Where this gains nothing, on another processor or for another shape, each function here takes
the ordinary product. The results differ by rounding only.
"""

from __future__ import annotations

import functools
from typing import Any

from ...backend import Array
from ...processor import blas_kernels, prefers_large_calls

SMALL_MATRIX = 64 * 64  # entries of the small matrix; above this number packing is worth its time
THIN = 160  # entries below the kernel, K·K·C; with fewer (the stems) one product per tap keeps no core busy


def is_thin(kernel: tuple[int, ...]) -> bool:
    """True for a kernel (K,K,C,D) with so few input channels that its taps are better laid side by side."""
    K, _, C, _ = kernel
    return K > 1 and K * K * C <= THIN


@functools.cache
def unpacked_products() -> int:
    """Return the limit, in multiply–adds, below which BLAS multiplies without packing; 0 if it always packs.

    OpenBLAS's kernels for AVX-512 do not pack products of up to 10⁶ multiply–adds.
    """
    return 10**6 if any(name in blas_kernels() for name in ("SkylakeX", "Cooperlake", "SapphireRapids")) else 0


def steps(xp: Any, length: int, small: int) -> int:
    """Return the number of equal pieces to cut the long side into; each is multiplied by a matrix of `small` entries.

    1 leaves the product whole.
    """
    most = 0 if prefers_large_calls(xp) or small > SMALL_MATRIX else unpacked_products()
    if not most or not length:
        return 1
    fewest = -(-length * small // most)
    return next((count for count in range(fewest, 2 * fewest + 1) if length % count == 0), 1)


def by_rows(xp: Any, a: Array, b: Array, out: Array) -> None:
    """Compute out = a b, where a has many rows.  a (…,R,K), b (…,K,M), out (…,R,M)"""
    count = steps(xp, a.shape[-2], b.shape[-2] * b.shape[-1])
    if count > 1:
        a, b, out = _cut(a, count), b[..., None, :, :], _cut(out, count)  # (…,count,R/count,K), (…,1,K,M)
    xp.matmul(a, b, out=out)


def by_columns(xp: Any, a: Array, b: Array, out: Array) -> None:
    """Compute out = a b, where b has many columns.  a (L,K), b (K,M), out (L,M)"""
    count = steps(xp, b.shape[1], a.size)
    if count > 1:
        b, out = (m.reshape(len(m), count, -1).transpose(1, 0, 2) for m in (b, out))  # (count,K,M/count)
    xp.matmul(a, b, out=out)


def over_rows(xp: Any, a: Array, b: Array, out: Array) -> None:
    """Compute out = aᵀ b, a sum over many rows.  a (…,R,C), b (…,R,D), out (…,C,D)

    Without packing, BLAS adds row after row to one sum, and the rounding error of a long sum grows with its
    length. So the pieces are as short as those of the largest small matrix.
    """
    count = steps(xp, a.shape[-2], SMALL_MATRIX) if out.shape[-2] * out.shape[-1] <= SMALL_MATRIX else 1
    if count > 1:
        xp.matmul(_cut(a, count).swapaxes(-2, -1), _cut(b, count)).sum(axis=-3, out=out)  # (…,count,C,D) -> (…,C,D)
    else:
        xp.matmul(a.swapaxes(-2, -1), b, out=out)


def _cut(a: Array, count: int) -> Array:
    """(…,R,K) -> (…,count,R/count,K), a view."""
    return a.reshape(*a.shape[:-2], count, a.shape[-2] // count, a.shape[-1])
