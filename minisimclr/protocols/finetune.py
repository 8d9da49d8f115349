"""Fine-tuning: encoder and linear layer are trained on a few labels, or from scratch.

A linear probe asks what a frozen encoder knows. Fine-tuning asks what it is worth to somebody who has some labels: the
accuracy beside that of the same network, trained on the same labels from random weights.
"""

from __future__ import annotations

import copy
import re
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import device_of, is_array, to_device, to_numpy
from ..data import DataError, Dataset, sound, squares_of, taken
from ..engine.autograd import Tensor, no_grad
from ..evaluation.scores import confusion
from ..module import Module
from ..nn import Linear
from ..ops import cross_entropy
from ..processor import blas_at_one_thread, blocks, keep_freed_memory
from ..training.config import Config, build_model
from ..training.optim import SGD, warmup_cosine
from ..training.photos import photo_views
from ..training.run import Run, fingerprint
from ..values import not_negative, one_of, whole
from ..views import to_float, two_views
from .compare import LARGE_BLOCK

STARTS = ("simclr", "scratch")
# Rates for 256 images: the paper's for fine-tuning (B.5), and the usual one of a ResNet from scratch (He et al. 2016).
RATES = {"simclr": 0.05, "scratch": 0.1}
WARMUP = {"simclr": 0.0, "scratch": 0.05}  # random weights need one; the paper's fine-tuning has none
LEAST_STEPS = 200  # the paper's 60 epochs of 1 % of ImageNet are 190 steps; of a few labels they would be a handful
BLOCK = 500  # number of photos that are decoded at a time
CURVE = (10, 20, 50, 100, 200, 500)  # labels a class of the label-efficiency curve


class Classifier(Module):
    """An encoder and a linear layer: model(images) returns logits.

    Shapes: float images (N,H,W,3) in [0,1] -> (N,classes)
    """

    def __init__(self, encoder: Any, classes: int, rng: np.random.Generator) -> None:
        self.encoder, self.fc = encoder, Linear(encoder.features, classes, rng=rng)
        self.fc.weight.data = np.zeros_like(self.fc.weight.data)  # all classes alike, so that the first gradients
        self.fc.bias.data = np.zeros_like(self.fc.bias.data)  # into the encoder are small

    def __call__(self, images: Any, train: bool = False) -> Tensor:
        return self.fc(self.encoder(images, train), train)

    def predict(self, images: Any, batch: int = 500) -> NDArray[np.int64]:
        """Return the class of each image: uint8 (N,H,W,3), or a data set -> (N,), on the host."""
        count, device = len(images := taken(images)), device_of(self.fc.weight.data)
        with no_grad():
            parts = [self(to_float(to_device(images[part], device))).data for part in blocks(count, batch)]
        return np.concatenate([to_numpy(logits.argmax(axis=1)) for logits in parts])


def labels_of_each(labels: NDArray[np.int64], amount: str | int, seed: int = 0) -> NDArray[np.int64]:
    """Choose training images with as many labels of each class as of any other, and return their numbers.

    amount  "1%" of all labels, shared by the classes; or the number of labels a class, 10 or "10". A class with fewer
            images gives all.

    >>> labels_of_each(np.arange(40) % 4, "30%").shape, labels_of_each(np.arange(40) % 4, 2).shape
    ((12,), (8,))

    Raises: ValueError for an amount that is neither.
    Source: §4.3 of the paper: 1 % or 10 % of the labels, sampled in a class-balanced way.
    """
    classes, share = np.unique(labels), share_of(amount)
    if share is not None and 0 < share <= 1:
        each = max(1, round(share * len(labels) / len(classes)))
        each = len(labels) if share == 1 else each
    elif re.fullmatch(r"[1-9]\d{0,8}", str(amount)):
        each = int(amount)
    else:
        raise ValueError(f'labels must be a share such as "1%", or a number for each class, not {str(amount)[:40]!r}')
    rng = np.random.default_rng(seed)
    # One order of all images for any amount: the labels of a larger amount include those of a smaller one.
    order = rng.permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == label][:each] for label in classes]))


