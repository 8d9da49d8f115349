"""A linear classifier that SGD trains, as in the paper's linear evaluation.

L-BFGS (evaluation/probe.py) finds the minimum of a convex loss, and needs the same features in every pass. SGD stops
early and needs no penalty, and it may see other features in each epoch: those of other crops.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, array_module, device_of, to_device, to_numpy
from ..engine.autograd import Tensor
from ..evaluation.probe import LinearProbe
from ..ops import cross_entropy
from ..training.optim import SGD, warmup_cosine
from ..values import by_default, class_labels, finite_rows, not_negative, whole


@by_default
def fit_sgd_probe(
    h: Array | Callable[[int], Array],
    y: NDArray[np.int64],
    *,
    epochs: int = 90,
    batch: int = 256,
    lr: float = 0.1,
    seed: int = 0,
) -> LinearProbe:
    """Fit by SGD with Nesterov momentum 0.9, the rate lr·batch/256 along a cosine, and no penalty.

    h  features (N,D), or a function from the number of an epoch to them, for new crops in each epoch. Mean and
       deviation are those of epoch 0.

    >>> h, y = np.array([[0.0], [0.1], [0.9], [1.0]] * 5, np.float32), np.array([0, 0, 1, 1] * 5)
    >>> fit_sgd_probe(h, y, batch=4).accuracy(np.array([[0.2], [0.8]], np.float32), np.array([0, 1]))
    1.0

    Shapes: h (N,D), y integer (N,) in 0…K−1, on the host
    Source: appendix B.6 of the paper: 90 epochs, lr 0.1·batch/256, batch 4,096, no decay, crops and flips.
    """
    epochs, batch, seed = whole("epochs", epochs, 1), whole("batch", batch, 1), whole("seed", seed, 0)
    lr = not_negative("lr", lr)
    features = h if callable(h) else lambda epoch: h
    x = finite_rows("h", features(0))
    y = class_labels("y", y, len(x))
    xp, device = array_module(x), device_of(x)
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6  # (D,) each
    batch = min(batch, len(x))
    steps = len(x) // batch  # in an epoch; images that do not fill a batch come in another epoch
    weight = Tensor(xp.zeros((x.shape[1], int(y.max()) + 1), xp.float32), requires_grad=True)  # (D,K)
    bias = Tensor(xp.zeros(weight.shape[1], xp.float32), requires_grad=True)  # (K,)
    optimizer = SGD([weight, bias], lr, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        if epoch:
            x = features(epoch)
        z = ((x - mean) / std).astype(xp.float32)  # (N,D)
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for k in range(steps):
            rows = order[k * batch : (k + 1) * batch]
            logits = Tensor(z[to_device(rows, device)]) @ weight + bias  # (B,K)
            cross_entropy(logits, labels=to_device(y[rows], device)).backward()
            optimizer.step(warmup_cosine(epoch * steps + k, epochs * steps, 0, lr * batch / 256))
            optimizer.zero_grad()
    fitted = np.concatenate([to_numpy(weight.data), to_numpy(bias.data)[None]]).astype(float)  # (D+1,K)
    return LinearProbe(mean, std, fitted, 0.0)
