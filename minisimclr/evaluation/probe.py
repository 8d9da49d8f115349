"""A linear classifier on the frozen representation h.

The penalty of the classifier is chosen on a part of the *training* set. The reported accuracy is that of this one
classifier, over all test images at once.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_numpy
from ..ops import cross_entropy
from ..processor import blas_at_one_thread, parallel, pieces
from .embed import Matrix
from .knn import check_features

L2_VALUES = (1.0, 1e-1, 1e-2, 1e-3)  # penalties to try, from strong to weak; the paper sweeps 45 from 1e-6 to 1e5
PART_ROWS = 1000  # rows whose loss and gradient one thread computes at a time on a CPU
value_and_vjp = inspect.unwrap(cross_entropy)  # the operation on arrays: (xp, logits, labels=…) -> (value, vjp)


class LinearProbe:
    """Multinomial logistic regression on standardized features: logits = (x − mean)/std · W + b."""

    def __init__(self, mean: Array, std: Array, weights: NDArray[np.float64], l2: float) -> None:
        self.mean, self.std = mean, std  # (D,) each, of the rows that it was fitted on
        self.weights = weights  # (D+1,K), the last row is b
        self.l2 = l2  # the penalty that was chosen

    def accuracy(self, h: Array, y: NDArray[np.int64]) -> float:
        """Compute the fraction of rows that are given their class; h is on the device of the rows that were fitted."""
        return _fraction_right(_affine(_standardized(h, self.mean, self.std), self.weights), y)


def fit_linear_probe(
    h: Array, y: NDArray[np.int64], *, l2_values: tuple[float, ...] = L2_VALUES, iterations: int = 50, seed: int = 0
) -> LinearProbe:
    """Fit by L-BFGS, with the l2 penalty that is best on a held-out tenth of the rows.

    The loss is the mean cross-entropy + ½·l2·|W|². Its value and gradient are computed where h is; L-BFGS itself,
    SciPy's, runs on the host.

    Shapes: h (N,D), y integer (N,) in 0…K−1, on the host
    Source: appendix B.8.1 of the paper: L-BFGS, and a sweep over l2.
    """
    xp = array_module(h)
    h = xp.asarray(h, dtype=xp.float32)
    mean, std = h.mean(axis=0), h.std(axis=0) + 1e-6  # (D,) each; a constant column must not divide by 0
    x, classes = _standardized(h, mean, std), int(y.max()) + 1
    shuffled = np.random.default_rng(seed).permutation(len(x))
    held_out, rest = np.split(shuffled, [max(1, len(x) // 10)])
    x_held_out, x_rest = x[xp.asarray(held_out)], x[xp.asarray(rest)]

    best, l2 = -1.0, l2_values[0]
    weights = np.zeros((x.shape[1] + 1, classes))  # (D+1,K)
    for candidate in l2_values:  # each fit starts from the weights of the one before
        weights = _fit(x_rest, y[rest], weights, candidate, iterations)
        accuracy = _fraction_right(_affine(x_held_out, weights), y[held_out])
        if accuracy > best:
            best, l2, start = accuracy, candidate, weights
    return LinearProbe(mean, std, _fit(x, y, start, l2, iterations), l2)


def linear_probe(
    train_h: Array, train_y: NDArray[np.int64], test_h: Array, test_y: NDArray[np.int64], **options: Any
) -> float:
    """Compute the test accuracy of a linear classifier on frozen features; options as for `fit_linear_probe`.

    >>> h, y = np.array([[0.0], [0.1], [0.9], [1.0]] * 5), np.array([0, 0, 1, 1] * 5)
    >>> linear_probe(h, y, np.array([[0.2], [0.8]]), np.array([0, 1]))
    1.0

    Shapes: train_h (M,D), train_y (M,), test_h (N,D), test_y (N,) -> a number in [0,1]
    Raises: ValueError for shapes that do not fit.
    """
    check_features(train_h, train_y, test_h, test_y)
    return fit_linear_probe(train_h, train_y, **options).accuracy(test_h, test_y)


def _fit(x: Array, y: NDArray[np.int64], start: Matrix, l2: float, iterations: int) -> NDArray[np.float64]:
    """Minimize mean cross-entropy + ½·l2·|W|² from `start`; the threads share the sums over rows.

    Shapes: x (N,D), y (N,), start (D+1,K) -> weights (D+1,K)
    """
    # It is imported here because it would take half of the time of `import minisimclr`, for this one function.
    from scipy.optimize import minimize

    xp = array_module(x)
    parts = pieces(xp, len(x), PART_ROWS)
    losses = xp.empty(len(parts))
    gradients = xp.empty((len(parts), *start.shape), xp.float32)
    labels = xp.asarray(y)

    def loss_and_gradient(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(start.shape)  # (D+1,K)

        def add_part(k: int) -> None:
            rows = x[parts[k]]  # (1000,D)
            # float64 from here on: the rounding of a float32 mean is enough to lead the line search astray.
            logits = _affine(rows, weights).astype(float)  # (1000,K)
            mean_loss, vjp = value_and_vjp(xp, logits, labels=labels[parts[k]])
            dlogits = vjp(len(rows)).astype(rows.dtype)  # (1000,K) of the sum over these rows, not of their mean
            losses[k] = mean_loss * len(rows)
            gradients[k, :-1] = rows.T @ dlogits  # (D,K)
            gradients[k, -1] = dlogits.sum(axis=0)  # (K,)

        parallel(add_part, range(len(parts)))
        gradient = to_numpy(gradients.sum(axis=0, dtype=float)) / len(x)  # (D+1,K)
        gradient[:-1] += l2 * weights[:-1]  # b is not penalized
        return float(losses.sum()) / len(x) + 0.5 * l2 * float((weights[:-1] ** 2).sum()), gradient.ravel()

    with blas_at_one_thread():
        result = minimize(
            loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
        )
    return np.asarray(result.x).reshape(start.shape)


def _affine(x: Array, weights: Matrix) -> Array:
    """Compute the logits x · W + b: (N,D), (D+1,K) -> (N,K)."""
    on_device = array_module(x).asarray(weights, dtype=x.dtype)
    return x @ on_device[:-1] + on_device[-1]


def _fraction_right(logits: Array, y: NDArray[np.int64]) -> float:
    """Compute the fraction of rows whose largest logit is that of their class."""
    return float((to_numpy(logits.argmax(axis=1)) == y).mean())


def _standardized(h: Array, mean: Array, std: Array) -> Array:
    """Shift and scale each column by the mean and deviation given: (N,D) -> (N,D)."""
    return (h.astype(mean.dtype, copy=False) - mean) / std