def share_of(amount: str | int) -> float | None:
    """Return 0.01 for "1%"; None for what is no share."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", str(amount))
    return float(found[1]) / 100 if found else None


def finetune(
    run: Run,
    train: Dataset,
    *,
    labels: str | int = "1%",
    start: str = "simclr",
    epochs: int | None = None,
    batch: int = 128,
    lr: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Classifier:
    """Train a classifier on some labels, from the run's encoder or from scratch, and return it.

    labels    how many: labels_of_each says it
    start     "simclr", or "scratch": the network with random weights, as the run's seed draws them
    epochs    by default the paper's, 60 for less than 10 % of the labels and 30 else, and at least 200 steps
    lr        for 256 images, by default 0.05 (the paper's) or, from scratch, 0.1; it falls along a cosine
    progress  is called with the number of each step, the number of all steps, and the loss

    Images are cropped and flipped at random, and their colours stay. Photos are cropped from their own pixels, as in
    pre-training; those that cannot be decoded are left out.

    >>> import minisimclr as ms
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    >>> train = ms.Dataset(images, np.arange(8) % 2, ("cat", "dog"))
    >>> run = ms.pretrain(ms.Config(size=16, batch=4, epochs=1), images)
    >>> ms.finetune(run, train, labels=2, epochs=2).predict(images).shape
    (8,)

    Raises: ValueError for a setting, DataError for labels of one class.
    Source: §4.3 and appendix B.5 of the paper: Nesterov momentum 0.9, no decay, no warm-up.
    """
    one_of("start", start, STARTS)
    batch, seed = whole("batch", batch, 1), whole("seed", seed, 0)
    chosen = labels_of_each(train.labels, labels, seed)
    if type(train) is not Dataset:
        for part in blocks(len(chosen), BLOCK):
            taken(train)[chosen[part]]  # else the next photo would take the place of a damaged one, with its label
    chosen = _readable(train, chosen)
    y = train.labels[chosen]
    if len(np.unique(y)) < 2:
        raise DataError("fine-tuning needs labelled images of two classes at least")
    batch = min(batch, len(y))
    steps = total_steps(len(y), len(train), batch, epochs, share_of(labels))
    peak = (RATES[start] if lr is None else not_negative("lr", lr)) * batch / 256
    device = device_of(run.model.parameters()[0].data)
    model = classifier(run, len(train.class_names), start, device, seed)
    optimizer = SGD(model.parameters(), peak, momentum=0.9, nesterov=True)
    crops = _crops(run.config, train, chosen, device)
    keep_freed_memory()
    with blas_at_one_thread():
        for step in range(steps):
            epoch, k = divmod(step, len(y) // batch)
            rows = np.random.default_rng([seed, 1, epoch]).permutation(len(y))[k * batch : (k + 1) * batch]  # (B,)
            x = crops(rows, np.random.default_rng([seed, 2, step]))  # (B,size,size,3)
            loss = cross_entropy(model(x, train=True), labels=to_device(y[rows], device))
            loss.backward()
            optimizer.step(warmup_cosine(step, steps, round(WARMUP[start] * steps), peak))
            optimizer.zero_grad()
            progress(step, steps, loss.item())
    return model


def _readable(train: Dataset, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the images without those of photos that could not be decoded."""
    bad = list(getattr(train, "unreadable", ()))
    return chosen[~np.isin(chosen, bad)]


def _crops(config: Config, train: Dataset, chosen: NDArray[np.int64], device: str) -> Callable[..., Any]:
    """Return the function that crops and flips some of the chosen images, by their places there."""
    # Strength 0 leaves crop and flip; a second view of each image is made and not used.
    if type(train) is Dataset:
        images, settings = train.images[chosen], (config.size, 0.0, False, config.min_area)
        return lambda rows, rng: two_views(to_device(images[rows], device), rng, *settings)[0]
    plain = replace(config.to_evaluate(device), strength=0.0, blur=False, views="auto")
    return lambda rows, rng: photo_views(plain, train, None, slice(None), chosen[rows], rng)[0]


def total_steps(count: int, of: int, batch: int, epochs: int | None, share: float | None = None) -> int:
    """Return the steps for `count` labels of a set of `of`. `share` was asked for; the count of it is rounded."""
    if epochs is not None:
        return whole("epochs", epochs, 1) * (count // batch)
    return max(LEAST_STEPS, (60 if (count / of if share is None else share) < 0.1 else 30) * (count // batch))


def classifier(run: Run, classes: int, start: str, device: str, seed: int) -> Classifier:
    """Build a classifier on a copy of the run's encoder, or on random weights, as the seed of the run draws them."""
    if start == "scratch" and "model" in run.own:
        raise ValueError("from scratch needs the network of a configuration, and this run has a model of one's own")
    encoder = copy.deepcopy(run.model if start == "simclr" else build_model(run.config.to_evaluate(device))).encoder
    model = Classifier(encoder, classes, np.random.default_rng([seed, 0]))
    model.to(device)
    return model


# ── What is kept of it ────────────────────────────────────────────────────────────────────────────


def point(
    run: Run, train: Dataset, tests: Mapping[str, Dataset], labels: str | int, start: str, **options: Any
) -> dict[str, Any]:
    """Fine-tune, score the classifier on each test split, and return all that finetune.json keeps of it."""
    began = time.monotonic()
    model = finetune(run, train, labels=labels, start=start, **options)
    scores = {}
    for split, data in tests.items():
        images, known = squares_of(data), _known(data)  # of all images, also of those that cannot be decoded
        predicted = model.predict(images, batch=500 if is_array(images) else LARGE_BLOCK)
        data, predicted = sound(data, predicted)
        found = confusion(data.labels, predicted, len(train.class_names))
        shares = {"accuracy": found.accuracy, "per_class": found.per_class, "images": len(data)}
        scores[split] = shares | {"fingerprint": known}
    return {
        **identity(run, train, labels, start, **options),
        "count": len(_readable(train, labels_of_each(train.labels, labels, options.get("seed", 0)))),
        "scores": scores,
        "seconds": round(time.monotonic() - began, 1),
    }


def identity(run: Run, train: Dataset, labels: str | int, start: str, **options: Any) -> dict[str, Any]:
    """Return what a point is known by: two with the same would have the same scores."""
    settings = {"labelled": _known(train)} | {name: value for name, value in options.items() if name != "progress"}
    crops = {} if type(train) is Dataset else {"crops": "from photos"}  # once they came from squares
    share, count = share_of(labels), len(labels_of_each(train.labels, labels))
    if share is not None and settings.get("epochs") is None and (share < 0.1) != (count / len(train) < 0.1):
        settings["epochs_by"] = "share"  # once the count decided
    return {"images": fingerprint(train), "run_steps": run.steps, "labels": str(labels), "start": start,
            **dict.fromkeys(("epochs", "lr")), "batch": 128, "seed": 0, **settings, **crops}  # fmt: skip


def _known(data: Dataset) -> str:
    """Return what a data set is known by: other labels of the same images make another classifier."""
    return f"{fingerprint(data)}, labels {zlib.crc32(data.labels.tobytes()):08x}"


def found_among(
    points: Iterable[Mapping[str, Any]], wanted: Mapping[str, Any], tests: Mapping[str, Dataset]
) -> Mapping[str, Any] | None:
    """Return the stored point that was made with these settings, and scored on these splits, if there is one."""
    now = {split: {"images": len(data), "fingerprint": _known(data)} for split, data in tests.items()}
    for p in points:
        # Points of earlier versions lack "labelled", and fingerprints, which count the images, too.
        same = {"labelled": wanted.get("labelled"), **p}
        if p["scores"].keys() != now.keys() or any(same.get(name) != value for name, value in wanted.items()):
            continue
        facts = {split: "fingerprint" if "fingerprint" in score else "images" for split, score in p["scores"].items()}
        if all(p["scores"][split][fact] == now[split][fact] for split, fact in facts.items()):
            return p
    return None
