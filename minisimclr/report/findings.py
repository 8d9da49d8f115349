"""The findings on a run: all that its page and its pictures show, computed once.

Images are looked at through h, after training and before it; where the weights before it are not known, random ones
take their place. Those of the test split are the queries; if the data has no classes, it has no test split either, and
the training images take its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import device_of, is_array
from ..data import Dataset, sound, squares_of
from ..evaluation.embed import embed
from ..evaluation.knn import nearest, unit_rows
from ..interop import load_into
from ..processor import blocks
from ..protocols.compare import BLOCK, LARGE_BLOCK, USUAL, Score, Vote
from ..simclr import SimCLR
from ..training.config import build_model
from ..training.run import Metrics, Run
from ..training.trained import views_in_training

Indices: TypeAlias = NDArray[np.int64]
DOTS = 384  # number of images on the map; their neighbours, eight times as many, must fit into the page, too
NEIGHBOURS = 8  # number of neighbours that are shown of an image
VIEW_BYTES = 2**28  # bytes of views that are made at a time; 10,000 images of 32 pixels
PER_CLASS, CLASSES = 12, 16  # images of a class, and classes, in the similarity matrices: 192 rows can still be seen
LEAST_FOR_TSNE = 64  # number of images; t-SNE's neighbourhoods, of 30 images, would be all of fewer


@dataclass(frozen=True)
class Findings:
    """The findings on a run. `test` are the queries; rows of `nearest` and `maps` are those of `shown`."""

    run: Run
    train: Dataset
    test: Dataset
    labelled: bool  # False: there is one class, and nothing is said about right and wrong
    scores: Sequence[Score]
    record: list[Metrics]  # the lines of metrics.jsonl
    history: list[Metrics]  # those of them whose loss can be drawn
    shown: Indices  # (M,) the test images on the map
    nearest: Indices  # (M,8) of each, the training images of most similar h
    cosines: NDArray[np.float32]  # (M,8) their similarities
    maps: dict[str, NDArray[np.float64]]  # (M,2) the places on a map, in [0,1]
    rows: Indices  # (m,) test images, sorted by class
    similarity: dict[str, NDArray[np.float64]]  # (m,m) cosines of their centred h, before and after training, by title
    k: int  # number of neighbours that vote, no more than there are
    voted: Indices  # (N,) the class that the neighbours of each test image vote for
    share: NDArray[np.float64]  # (N,) its share of the votes; without classes, the cosine of two views in z


def look(run: Run, train: Dataset, test: Dataset, scores: Sequence[Score] = (), vote: Vote = USUAL) -> Findings:
    """Compute all that is shown of a run; the neighbours vote as they did for its scores.

    Raises: ValueError for images that the encoder does not take.
    """
    labelled = len(train.class_names) > 1
    itself = test is train  # an image is then its own nearest neighbour
    test, h = sound(test, _embedded(run, test))  # (N,D)
    train, train_h = (test, h) if itself else sound(train, _embedded(run, train))  # (M,D)
    found, cosines = _others(train_h, h, max(vote.k, NEIGHBOURS), itself)
    k = min(vote.k, found.shape[1])
    if labelled:
        classes = len(train.class_names)
        voted, share = votes(train.labels[found[:, :k]], cosines[:, :k], classes, vote.temperature)
    else:
        voted, share = np.zeros(len(test), np.int64), _likeness(run, squares_of(test))
    shown = spread(test.labels, DOTS)
    rows, record = _sorted(test, h, labelled), run.history
    title, first = untrained(run)
    return Findings(
        run=run,
        train=train,
        test=test,
        labelled=labelled,
        scores=scores,
        record=record,
        history=[line for line in record if can_be_drawn(line)],
        shown=shown,
        nearest=found[shown, :NEIGHBOURS],
        cosines=cosines[shown, :NEIGHBOURS],
        maps={name: _framed(places) for name, places in maps(h[shown]).items()},
        rows=rows,
        similarity={
            title: centred_cosines(embed(first, squares_of(test)[rows])[0]),
            "after training": centred_cosines(h[rows]),
        },
        k=k,
        voted=voted,
        share=share,
    )


def untrained(run: Run) -> tuple[str, SimCLR]:
    """Build the network that was trained, with its first weights if they can be had, and say which weights it has."""
    device = device_of(run.model.parameters()[0].data)
    model = build_model(run.config.to_evaluate(device))
    known = "model" not in run.own  # a model of the caller's own began with weights that nobody stored
    if known and run.config.init:
        try:
            load_into(model.encoder, run.config.init)  # as begin.py did; h needs no weights of the head
        except (OSError, ValueError, ImportError):  # the file is gone or another one: a page without it is still a page
            known = False
    return "before training" if known else "random weights", model.to(device)


def _embedded(run: Run, data: Dataset) -> Any:
    """Return h of a data set, (N,D)."""
    images = squares_of(data)
    return embed(run.model, images, batch=BLOCK if is_array(images) else LARGE_BLOCK)[0]


def can_be_drawn(line: Metrics) -> bool:
    """Return True for metrics whose numbers are numbers; the file that they come from is untrusted."""
    return all(is_number(line.get(name)) for name in ("loss", "top1", "chance"))


def is_number(value: Any) -> bool:
    """Return True for a number that has a place on an axis."""
    return type(value) in (int, float) and abs(value) < 1e9  # NaN is not below


# ── Neighbours and votes ──────────────────────────────────────────────────────────────────────────


def _others(train_h: Any, h: Any, k: int, itself: bool) -> tuple[Indices, NDArray[np.float32]]:
    """Find the k nearest training images of each image, the image itself left out: (N,k), (N,k)."""
    k = min(k, len(train_h) - itself)
    found, cosines = nearest(train_h, h, k + itself)
    if not itself:
        return found, cosines
    others = found != np.arange(len(found))[:, None]  # (N,k+1)
    others[others.all(axis=1), -1] = False  # doubles of an image may stand before it: then the last one goes
    return found[others].reshape(-1, k), cosines[others].reshape(-1, k)


def votes(
    labels: Indices, cosines: NDArray[Any], classes: int, temperature: float
) -> tuple[Indices, NDArray[np.float64]]:
    """Let neighbours vote as the kNN classifier does, (10.1), and return the winner and its share of the votes.

    Shapes: labels and cosines (N,k) -> (N,), (N,)
    """
    weights = np.exp((cosines - cosines[:, :1]) / temperature, dtype=float)  # (N,k)
    count = np.zeros((len(labels), classes))  # (N,K)
    for column in range(labels.shape[1]):  # each row once in a column, so nothing is added to twice
        count[np.arange(len(labels)), labels[:, column]] += weights[:, column]
    return count.argmax(axis=1), count.max(axis=1) / count.sum(axis=1)


def _likeness(run: Run, images: Any) -> NDArray[np.float64]:
    """Return the cosine of each image's two views in z, (N,): low where the network takes them for two things."""
    config, rng = run.config, np.random.default_rng(run.config.seed)
    found = []
    for part in blocks(len(images), max(1, VIEW_BYTES // (config.size**2 * 24))):  # two views, 3 floats a pixel
        a, b = views_in_training(config, images[part], rng)
        ua, ub = (unit_rows(np, embed(run.model, np.round(255 * view).astype(np.uint8))[1]) for view in (a, b))
        found.append(np.asarray((ua * ub).sum(axis=1), float))
    return np.concatenate(found)


# ── Which images ──────────────────────────────────────────────────────────────────────────────────


def spread(labels: Indices, most: int) -> Indices:
    """Choose at most this many images, as many of each class as there are, in their order.

    >>> spread(np.array([0, 0, 0, 1, 1, 0]), most=4)
    array([0, 1, 3, 4])
    """
    rank = np.zeros(len(labels), np.int64)  # number of an image within its class
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    return np.sort(np.argsort(rank, kind="stable")[:most])


def _sorted(test: Dataset, h: Any, labelled: bool) -> Indices:
    """Choose the rows of the matrices, class by class; without classes, along the first principal component of h."""
    if labelled:
        classes = np.unique(test.labels)[:CLASSES]
        return np.concatenate([np.flatnonzero(test.labels == label)[:PER_CLASS] for label in classes])
    chosen = spread(test.labels, PER_CLASS * CLASSES)
    return chosen[np.argsort(principal(h[chosen])[:, 0], kind="stable")]


def centred_cosines(h: Any) -> NDArray[np.float64]:
    """Return the cosines of all pairs after the mean, which all share and which would hide all else, is taken off."""
    u = unit_rows(np, h - h.mean(axis=0))
    return np.asarray(u @ u.T, float)


# ── Maps ──────────────────────────────────────────────────────────────────────────────────────────


def maps(h: Any) -> dict[str, NDArray[np.float64]]:
    """Lay the images on a plane, similar ones together: by t-SNE if scikit-learn is there, and by PCA.

    Shapes: h (M,D) -> (M,2) each
    """
    u = unit_rows(np, h)
    found = {"PCA": principal(u)}
    if len(u) >= LEAST_FOR_TSNE and (places := _tsne(u)) is not None:
        found = {"t-SNE": places, **found}
    return found


def principal(x: Any) -> NDArray[np.float64]:
    """Return the first two principal components of each row: (M,D) -> (M,2)."""
    centred = np.asarray(x, float) - np.mean(x, axis=0, dtype=float)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(axis=1)])  # SVD leaves the sign open; this one is fixed
    places = (u * s * sign)[:, :2]
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def _tsne(u: Any) -> NDArray[np.float64] | None:
    try:
        from sklearn.manifold import TSNE  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    from threadpoolctl import threadpool_limits

    tsne = TSNE(2, perplexity=min(30.0, len(u) / 4), init="pca", random_state=0)
    with threadpool_limits(1):  # its threads wait for one another a thousand times, on a busy machine for a minute
        places = np.asarray(tsne.fit_transform(np.float32(u)), float)
    places /= np.ptp(places, axis=0) + 1e-12  # its axes mean nothing, so that each may fill the map
    return places


def _framed(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move and scale a map into the unit square, both axes alike."""
    low, high = places.min(axis=0), places.max(axis=0)
    size = float((high - low).max())
    size = size if size > 0 and math.isfinite(size) else 1.0
    return np.asarray((places - (low + high) / 2) / size + 0.5)
