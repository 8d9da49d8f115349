"""How good is a representation? Nearest neighbours and a linear classifier, on a frozen encoder.

Both look at h, computed with running statistics; the encoder does not change. The hyper-parameter of the
linear classifier is chosen on a part of the *training* set, and the accuracy reported is that of the one
classifier so chosen, over every test image at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from .augment import to_float
from .autograd import no_grad
from .backend import (
    Array,
    array_module,
    blas_at_one_thread,
    blocks,
    device_of,
    parallel,
    pieces,
    to_device,
    to_numpy,
)
from .config import build_model
from .data import Dataset
from .memory import keep_freed_memory
from .run import Run
from .simclr import SimCLR

Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """How well one way of seeing the images tells the classes apart: accuracies in [0,1], by split."""

    name: str
    knn: dict[str, float]
    probe: dict[str, float]


def compare(run: Run, train: Dataset, tests: dict[str, Dataset], *, k: int = 20, temperature: float = 0.1,
            progress: Callable[[str], None] = lambda what: None) -> list[Score]:
    """Score raw pixels, colour statistics, the untrained encoder, and SimCLR's h and z, on each test split.

    All of it is computed where the model is.
    """
    device = device_of(run.model.parameters()[0].data)

    def untrained(images: Matrix) -> Matrix:
        return embed(build_model(run.config.to_evaluate(device)).to(device), images)[0]

    def pixels(images: Matrix) -> Matrix:
        return images.reshape(len(images), -1).astype(np.float32) / 255

    seen = {name: embed(run.model, data.images) for name, data in {"": train, **tests}.items()}
    sources: dict[str, Callable[[str, Matrix], Matrix]] = {
        "raw pixels": lambda split, images: pixels(images),
        "colour statistics": lambda split, images: colour_statistics(images),
        "untrained encoder, h": lambda split, images: untrained(images),
        "SimCLR, h": lambda split, images: seen[split][0],
        "SimCLR, z": lambda split, images: seen[split][1],
    }
    scores = []
    for name, features in sources.items():
        progress(name)
        train_h = to_device(features("", train.images), device)
        probe = fit_linear_probe(train_h, train.labels)
        test_h = {split: to_device(features(split, data.images), device) for split, data in tests.items()}
        scores.append(Score(
            name,
            {split: knn_accuracy(train_h, train.labels, test_h[split], data.labels, k, temperature)
             for split, data in tests.items()},
            {split: probe.accuracy(test_h[split], data.labels) for split, data in tests.items()}))
    return scores


def embed(model: SimCLR, images: Matrix, *, batch: int = 500) -> tuple[Matrix, Matrix]:
    """Representations h (N,features) and embeddings z (N,out_dim), float32, of uint8 images (N,H,W,3).

    Images come from the host and the answers return to it; in between they are where the model is.
    """
    keep_freed_memory()  # each part of the images takes the arrays of the part before
    device = device_of(model.parameters()[0].data)
    hs, zs = [], []
    with no_grad():
        for part in blocks(len(images), batch):
            h, z = model(to_float(to_device(images[part], device)), train=False)
            hs.append(to_numpy(h.data))
            zs.append(to_numpy(z.data))
    return np.concatenate(hs), np.concatenate(zs)


def colour_statistics(images: Matrix) -> Matrix:
    """Mean and standard deviation of each colour channel: uint8 (N,H,W,3) -> float32 (N,6)."""
    pixels = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


def nearest(train_h: Array, test_h: Array, k: int) -> tuple[Matrix, Matrix]:
    """The k training rows of largest cosine similarity to each test row, nearest first.

    Shapes: train_h (M,D), test_h (N,D) -> indices (N,k), similarities (N,k), both on the host
    """
    xp = array_module(train_h, test_h)
    train_u, test_u = _unit_rows(train_h), _unit_rows(test_h)
    indices = xp.empty((len(test_u), k), xp.int64)
    similarities = xp.empty((len(test_u), k), xp.float32)

    def run(rows: slice) -> None:
        similarity = test_u[rows] @ train_u.T                                               # (100,M)
        best = xp.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = xp.argsort(-xp.take_along_axis(similarity, best, axis=1), axis=1, kind="stable")
        indices[rows] = xp.take_along_axis(best, order, axis=1)
        similarities[rows] = xp.take_along_axis(similarity, indices[rows], axis=1)

    parallel(run, blocks(len(test_u), 100))
    return to_numpy(indices), to_numpy(similarities)


def knn_accuracy(train_h: Array, train_y: Matrix, test_h: Array, test_y: Matrix, k: int = 20,
                 temperature: float = 0.1) -> float:
    """Share of test rows whose class wins the vote of their k nearest training rows.

    Neighbours are found by cosine similarity s and vote with weight exp(s/temperature), as in Wu et al. 2018.
    The rows may be on a GPU, where they are then compared; labels are on the host.
    """
    _check(train_h, train_y, test_h, test_y)
    if not 1 <= k <= len(train_h):
        raise ValueError(f"k must lie in 1…{len(train_h)}, the number of training rows, not {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    indices, similarities = nearest(train_h, test_h, k)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    votes = np.zeros((len(test_h), int(train_y.max()) + 1))
    np.add.at(votes, (np.arange(len(test_h))[:, None], train_y[indices]), weights)
    return float((votes.argmax(axis=1) == test_y).mean())


class LinearProbe:
    """Multinomial logistic regression on standardised features: logits = (x − mean)/std · W + b."""

    def __init__(self, mean: Array, std: Array, weights: Matrix, l2: float) -> None:
        self.mean, self.std, self.weights, self.l2 = mean, std, weights, l2   # weights (D+1,K), b last

    def accuracy(self, h: Array, y: Matrix) -> float:
        """The share of rows that it puts into their class; h is where the rows were that it was fitted on."""
        return _share_right(_affine(_standardised(h, self.mean, self.std), self.weights), y)


def fit_linear_probe(h: Array, y: Matrix, *, l2_values: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3),
                     iterations: int = 50, seed: int = 0) -> LinearProbe:
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
    _check(train_h, train_y, test_h, test_y)
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
            logits = _affine(rows, weights)                                                 # (1000,K)
            logits -= logits.max(axis=1, keepdims=True)
            p = xp.exp(logits)
            sums = p.sum(axis=1, keepdims=True)
            losses[k] = (xp.log(sums[:, 0]) - logits[each, labels]).sum(dtype=float)
            p /= sums
            p[each, labels] -= 1                                                            # P − Y
            gradients[k, :-1] = rows.T @ p
            gradients[k, -1] = p.sum(axis=0)

        parallel(run, range(len(parts)))
        gradient = to_numpy(gradients.sum(axis=0, dtype=float)) / len(x)
        gradient[:-1] += l2 * weights[:-1]                                                  # b is not penalised
        return float(losses.sum()) / len(x) + 0.5 * l2 * float((weights[:-1] ** 2).sum()), gradient.ravel()

    with blas_at_one_thread():
        result = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B",
                          options={"maxiter": iterations})
    return np.asarray(result.x).reshape(start.shape)


def _affine(x: Array, weights: Matrix) -> Array:
    on_device = array_module(x).asarray(weights, dtype=x.dtype)
    return x @ on_device[:-1] + on_device[-1]


def _share_right(logits: Array, y: Matrix) -> float:
    return float((to_numpy(logits.argmax(axis=1)) == y).mean())


def _standardised(h: Array, mean: Array, std: Array) -> Array:
    return (h.astype(mean.dtype, copy=False) - mean) / std


def _unit_rows(h: Array) -> Array:
    xp = array_module(h)
    h = xp.asarray(h, dtype=xp.float32)
    return h / xp.maximum(xp.linalg.norm(h, axis=1, keepdims=True), float(xp.finfo(xp.float32).tiny))


def _check(train_h: Array, train_y: Matrix, test_h: Array, test_y: Matrix) -> None:
    if train_h.ndim != 2 or test_h.ndim != 2 or train_h.shape[1] != test_h.shape[1]:
        raise ValueError(f"features must be (N,D) with one D, not {train_h.shape} and {test_h.shape}")
    if len(train_h) != len(train_y) or len(test_h) != len(test_y):
        raise ValueError(f"one label per row expected: {len(train_h)} rows and {len(train_y)} labels for training, "
                         f"{len(test_h)} and {len(test_y)} for testing")
