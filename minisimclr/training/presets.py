"""Presets: the settings of the paper, of our own run on a CPU, and for few images.

`minisimclr pretrain --preset paper-cifar10` begins with these settings; an option that is given beside it wins. The
table in docs/hyperparameters.md is written from them, and a test compares them with what it says of the paper.

On few images the default settings make few steps: 300 photos fill one batch of 256, so 20 epochs are 20 steps, and the
loss has no time to leave its chance level. So batch and epochs follow from the number of steps here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from ..values import one_of, whole
from .config import Config

PRESETS: dict[str, dict[str, Any]] = {
    "paper-imagenet": {  # §2.1 and Appendix B: the run of 1,000 epochs that ends at 69.3 %
        "size": 224,
        "encoder": "resnet50",
        "stem": "imagenet",
        "head": "mlp2",
        "batch": 4096,
        "epochs": 1000,
        "temperature": 0.1,
        "optimizer": "lars",
        "lr": 0.3,
        "weight_decay": 1e-6,
        "warmup": 0.01,  # 10 epochs
        "strength": 1.0,
        "blur": True,
    },
    "paper-cifar10": {  # Appendix B.9: the best of its grid, 94.0 %; it does not say which rate that one had
        "size": 32,
        "encoder": "resnet50",
        "stem": "cifar",
        "head": "mlp2",
        "batch": 1024,
        "epochs": 1000,
        "temperature": 0.5,
        "optimizer": "lars",
        "lr": 1.0,
        "weight_decay": 1e-6,
        "warmup": 0.01,
        "strength": 0.5,
        "blur": False,
    },
    "small-cpu": {  # docs/results/cifar10-jpeg-small: 61.5 % kNN after 48 minutes on two cores
        "batch": 256,
        "epochs": 30,
        "lr": 0.12,
        "temperature": 0.2,
        "weight_decay": 2e-4,
    },
    "few-images": {},  # batch and epochs follow from the number of images: `for_few`
}

FEW_STEPS = 200  # a run of fewer steps than this ends near its chance level
WANTED_STEPS = 1000  # steps that a run on few images gets
BATCHES = 2  # batches in an epoch, at least: with one, every step would compare each image with all others
LARGEST, SMALLEST = 256, 4  # images in a batch; larger ones cost more than they give, smaller ones have few negatives
RATE = 0.2  # learning rate per 256 images, the demo's; at higher ones the loss rises before it falls
TEMPERATURE = 0.2  # at 0.1 the loss of an untrained network lies far above its chance level, and stays there for long
TUNED = ("batch", "epochs", "lr", "warmup")  # settings that are chosen by the number of steps, if none is given


def preset(name: str | None) -> dict[str, Any]:
    """Return the settings of a preset, for `Config(**preset("paper-cifar10"))`; none for None.

    >>> preset("paper-imagenet")["batch"]
    4096

    Raises: ValueError for a preset that does not exist.
    """
    return {} if name is None else dict(PRESETS[one_of("preset", name, tuple(PRESETS))])


def for_few(count: int, batch: int | None = None) -> dict[str, Any]:
    """Return batch, epochs, rate, warm-up and temperature for few images: about a thousand steps.

    batch  one that was chosen already

    >>> for_few(300)
    {'batch': 128, 'epochs': 500, 'lr': 0.2, 'warmup': 0.05, 'temperature': 0.2}

    Raises: ValueError for fewer than two images.
    """
    most = whole("the number of images", count, 2) // BATCHES
    if batch is None:  # a power of two, if it can be
        batch = min(max(1 << max(most.bit_length() - 1, 0), SMALLEST), LARGEST, count)
    epochs = -(-WANTED_STEPS // (count // batch))
    return {"batch": batch, "epochs": epochs, "lr": RATE, "warmup": 0.05, "temperature": TEMPERATURE}


def fitted(config: Config, count: int, given: Collection[str] = (), name: str | None = None) -> tuple[Config, str]:
    """Return the configuration for this number of images, and a line that says what was chosen, or "".

    given  names of the settings that the user chose: they stay. If one of TUNED is among them, nothing is chosen
    name   the preset; with few-images whatever is not given is chosen, however many images there are
    """
    asked, given = name == "few-images", {*given, *preset(name)}
    steps = config.epochs * (count // config.batch)
    if count < 2 or not (asked or (steps < FEW_STEPS and not given & set(TUNED))):
        return config, ""
    if "batch" in given and count < config.batch:  # there is no such run, and `pretrain` says so
        return config, ""
    chosen = for_few(count, config.batch if "batch" in given else None)
    chosen = {key: value for key, value in chosen.items() if key not in given}
    fit = dataclasses.replace(config, **chosen)
    done = fit.epochs * (count // fit.batch)
    words = " ".join(f"--{key} {value:g}" for key, value in chosen.items())
    if asked:
        return fit, f"few-images chose {words}: {done:,} steps in place of {steps:,}"
    return fit, f"{count:,} images are few, and {steps} steps too short a run; chosen: {words}, that is {done:,} steps"
