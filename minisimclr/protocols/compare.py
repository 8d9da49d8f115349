"""The table of a run: raw pixels, colours, the untrained encoder, SimCLR's h and z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..backend import device_of, to_device
from ..data import Dataset
from ..evaluation.embed import Matrix, embed
from ..evaluation.knn import knn_accuracy
from ..evaluation.probe import fit_linear_probe
from ..training.config import build_model
from ..training.run import Run


@dataclass(frozen=True)
class Score:
    """Accuracies of one representation (raw pixels, h, z …), per test split, in [0,1]."""

    name: str
    knn: dict[str, float]
    probe: dict[str, float]


def compare(
    run: Run,
    train: Dataset,
    tests: dict[str, Dataset],
    *,
    k: int = 20,
    temperature: float = 0.1,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Score]:
    """Score raw pixels, colour statistics, the untrained encoder, and SimCLR's h and z, on each test split.

    All of it is computed on the device of the model. `progress` is called with the name of each representation.

    Raises: ValueError for images that the encoder does not take.
    """
    device = device_of(run.model.parameters()[0].data)

    def untrained(images: Matrix) -> Matrix:
        return embed(build_model(run.config.to_evaluate(device)).to(device), images)[0]

    def pixels(images: Matrix) -> Matrix:
        return images.reshape(len(images), -1).astype(np.float32) / 255

    # every split is embedded once, for h and z together; "" is the training split
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
        scores.append(
            Score(
                name,
                {
                    split: knn_accuracy(train_h, train.labels, test_h[split], data.labels, k, temperature)
                    for split, data in tests.items()
                },
                {split: probe.accuracy(test_h[split], data.labels) for split, data in tests.items()},
            )
        )
    return scores


def colour_statistics(images: Matrix) -> Matrix:
    """Return mean and standard deviation of each colour channel.

    Shapes: images uint8 (N,H,W,3) -> float32 (N,6)
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
