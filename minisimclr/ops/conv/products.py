"""Products of a long matrix with a small one, in steps that BLAS takes without packing (`unpacked_products`).

A convolution is made of such products: slabs of thousands of rows times a kernel of 64 by 64 numbers or fewer, or
transforms of 36 by 36. Cut into equal steps they run up to twice as fast, one call for all of them. Where the
processor or the shape does not gain, a function here is the plain product. Results differ by rounding only.
"""

from __future__ import annotations

import functools
from typing import Any

from ...backend import Array
from ...processor import blas_kernels, prefers_large_calls

SMALL = 64 * 64  # numbers in the small matrix: with larger ones packing pays


@functools.cache
def unpacked_products() -> int:
    """Up to how many multiply–adds BLAS takes a product without packing its operands first; 0 if it always packs.

    Packing rearranges both matrices for the processor's registers. That pays in a large product; in a slim one it
    costs as much as the multiplication. OpenBLAS's kernels for AVX-512 leave it out up to 10⁶.
    """
    return 10**6 if any(name in blas_kernels() for name in ("SkylakeX", "Cooperlake", "SapphireRapids")) else 0


def steps(xp: Any, length: int, small: int) -> int:
    """Into how many equal parts to cut the long side, each times a matrix of `small` numbers; 1: leave it whole."""
    most = 0 if prefers_large_calls(xp) or small > SMALL else unpacked_products()
    if not most or not length:
        return 1
    fewest = -(-length * small // most)
    return next((count for count in range(fewest, 2 * fewest + 1) if length % count == 0), 1)


def by_rows(xp: Any, a: Array, b: Array, out: Array) -> None:
    """out = a b, where a has many rows.  a (…,R,K), b (…,K,M), out (…,R,M)"""
    count = steps(xp, a.shape[-2], b.shape[-2] * b.shape[-1])
    if count > 1:
        a, b, out = _cut(a, count), b[..., None, :, :], _cut(out, count)
    xp.matmul(a, b, out=out)


def by_columns(xp: Any, a: Array, b: Array, out: Array) -> None:
    """out = a b, where b has many columns.  a (L,K), b (K,M), out (L,M)"""
    count = steps(xp, b.shape[1], a.size)
    if count > 1:
        b, out = (m.reshape(len(m), count, -1).transpose(1, 0, 2) for m in (b, out))
    xp.matmul(a, b, out=out)


def over_rows(xp: Any, a: Array, b: Array, out: Array) -> None:
    """out = aᵀ b, a sum over many rows.  a (…,R,C), b (…,R,D), out (…,C,D)

    Unpacked, BLAS adds row after row to one sum, and what a long sum rounds off grows with it; so the steps are
    as short as for the largest of small matrices.
    """
    count = steps(xp, a.shape[-2], SMALL) if out.shape[-2] * out.shape[-1] <= SMALL else 1
    if count > 1:
        xp.matmul(_cut(a, count).swapaxes(-2, -1), _cut(b, count)).sum(axis=-3, out=out)
    else:
        xp.matmul(a.swapaxes(-2, -1), b, out=out)


def _cut(a: Array, count: int) -> Array:
    """(…,R,K) -> (…,count,R/count,K), a view."""
    return a.reshape(*a.shape[:-2], count, a.shape[-2] // count, a.shape[-1])
