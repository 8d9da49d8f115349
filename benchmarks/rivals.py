"""One rival of SimCLR from each family of self-supervision, and the supervised network, on the same engine.

    from rivals import RIVALS, train
    rival = train("rotation", config, images, labels)    # the budget and the images of a SimCLR run
    rival.encoder                                        # what is judged, in place of SimCLR's

A rival is an encoder, whatever it needs besides, and a loss of a batch. All of them see the same number of images in
the same order, crops and colours drawn by the same rule, and one optimizer and schedule; so what differs is the task.

    supervised    which class is it? The labels say so (a reference, not a rival)
    rotation      context-based: by how many quarters is the image turned? (Gidaris et al. 2018)
    instance      contrastive with a memory bank: which image of the data set is it? (Wu et al. 2018)
    masked        masked image modelling: what is behind the hidden patches? (after He et al. 2022, Xie et al. 2022)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minisimclr import SGD, Config, Tensor, ops, two_views, warmup_cosine
from minisimclr.module import Module
from minisimclr.nn import Linear
from minisimclr.simclr import ProjectionHead
from minisimclr.training.batches import epoch_order
from minisimclr.training.config import ORDER, VIEWS, WEIGHTS, build_model

Array = np.ndarray[Any, Any]


class Rival(Module):
    """An encoder with a task of its own. `loss` takes float images (B,H,W,3), their numbers (B,) and a generator."""

    def __init__(self, config: Config, images: Array, labels: Array) -> None:
        self.encoder = build_model(config).encoder  # the weights that SimCLR starts from with this seed

    def loss(self, x: Array, chosen: Array, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError

    def after_step(self) -> None:
        """Do what is due when the weights have moved."""


class Supervised(Rival):
    """Predict the class: a linear layer on h, and softmax cross-entropy.

    It is a reference. The lab chooses its rate by a probe on images whose labels it was trained with.
    """

    def __init__(self, config: Config, images: Array, labels: Array) -> None:
        super().__init__(config, images, labels)
        classes = int(labels.max()) + 1
        self.linear = Linear(self.encoder.features, classes, rng=config.rng(WEIGHTS, 1))
        self._labels = tuple(labels.tolist())  # a tuple: an array attribute would count as a buffer

    def loss(self, x: Array, chosen: Array, rng: np.random.Generator) -> Tensor:
        labels = np.array([self._labels[i] for i in chosen])  # (B,)
        return ops.cross_entropy(self.linear(self.encoder(x, train=True)), labels=labels)


class Rotation(Rival):
    """Predict by how many quarters of a turn the image was rotated.

    Each image is seen at one angle. (Gidaris et al. show all four of each; a batch of that kind costs four times ours.)
    """

    def __init__(self, config: Config, images: Array, labels: Array) -> None:
        super().__init__(config, images, labels)
        self.linear = Linear(self.encoder.features, 4, rng=config.rng(WEIGHTS, 1))

    def loss(self, x: Array, chosen: Array, rng: np.random.Generator) -> Tensor:
        turns = rng.integers(0, 4, len(x))  # (B,)
        turned = np.stack([np.rot90(image, k) for image, k in zip(x, turns)])  # (B,H,W,3)
        return ops.cross_entropy(self.linear(self.encoder(turned, train=True)), labels=turns)


class Instance(Rival):
    """Tell the images of the data set apart: each is a class, and its last embeddings stand for it.

    The memory bank V (M,D) holds one unit vector an image. A batch's embeddings u are compared with all of it,
    P(i | x) = exp(vᵢ·u/τ) / Σⱼ exp(vⱼ·u/τ), their equation (2); the sum is exact, because our sets are small. After
    the step vᵢ moves halfway to u, as in their code. Here a batch has two views of an image, and vᵢ moves once,
    halfway to the mean direction of both.
    """

    temperature = 0.07  # theirs
    keep = 0.5  # share of the old vector that stays in the bank, theirs

    def __init__(self, config: Config, images: Array, labels: Array) -> None:
        super().__init__(config, images, labels)
        features, rng = self.encoder.features, config.rng(WEIGHTS, 1)
        self.head = ProjectionHead(features, features, config.head_dim, layers=1, batch_norm=False, rng=rng)
        bank = rng.standard_normal((len(images), config.head_dim)).astype(np.float32)  # (M,D)
        self.bank = unit(bank)  # a buffer: it has no gradient

    def loss(self, x: Array, chosen: Array, rng: np.random.Generator) -> Tensor:
        u = ops.l2_normalize(self.head(self.encoder(x, train=True), train=True))  # (B,D)
        self._seen = (chosen, u.data.copy())
        return ops.cross_entropy(u @ self.bank.T * (1 / self.temperature), labels=chosen)  # (B,M) -> scalar

    def after_step(self) -> None:
        chosen, u = self._seen
        images, row = np.unique(chosen, return_inverse=True)  # (K,) without repetition; (B,), whose row each view is
        mean = np.zeros((len(images), u.shape[1]), u.dtype)  # (K,D)
        np.add.at(mean, row, u)  # the sum of an image's views has the direction of their mean
        self.bank[images] = unit(self.keep * self.bank[images] + (1 - self.keep) * unit(mean))
        del self._seen


def unit(rows: Array) -> Array:
    """Divide each row by its length: (N,D) -> (N,D)."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Masked(Rival):
    """Paint the patches that are hidden: a small decoder turns h back into an image, and only hidden pixels count.

    A convolutional encoder cannot leave patches out, as a transformer does; the hidden ones are grey, as in SimMIM.
    """

    patch = 8  # pixels a side: 16 patches of a 32-pixel image
    hidden = 0.75  # share of the patches that are hidden; He et al. find 0.75 best, and up to 0.8 good

    def __init__(self, config: Config, images: Array, labels: Array) -> None:
        super().__init__(config, images, labels)
        features, rng = self.encoder.features, config.rng(WEIGHTS, 1)
        pixels = config.size * config.size * 3
        self.decoder = ProjectionHead(features, features, pixels, batch_norm=False, rng=rng)

    def loss(self, x: Array, chosen: Array, rng: np.random.Generator) -> Tensor:
        n, side = len(x), x.shape[1] // self.patch  # patches a side
        order = rng.random((n, side * side)).argsort(axis=1)  # (B,P): a random order of each image's patches
        mask = (order < self.hidden * side * side).reshape(n, side, side, 1)  # (B,side,side,1)
        mask = mask.repeat(self.patch, axis=1).repeat(self.patch, axis=2)  # (B,H,W,1), True where nothing is seen
        seen = np.where(mask, np.float32(0.5), x)  # (B,H,W,3)
        painted = self.decoder(self.encoder(seen, train=True))  # (B,H·W·3)
        weight = np.broadcast_to(mask, x.shape).reshape(n, -1).astype(np.float32)  # (B,H·W·3)
        error = painted - x.reshape(n, -1)  # (B,H·W·3)
        return (error * error * weight).sum() * (1 / float(weight.sum()))


