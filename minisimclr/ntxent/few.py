"""NT-Xent of few images: the whole matrix in one piece.

The plain form loses digits (exact.py), and the tiled form costs hundreds of NumPy calls, which up to some 300 images
take longer than the arithmetic. Here are the formulas of the tiled form, in order, on one matrix (2N,2N): some thirty
calls. Its symmetry goes unused. From SINGLE_THREAD_IMAGES on, the rows of each view are a strip of their own, and two
threads take one strip each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..backend import Array
from ..processor import parallel
from .exact import HIGH_TEMPERATURE, unit_rows

MOST_IMAGES = 256  # images up to which this form is used: a strip of its matrix takes 512 KiB in float32, then
SINGLE_THREAD_IMAGES = 128  # images up to which one thread is faster: waking another takes as long as a small strip


def suits(images: int, temperature: float, dtype: np.dtype[np.floating]) -> bool:
    """Return True if this form computes the case: few images, and a temperature at which E needs no shift, no base.

    The sum of 2N exponentials of 1/τ must stay below the largest number. From HIGH_TEMPERATURE on, exact.py has a form
    of its own, because all exponentials are nearly 1.
    """
    largest = math.log(np.finfo(dtype).max) - 2
    return images <= MOST_IMAGES and temperature < HIGH_TEMPERATURE and 1 / temperature + math.log(2 * images) < largest


def value_and_grad(za: Array, zb: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Compute the loss and its gradient, as `exact.value_and_grad` does, where `suits` is True.

    Shapes: za, zb (N,D) of one dtype, float32 or float64 -> loss (), dza (N,D), dzb (N,D).
    """
    images, dtype = len(za), za.dtype
    n = 2 * images
    z = np.concatenate([za, zb], out=np.empty((n, za.shape[1]), dtype))  # (n,D), row by row whatever za is
    u, norm, scale = unit_rows(z)  # u (n,D)                                                   (5.2)
    cosine = np.einsum("nd,nd->n", u[:images], u[images:], dtype=np.float64)  # (N,)
    positive = np.concatenate([cosine, cosine])  # (n,), the cosine of each anchor with its positive
    logits_of = u * dtype.type(1 / temperature)  # (n,D)
    e, du = np.empty((n, n), dtype), np.empty_like(u)

    def exponentials(rows: slice) -> None:
        own = np.matmul(logits_of[rows], u.T, out=e[rows])  # (rows,n)                         (5.3)
        same = np.einsum("anbn->anb", own.reshape(-1, images, 2, images))  # the entries of one image with itself:
        same[...] = -np.inf  # an anchor is neither its own negative nor its positive's, E is 0 there
        np.exp(own, out=own)

    _each_strip(exponentials, images)  # e (n,n) is symmetric
    negatives = (e @ np.ones(n, dtype)).astype(np.float64)  # (n,), four times as fast as e.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = −∞ is right for N = 1; NaN stays NaN
        odds = np.log(negatives) - positive / temperature  # (n,), log Σ exp(margin)
        loss = np.logaddexp(0, odds)  # (n,)                                                   (5.5)
    q = np.exp(odds - loss)  # (n,), 1 − the probability of the positive                       (5.8)
    weight = np.exp(-positive / temperature - loss).astype(dtype)  # (n,): P = E ∘ weight      (5.7)

    def repulsion(rows: slice) -> None:
        own = e[rows]
        own *= weight[rows, None] + weight  # (rows,n), P + Pᵀ                                 (5.12)
        np.matmul(own, u, out=du[rows])  # what the negatives add                              (5.9)

    _each_strip(repulsion, images)
    _add_positives(du, u, positive, q)
    du -= u * np.vecdot(u, du)[:, None]  # (n,D)                                               (5.11)
    du /= norm * dtype.type(n * temperature)
    du /= np.where(scale == 0, np.inf, scale)  # a zero row has gradient 0
    return loss.mean().astype(dtype), du[:images], du[images:]


def _each_strip(task: Callable[[slice], None], images: int) -> None:
    """Call task(rows) for the rows of each view, side by side; or once for all rows, of few images."""
    if images > SINGLE_THREAD_IMAGES:
        parallel(task, (slice(0, images), slice(images, 2 * images)))
    else:
        task(slice(0, 2 * images))


def _add_positives(du: Array, u: Array, positive: Array, q: Array) -> None:
    """Add what the positives attract to du, in place: nτ × (5.10).

    We may subtract ±u from a positive, because (5.11) removes every multiple of u. If the views nearly agree, or
    oppose each other, the difference is small and exact, and so is the rounding of what is added.

    Shapes: du, u (n,D); positive, q (n,).
    """
    images = len(u) // 2
    attraction = np.tile(q[:images] + q[images:], 2)[:, None].astype(u.dtype)  # (n,1)
    side = np.where(positive < 0, -1, 1)[:, None].astype(u.dtype)  # (n,1)
    partner = np.concatenate([u[images:], u[:images]])  # (n,D)
    du -= attraction * (partner - side * u)
