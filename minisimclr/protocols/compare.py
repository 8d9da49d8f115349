"""The table of a run: raw pixels, colours, the untrained encoder, SimCLR's h and z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..backend import device_of, to_device
from ..data import DataError, Dataset, sound, squares_of
from ..evaluation.embed import Matrix, embed
from ..evaluation.knn import votes_won
from ..evaluation.probe import TRANSFER_L2_VALUES, LinearProbe, fit_linear_probe
from ..evaluation.scores import Confusion, confusion
from ..processor import blocks
from ..training.config import build_model
from ..training.run import Run, fingerprint
from .sgd_probe import fit_sgd_probe

BLOCK, LARGE_BLOCK = 500, 64  # numbers of images that are embedded at a time; 500 of 224 pixels would take gigabytes
RAW_SIDE = 32  # of photos that are no single array, raw pixels are means over squares: else 600 KB an image at 224

# The linear classifiers, by name: a quick sweep over four penalties, the paper's for transfer, and its SGD.
PROBES: dict[str, Callable[[Any, Any], LinearProbe]] = {
    "quick": fit_linear_probe,
    "transfer": lambda h, y: fit_linear_probe(h, y, l2_values=TRANSFER_L2_VALUES, iterations=200),
    "sgd": fit_sgd_probe,
}


class Vote(NamedTuple):
    """The kNN classifier's settings: how many neighbours vote, and how sharply their similarity weighs them."""

    k: int = 20  # both as in `minisimclr evaluate`
    temperature: float = 0.1


USUAL = Vote()


@dataclass(frozen=True)
class Score:
    """Accuracies of one representation (raw pixels, h, z …), per test split, in [0,1]."""

    name: str
    knn: dict[str, float]
    probe: dict[str, float]
    knn_confusion: dict[str, Confusion] = field(default_factory=dict)  # which classes were taken for which
    probe_confusion: dict[str, Confusion] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what results.json holds: the accuracies, and their means over the classes."""
        both = {"knn_per_class": self.knn_confusion, "probe_per_class": self.probe_confusion}
        means = {name: {s: found.per_class for s, found in kind.items()} for name, kind in both.items()}
        return {"name": self.name, "knn": self.knn, "probe": self.probe, **means}


def compare(
    run: Run,
    train: Dataset,
    tests: dict[str, Dataset],
    *,
    k: int = 20,
    temperature: float = 0.1,
    probe: str = "quick",
    progress: Callable[[str], None] = lambda name: None,
) -> list[Score]:
    """Score raw pixels, colour statistics, the untrained encoder, and SimCLR's h and z, on each test split.

    All of it is computed on the device of the model. `probe` names the linear classifier (PROBES), and `progress` is
    called with the name of each representation. A photo that cannot be decoded is not counted.

    Raises: ValueError for images that the encoder does not take.
    """
    device = device_of(run.model.parameters()[0].data)
    images = {name: squares_of(data) for name, data in {"": train, **tests}.items()}  # "" is the training split
    # One file that cannot be decoded makes photos of an array, too; the size alone decides how they are compared.
    large = not all(getattr(data, "fits", True) for data in (train, *tests.values()))
    side = min(RAW_SIDE, run.config.size) if large else 0
    untrained = build_model(run.config.to_evaluate(device)).to(device)
    seen, known = {}, {}
    for split, found in images.items():
        rows = _representations(run.model, untrained, found, side, progress)
        data, *matrices = sound(train if not split else tests[split], *rows.values())
        seen[split], known[split] = dict(zip(rows, matrices)), data.labels
    k = min(k, len(known[""]))  # photos that could not be decoded have left fewer
    scores = []
    for name in list(seen[""]):
        progress(name)
        train_h = to_device(seen[""].pop(name), device)
        fitted = PROBES[probe](train_h, known[""])
        knn, linear = {}, {}
        for split in tests:
            test_h, labels = to_device(seen[split].pop(name), device), known[split]
            classes = len(tests[split].class_names)
            knn[split] = confusion(labels, votes_won(train_h, known[""], test_h, k, temperature), classes)
            linear[split] = confusion(labels, fitted.predict(test_h), classes)
        by_knn, by_probe = ({split: found.accuracy for split, found in kind.items()} for kind in (knn, linear))
        scores.append(Score(name, by_knn, by_probe, knn, linear))
    return scores


def _representations(
    model: Any, untrained: Any, images: Any, side: int, progress: Callable[[str], None]
) -> dict[str, Matrix]:
    """Compute every representation of the images, (N,F) each, in one pass over them, so that photos are decoded once.

    side  of the squares whose raw pixels are taken, or 0 for the images as they are
    """
    parts = []
    for part in blocks(len(images), LARGE_BLOCK if side else BLOCK):
        if side:
            progress(f"{part.start:,} of {len(images):,} photos")
        some = images[part]
        h, z = embed(model, some)
        parts.append((_pixels(some, side), colour_statistics(some), embed(untrained, some)[0], h, z))
    raw = f"raw pixels, {side}×{side}" if side else "raw pixels"
    names = raw, "colour statistics", "untrained encoder, h", "SimCLR, h", "SimCLR, z"
    return {name: np.concatenate(columns) for name, columns in zip(names, zip(*parts))}


def _pixels(images: Matrix, side: int) -> Matrix:
    """Return the pixels of images, or of means over their areas if there is a side: float32 (N,F) in [0,1]."""
    if side and images.shape[1] > side:
        return np.stack([_means(image / np.float32(255), side) for image in images]).reshape(len(images), -1)
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _means(image: Matrix, side: int) -> Matrix:
    """Return means over cells of an image, which are of unequal size where the side does not divide its size.

    Shapes: (S,S,3) -> (side,side,3)
    """
    starts = np.arange(side) * len(image) // side
    counts = np.diff([*starts, len(image)]).astype(np.float32)
    rows = np.add.reduceat(image, starts, axis=0) / counts[:, None, None]
    return np.asarray(np.add.reduceat(rows, starts, axis=1) / counts[:, None])


def check_data(run: Run, train: Dataset, tests: dict[str, Dataset], source: str, other: bool) -> list[str]:
    """Refuse data on which an evaluation would mean nothing, and return remarks, a line each.

    other  True if the data was asked for by name: it may then be other images than the run was trained on

    Raises: DataError for no images, for images of one class, and for others than those of the run.
    """
    for name, data in {"train": train, **tests}.items():
        if not len(data):
            raise DataError(f"{source}: there are no {name} images to evaluate on")
    if len(np.unique(train.labels)) < 2:
        only = train.class_names[train.labels[0]]
        raise DataError(f"{source}: all {len(train)} training images are of one class, {only}; use --data with two")
    if not other and (text := other_images(run, train, source)):
        raise DataError(f"{text}; name the data to evaluate on with --data")
    unseen = {split: sorted(set(data.labels) - set(train.labels)) for split, data in tests.items()}
    return [
        f"{split}: {len(labels)} of its classes have no training image, and are always missed"
        for split, labels in unseen.items()
        if labels
    ]


def other_images(run: Run, train: Dataset, source: str) -> str:
    """Say so if these are not the images that the run was trained on; else nothing."""
    if run.images in ("", fingerprint(train)):
        return ""
    return f"{source}: these are not the {run.images.partition(',')[0]} that the run was trained on"


def colour_statistics(images: Matrix) -> Matrix:
    """Return mean and standard deviation of each colour channel.

    Shapes: images uint8 (N,H,W,3) -> float32 (N,6)
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