RIVALS: dict[str, Callable[[Config, Array, Array], Rival]] = {
    "supervised": Supervised,
    "rotation": Rotation,
    "instance": Instance,
    "masked": Masked,
}


def train(
    name: str, config: Config, images: Array, labels: Array, progress: Callable[[int, float], None] = lambda *_: None
) -> Rival:
    """Train a rival as `pretrain` trains SimCLR: the same images in each step, the same optimizer and schedule.

    SimCLR sees two views of each image, so that a rival is given two as well: one batch of twice the images.
    `progress` is called with the number of each step and its loss.

    Raises: KeyError for an unknown name, ValueError if the images do not fill a batch, FloatingPointError if the loss
            is not finite.
    """
    if len(images) < config.batch:
        raise ValueError(f"{len(images)} images do not fill a batch of {config.batch}")
    rival = RIVALS[name](config, images, labels)
    optimizer = SGD(rival.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    steps = len(images) // config.batch  # an epoch
    total, peak = config.epochs * steps, config.lr * config.batch / 256
    for step in range(total):
        epoch, k = divmod(step, steps)
        if k == 0:
            order = epoch_order(len(images), config.batch, config.rng(ORDER, epoch))  # (steps,B)
        chosen, rng = order[k], config.rng(VIEWS, step)
        views = two_views(images[chosen], rng, config.size, config.strength, config.blur, config.min_area)
        loss = rival.loss(np.concatenate(views), np.tile(chosen, 2), rng)  # of (2B,size,size,3)
        if not np.isfinite(loss.item()):
            raise FloatingPointError(f"{name}: the loss of step {step} is {loss.item()}")
        progress(step, loss.item())
        optimizer.backward(loss)
        optimizer.step(warmup_cosine(step, total, round(config.warmup * total), peak))
        optimizer.zero_grad()
        rival.after_step()
    return rival
