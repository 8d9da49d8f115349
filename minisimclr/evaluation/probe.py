"""A linear classifier on the frozen representation h.

The hyper-parameter of the classifier is chosen on a part of the *training* set, and the accuracy reported is that of
the one classifier so chosen, over every test image at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, array_module, to_numpy
from ..processor import blas_at_one_thread, parallel, pieces
from .embed import Matrix
from .knn import check_features


class LinearProbe:
    """Multinomial logistic regression on standardised features: logits = (x − mean)/std · W + b."""

    def __init__(self, mean: Array, std: Array, weights: Matrix, l2: float) -> None:
        self.mean, self.std, self.weights, self.l2 = mean, std, weights, l2  # weights (D+1,K), b last

    def accuracy(self, h: Array, y: Matrix) -> float:
        """The share of rows that it puts into their class; h is where the rows were that it was fitted on."""
        return _share_right(_affine(_standardised(h, self.mean, self.std), self.weights), y)


def fit_linear_probe(
    h: Array, y: Matrix, *, l2_values: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3), iterations: int = 50, seed: int = 0
) -> LinearProbe:
    """Fit by L-BFGS, the l2 penalty chosen on a held-out tenth of the rows (paper, App. B.8.1: L-BFGS, l2 sweep).

    h (N,D) float, y integer (N,) in 0…K−1, on the host. The loss is the mean cross-entropy + ½·l2·|W|². Its value
    and gradient are computed where h is; L-BFGS itself, SciPy's, runs on the host.
    """
    xp = array_module(h)
    h = xp.asarray(h, dtype=xp.float32)
    mean, std = h.mean(axis=0), h.std(axis=0) + 1e-6
    x, classes = _standardised(h, mean, std), int(y.max()) + 1
    shuffled = np.random.default_rng(seed).permutation(len(x))
    held_out, rest = np.split(shuffled, [max(1, len(x) // 10)])
    x_held_out, x_rest = x[xp.asarray(held_out)], x[xp.asarray(rest)]

    best, l2 = -1.0, l2_values[0]
    weights = np.zeros((x.shape[1] + 1, classes))
    for candidate in l2_values:  # from strong to weak, each from where the last one ended
        weights = _fit(x_rest, y[rest], weights, candidate, iterations)
        accuracy = _share_right(_affine(x_held_out, weights), y[held_out])
        if accuracy > best:
            best, l2, start = accuracy, candidate, weights
    return LinearProbe(mean, std, _fit(x, y, start, l2, iterations), l2)


def linear_probe(train_h: Array, train_y: Matrix, test_h: Array, test_y: Matrix, **options: Any) -> float:
    """Test accuracy of a linear classifier on frozen features; options as for `fit_linear_probe`."""
    check_features(train_h, train_y, test_h, test_y)
    return fit_linear_probe(train_h, train_y, **options).accuracy(test_h, test_y)


def _fit(x: Array, y: Matrix, start: Matrix, l2: float, iterations: int) -> Matrix:
    """Minimise mean cross-entropy + ½·l2·|W|² from `start`; the sums over rows are shared among the threads."""
    xp = array_module(x)
    parts = pieces(xp, len(x), 1000)
    losses = xp.empty(len(parts))
    gradients = xp.empty((len(parts), *start.shape), xp.float32)
    y = xp.asarray(y)

    def loss_and_gradient(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(start.shape)

        def run(k: int) -> None:
            rows, labels = x[parts[k]], y[parts[k]]
            each = xp.arange(len(rows))
            logits = _affine(rows, weights)  # (1000,K)
            logits -= logits.max(axis=1, keepdims=True)
            p = xp.exp(logits)
            sums = p.sum(axis=1, keepdims=True)
            losses[k] = (xp.log(sums[:, 0]) - logits[each, labels]).sum(dtype=float)
            p /= sums
            p[each, labels] -= 1  # P − Y
            gradients[k, :-1] = rows.T @ p
            gradients[k, -1] = p.sum(axis=0)

        parallel(run, range(len(parts)))
        gradient = to_numpy(gradients.sum(axis=0, dtype=float)) / len(x)
        gradient[:-1] += l2 * weights[:-1]  # b is not penalised
        return float(losses.sum()) / len(x) + 0.5 * l2 * float((weights[:-1] ** 2).sum()), gradient.ravel()

    from scipy.optimize import minimize  # half of the time that importing minisimclr would take

    with blas_at_one_thread():
        result = minimize(
            loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
        )
    return np.asarray(result.x).reshape(start.shape)


def _affine(x: Array, weights: Matrix) -> Array:
    on_device = array_module(x).asarray(weights, dtype=x.dtype)
    return x @ on_device[:-1] + on_device[-1]


def _share_right(logits: Array, y: Matrix) -> float:
    return float((to_numpy(logits.argmax(axis=1)) == y).mean())


def _standardised(h: Array, mean: Array, std: Array) -> Array:
    return (h.astype(mean.dtype, copy=False) - mean) / std
