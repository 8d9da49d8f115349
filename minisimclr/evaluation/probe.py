"""A linear classifier on the frozen representation h.

The penalty of the classifier is chosen on a part of the *training* set. The reported accuracy is that of this one
classifier, over all test images at once.

L-BFGS learns the curvature of the loss from its steps, and features that go together need many. So the features are
turned to their principal axes, and each axis is scaled by its curvature. The minimum stays where it is: a rotation
does not change |W|. It is found with half as many evaluations (benchmarks/notes.md).
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, to_numpy
from ..ops import cross_entropy
from ..processor import blas_at_one_thread, parallel, pieces
from ..values import by_default, class_labels, features_and_labels, finite_rows, not_negative, plain_array, whole
from .embed import Matrix

L2_VALUES = (1.0, 1e-1, 1e-2, 1e-3)  # penalties to try, from strong to weak: a quick sweep
# The 45 penalties of the paper's transfer protocol, from strong to weak: each fit begins where the stronger one ended.
TRANSFER_L2_VALUES = tuple(10.0 ** (5 - 11 * k / 44) for k in range(45))
WIDEST = 1024  # number of features that are turned to their axes; more would take longer than the steps they save
TOLERANCE = 1e-7  # relative decrease of the loss by one step that ends a fit
PART_ROWS = 1000  # rows whose loss and gradient one thread computes at a time on a CPU
value_and_vjp = inspect.unwrap(cross_entropy)  # the operation on arrays: (xp, logits, labels=…) -> (value, vjp)


class LinearProbe:
    """Multinomial logistic regression on standardized features: logits = (x − mean)/std · W + b."""

    def __init__(self, mean: Array, std: Array, weights: NDArray[np.float64], l2: float) -> None:
        self.mean, self.std = mean, std  # (D,) each, of the rows that it was fitted on
        self.weights = weights  # (D+1,K), the last row is b
        self.l2 = l2  # the penalty that was chosen

    @by_default
    def predict(self, h: Array) -> NDArray[np.int64]:
        """Return the class of each row, (N,), on the host; h is on the device of the rows that were fitted."""
        return np.asarray(to_numpy(_affine(_standardized(h, self.mean, self.std), self.weights).argmax(axis=1)))

    def accuracy(self, h: Array, y: NDArray[np.int64]) -> float:
        """Compute the fraction of rows that are given their class."""
        return float((self.predict(h) == y).mean())


@by_default
def fit_linear_probe(
    h: Array, y: NDArray[np.int64], *, l2_values: tuple[float, ...] = L2_VALUES, iterations: int = 50, seed: int = 0
) -> LinearProbe:
    """Fit by L-BFGS, with the l2 penalty that is best on a held-out tenth of the rows.

    The loss is the mean cross-entropy + ½·l2·|W|². Its value and gradient are computed where h is; L-BFGS itself,
    SciPy's, runs on the host.

    Shapes: h (N,D), y integer (N,) in 0…K−1, on the host
    Source: appendix B.8.1 of the paper: L-BFGS, and a sweep over l2.
    """
    h = finite_rows("h", h)
    y, iterations, seed = class_labels("y", y, len(h)), whole("iterations", iterations, 1), whole("seed", seed, 0)
    penalties = tuple(not_negative("l2_values", l2) for l2 in np.atleast_1d(plain_array(l2_values, "l2_values")))
    if len(h) < 2 or not penalties:
        raise ValueError(f"a probe needs two rows and a penalty at least, not {len(h)} and {penalties}")
    xp = array_module(h)
    h = xp.asarray(h, dtype=xp.float32)
    mean, std = h.mean(axis=0), h.std(axis=0) + 1e-6  # (D,) each; a constant column must not divide by 0
    x, axes = _turned(_standardized(h, mean, std))  # (N,D), (D,D)
    classes = int(y.max()) + 1
    shuffled = np.random.default_rng(seed).permutation(len(x))
    held_out, rest = np.split(shuffled, [max(1, len(x) // 10)])
    x_held_out, x_rest = x[xp.asarray(held_out)], x[xp.asarray(rest)]

    best, l2 = -1.0, penalties[0]
    weights = np.zeros((x.shape[1] + 1, classes))  # (D+1,K)
    for candidate in penalties:  # each fit starts from the weights of the one before
        weights = _fit(x_rest, y[rest], weights, candidate, iterations)
        accuracy = _fraction_right(_affine(x_held_out, weights), y[held_out])
        if accuracy > best:
            best, l2, start = accuracy, candidate, weights
    weights = _fit(x, y, start, l2, iterations)
    weights[:-1] = axes @ weights[:-1]  # back to the features as they came
    return LinearProbe(mean, std, weights, l2)


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
    train_h, train_y, test_h, test_y = features_and_labels(train_h, train_y, test_h, test_y)
    return fit_linear_probe(train_h, train_y, **options).accuracy(test_h, test_y)


def _turned(x: Array) -> tuple[Array, NDArray[np.float64]]:
    """Turn rows to the principal axes of their columns: x (N,D) -> x·Q (N,D), Q (D,D) on the host."""
    xp, width = array_module(x), x.shape[1]
    if width > WIDEST:
        return x, np.eye(width)
    with blas_at_one_thread():  # on a busy machine its threads would wait for each other
        axes = np.linalg.eigh(to_numpy(x.T @ x).astype(float) / len(x))[1]  # (D,D)
        return x @ xp.asarray(axes, dtype=x.dtype), axes


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
    # Each axis is scaled by the root of its curvature: about p(1−p) ≈ 1/K times its mean square, and the penalty.
    curvature = to_numpy(xp.square(x).mean(axis=0, dtype=float)) / start.shape[1] + l2  # (D,)
    scale = np.append(1 / np.sqrt(np.maximum(curvature, 1e-12)), 1.0)[:, None]  # (D+1,1); b is scaled by 1

    def loss_and_gradient(flat: Matrix) -> tuple[float, Matrix]:
        weights = scale * flat.reshape(start.shape)  # (D+1,K)

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
        return float(losses.sum()) / len(x) + 0.5 * l2 * float((weights[:-1] ** 2).sum()), (scale * gradient).ravel()

    with blas_at_one_thread():
        options: Any = {"maxiter": iterations, "ftol": TOLERANCE}
        result = minimize(loss_and_gradient, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    found: NDArray[np.float64] = scale * np.asarray(result.x).reshape(start.shape)
    return found


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
