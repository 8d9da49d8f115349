"""A monitor of training: kNN on held-out images, measures without labels, and advice.

It looks at the model now and then and changes nothing: the weights of a run are the same, bit for bit, with it and
without it. Test images are never looked at. A tenth of the labelled training images asks, and the others answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..backend import device_of, to_device, to_numpy
from ..engine.autograd import no_grad
from ..evaluation import measures
from ..evaluation.embed import embed
from ..evaluation.knn import knn_accuracy
from ..simclr import SimCLR
from ..training.config import Config
from ..training.run import Metrics
from ..training.trained import views_in_training
from ..values import whole

MOST_IMAGES = 2000  # images of which kNN is computed: 200 ask, 1,800 answer; a fifteenth of an epoch of 5,000 images
MOST_PAIRS = 256  # images of which two views are compared
COLLAPSED_SPREAD, COLLAPSED_RANK = 0.1, 1.5  # below either one, embeddings have collapsed; healthy ones: 1 and 10


class Monitor:
    """Measure a model every so many epochs; `pretrain(…, monitor=Monitor(config, images, labels))` calls it.

    labels  (N,), or None: then there is no kNN
    every   epochs between two measurements; by default a tenth of the run, at least one epoch

    A measurement adds to the metrics of its step: "knn", of h; "alignment", "uniformity", "rank" and "spread", of z;
    and "advice" if something looks wrong.

    Raises: ValueError for an `every` below 1.

    >>> import numpy as np, minisimclr as ms
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    >>> config = ms.Config(size=16, batch=4, epochs=2)
    >>> run = ms.pretrain(config, images, monitor=ms.Monitor(config, images, np.arange(20) % 2))
    >>> [line["step"] for line in run.history if "knn" in line]
    [4, 9]
    """

    def __init__(
        self,
        config: Config,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
        *,
        every: int | None = None,
    ) -> None:
        self.config = config
        self.every = max(1, config.epochs // 10) if every is None else whole("every", every, 1)
        labelled = labels is not None and len(labels) == len(images) and len(np.unique(labels)) > 1 and min(labels) >= 0
        # The order is drawn from a generator of its own: none of the run's random numbers is used up.
        some = np.random.default_rng(config.seed).permutation(len(images))[:MOST_IMAGES]
        held_out, rest = np.split(some, [max(1, len(some) // 10)])
        self.pairs = images[np.sort(some[:MOST_PAIRS])]  # (P,H,W,3)
        self.knn = None
        if labelled and len(rest):
            assert labels is not None
            self.knn = images[rest], labels[rest], images[held_out], labels[held_out]
        self.losses: list[float] = []  # of the steps since the last measurement

    def __call__(self, model: SimCLR, lines: list[Metrics]) -> Metrics:
        """Return what is to be added to the metrics of the last of these steps: nothing, unless it is time."""
        self.losses += [line["loss"] for line in lines]
        steps = lines[-1]["steps"]
        stretch = steps // self.config.epochs * self.every  # steps between two measurements
        before, after = lines[0]["step"] // stretch, (lines[-1]["step"] + 1) // stretch
        if before == after and lines[-1]["step"] + 1 < steps:
            return {}
        found = self.measured(model)
        loss, self.losses = float(np.mean(self.losses)), []
        warm = lines[-1]["step"] + 1 > max(self.config.warmup * steps, steps // self.config.epochs)
        text = advice(found, loss if warm else 0.0, lines[-1]["chance"])
        return {**found, **({"advice": text} if text else {})}

    def measured(self, model: SimCLR) -> Metrics:
        """Measure the model as it is; nothing, if its numbers overflow."""
        config, device = self.config, device_of(model.parameters()[0].data)
        rng = np.random.default_rng(config.seed)  # the same views each time, so that measurements can be compared
        a, b = views_in_training(config, self.pairs, rng)
        with no_grad():
            za, zb = (to_numpy(model(to_device(view, device), train=False)[1].data) for view in (a, b))  # (P,D) each
        if not (np.abs(za).max() < 1e16 and np.abs(zb).max() < 1e16):
            return {}
        found = {
            "alignment": measures.alignment(za, zb),
            "uniformity": measures.uniformity(za) if len(za) > 1 else 0.0,
            "rank": measures.effective_rank(za),
            "spread": measures.spread(za),
        }
        if self.knn is not None:
            bank, bank_y, asking, asking_y = self.knn
            h, asking_h = embed(model, bank)[0], embed(model, asking)[0]
            found["knn"] = knn_accuracy(h, bank_y, asking_h, asking_y, k=min(20, len(h)))
        return found


def advice(found: Metrics, loss: float, chance: float) -> str:
    """Return what to try if a measurement looks wrong, in one line; else nothing.

    >>> advice({"rank": 1.01, "spread": 0.02}, loss=5.5, chance=5.54)
    'the embeddings have collapsed (effective rank 1.0, spread 0.02): try a lower lr or a longer warmup'
    >>> advice({"rank": 20.0, "spread": 0.9}, loss=4.0, chance=5.54)
    ''
    """
    if found and (found["spread"] < COLLAPSED_SPREAD or found["rank"] < COLLAPSED_RANK):
        return (
            f"the embeddings have collapsed (effective rank {found['rank']:.1f}, spread {found['spread']:.2f}): "
            "try a lower lr or a longer warmup"
        )
    if loss > chance:
        return (
            f"the loss, {loss:.2f}, is still above chance, {chance:.2f}: try a lower lr, a higher temperature, "
            "or crops that are less small (min_area)"
        )
    return ""
