"""Against scikit-learn on shared features: logistic regression, nearest neighbours, and our transformer in a pipeline.

Run with `pytest -m peers`.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from minisimclr import evaluation

pytestmark = [
    pytest.mark.peers,
    pytest.mark.host,
    pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn: pip install scikit-learn"),
]

Array = np.ndarray


def features(count: int, width: int = 64, classes: int = 10, seed: int = 0) -> tuple[Array, Array]:
    """Classes that overlap, on features with a steep spectrum, rectified as those of an encoder are."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    spectrum = (1 + np.arange(width)) ** -0.7
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((width, width)))[0]
    centres = np.random.default_rng(6).standard_normal((classes, width)) * 0.5 * spectrum
    z = rng.standard_normal((count, width)) * spectrum + centres[y]
    return np.maximum(z @ turn + 0.02, 0).astype(np.float32), y


def objective(weights: Array, bias: Array, x: Array, y: Array, l2: float) -> float:
    logits = x @ weights + bias
    top = logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(y)), y]
    return float(losses.mean() + 0.5 * l2 * (weights**2).sum())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_logistic_regression_reaches_the_same_objective_and_accuracy(l2):
    """Objective to 1e-3 relative, accuracy within 0.2 points; theirs sums the losses, so C = 1/(l2·N)."""
    from sklearn.linear_model import LogisticRegression

    (h, y), (test_h, test_y) = features(5000), features(10_000, seed=1)
    ours = evaluation.fit_linear_probe(h, y, l2_values=(l2,), iterations=300)
    x, test_x = ((a.astype(float) - ours.mean) / ours.std for a in (h, test_h))
    theirs = LogisticRegression(C=1 / (l2 * len(h)), tol=1e-8, max_iter=5000).fit(x, y)
    best = objective(theirs.coef_.T, theirs.intercept_, x, y, l2)
    assert objective(ours.weights[:-1], ours.weights[-1], x, y, l2) == pytest.approx(best, rel=1e-3)
    assert abs(ours.accuracy(test_h, test_y) - theirs.score(test_x, test_y)) <= 0.002


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours_have_the_same_accuracy(k):
    """Within 0.2 points; theirs votes with our weights, of cosine distances 1 − s."""
    from sklearn.neighbors import KNeighborsClassifier

    (h, y), (test_h, test_y) = features(3000), features(3000, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp(-d / 0.1), algorithm="brute").fit(h, y)
    assert abs(evaluation.knn_accuracy(h, y, test_h, test_y, k=k) - theirs.score(test_h, test_y)) <= 0.002


def test_the_transformer_works_in_a_pipeline_and_in_a_search(tmp_path):
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    import minisimclr as ms

    rng, y = np.random.default_rng(0), np.arange(60) % 2
    images = rng.integers(0, 100, (60, 16, 16, 3)).astype(np.uint8)
    images[y == 1, :, :, 0] += 150
    run = ms.pretrain(ms.Config(size=16, batch=4, epochs=1), images, folder=tmp_path)
    for which in (run, str(tmp_path)):
        pipeline = make_pipeline(ms.SimCLRTransformer(which), StandardScaler(), LogisticRegression())
        assert pipeline.fit(images, y).score(images, y) == 1
        assert clone(pipeline).fit(images.reshape(60, -1), y).score(images.reshape(60, -1), y) == 1
        search = GridSearchCV(pipeline, {"simclrtransformer__part": ["h", "z"]}, cv=2).fit(images, y)
        assert search.best_score_ > 0.9
        assert "SimCLRTransformer" in repr(pipeline)
