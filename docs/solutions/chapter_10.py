"""Solutions of chapter 10: the nearest mean, and the confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np


def nearest_mean(train_h: Any, train_y: Any, test_h: Any) -> Any:
    """The class of the most similar class mean, for each test row.

    Better than kNN with few training images, where single neighbours are a matter of luck; worse where a class is
    several clusters, whose mean lies between them, where perhaps another class is.
    """
    train_u, test_u = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (train_h, test_h))
    means = np.stack([train_u[train_y == c].mean(axis=0) for c in range(train_y.max() + 1)])  # (K,D)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return (test_u @ means.T).argmax(axis=1)


def confusion(predicted: Any, labels: Any) -> Any:
    """Counts (K,K): row, the class; column, the answer. The accuracy is the diagonal's sum over the whole sum."""
    classes = int(max(predicted.max(), labels.max())) + 1
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(predicted: Any, labels: Any) -> Any:
    """The accuracy of each class (K,). Its mean weighs all classes alike; the accuracy weighs them by their size."""
    counts = confusion(predicted, labels)
    return np.diag(counts) / counts.sum(axis=1)
