"""NT-Xent of few images: the whole matrix in one piece.

The plain form loses digits (exact.py), and the tiled form costs a hundred NumPy calls, which at N = 64 take longer than
the arithmetic. Here are the formulas of the tiled form, in order, on one matrix (2N,2N): some thirty calls. The matrix
fits a core's cache up to 2N = 256; from there on the tiles are faster.
"""

from __future__ import annotations

import math

import numpy as np

from ..backend import Array
from .exact import HIGH_TEMPERATURE, unit_rows

MOST_IMAGES = 128  # images up to which this form is used: its matrix takes 256 KiB in float32, then


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

    e = (u * dtype.type(1 / temperature)) @ u.T  # (n,n)                                       (5.3)
    flat = e.reshape(-1)  # an anchor is neither its own negative nor its positive's: E is 0 there
    flat[:: n + 1] = flat[images : n * images : n + 1] = flat[n * images :: n + 1] = -np.inf
    np.exp(e, out=e)  # (n,n), symmetric
    negatives = e.sum(axis=1, dtype=np.float64)  # (n,)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = −∞ is right for N = 1; NaN stays NaN
        odds = np.log(negatives) - positive / temperature  # (n,), log Σ exp(margin)
        loss = np.logaddexp(0, odds)  # (n,)                                                   (5.5)
    q = np.exp(odds - loss)  # (n,), 1 − the probability of the positive                       (5.8)
    weight = np.exp(-positive / temperature - loss).astype(dtype)  # (n,): P = E ∘ weight      (5.7)

    e *= weight[:, None] + weight  # (n,n), P + Pᵀ                                             (5.12)
    du = e @ u  # (n,D), what the negatives add                                                (5.9)
    attraction = np.tile(q[:images] + q[images:], 2)[:, None].astype(dtype)  # (n,1)
    # We may subtract ±u from a positive, because (5.11) removes every multiple of u. If the views nearly agree, or
    # oppose each other, the difference is small and exact, and so is the rounding of what is added.
    side = np.where(positive < 0, -1, 1)[:, None].astype(dtype)  # (n,1)
    partner = np.concatenate([u[images:], u[:images]])  # (n,D)
    du -= attraction * (partner - side * u)  # (n,D), nτ ×                                      (5.10)
    du -= u * np.vecdot(u, du)[:, None]  #                                                     (5.11)
    du /= norm * dtype.type(n * temperature)
    du /= np.where(scale == 0, np.inf, scale)  # a zero row has gradient 0
    return loss.mean().astype(dtype), du[:images], du[images:]
