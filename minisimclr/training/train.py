"""Pre-training, Algorithm 1 of the paper: images go in, and a trained SimCLR comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError, Dataset, taken
from ..ntxent import contrastive_accuracy_on_device
from ..processor import keep_freed_memory
from ..simclr import SimCLR
from ..values import function, instance, whole
from .batches import MOST_WORKERS, training_images, views_ahead
from .begin import begin
from .config import Config
from .optim import warmup_cosine
from .run import Metrics, NonFiniteError, Run
from .session import Monitor, Session

__all__ = ["NonFiniteError", "pretrain"]


def pretrain(
    config: Config,
    images: np.ndarray[Any, Any] | Dataset | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    model: SimCLR | None = None,
    views: Callable[..., Any] | None = None,
    workers: int = 0,
    progress: Callable[[Metrics], None] = lambda metrics: None,
    monitor: Monitor | None = None,
    ranks: Any = None,
) -> Run:
    """Train SimCLR (Algorithm 1 of the paper) and return the run.

    images    uint8 (N,H,W,3), or a data set; by default the training split of config.data
    folder    the folder for config.json, metrics.jsonl and checkpoint.npz; None keeps nothing
    resume    True goes on from the folder's checkpoint, with the same configuration
    model     a SimCLR of your own encoder and head, in place of the one that the configuration describes
    views     a function of your own, of images uint8 (B,H,W,3) and a generator; it returns two views, float (B,H,W,3)
    workers   processes that make the views of coming steps; with any number the views are the same (batches.py)
    progress  is called with the metrics of every step; monitor adds to them: ms.Monitor(config, images, labels)
    ranks     the processes that share each batch: `with mpi_ranks() as ranks` (chapter 14)

    Raises: ValueError for data or a folder that does not fit; RuntimeError for a device or precision that is not
            there; CheckpointError for a checkpoint that cannot be used; NonFiniteError if the loss, the gradient or
            the weights become NaN or infinite; Interrupted after SIGINT or SIGTERM, when all is saved.

    >>> import numpy as np, minisimclr as ms
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    >>> run = ms.pretrain(ms.Config(size=16, batch=4, epochs=2), images)
    >>> run.steps, [line["epoch"] for line in run.history]
    (4, [0, 0, 1, 1])
    """
    workers = whole("workers", workers, 0, MOST_WORKERS)
    instance("config", config, Config)
    function("progress", progress)  # whatever can be refused is refused before a folder is made
    function("monitor", progress if monitor is None else monitor)
    images = taken(training_images(config) if images is None else images)  # uint8 (N,H,W,3), or photos: data/stream.py
    total_steps = config.epochs * (len(images) // config.batch)  # images that do not fill a batch are left out
    if not total_steps:  # a network that was never trained would look like a result
        raise DataError(f"{len(images)} images are fewer than one batch of {config.batch}; use a smaller --batch")
    warmup_steps = round(config.warmup * total_steps)  # a fraction, so that a short run warms up, too
    peak = config.lr * config.batch / 256  # an epoch of larger batches has fewer steps: paper §2.3
    keep_freed_memory()  # every step reuses the memory of the step before
    # The network is new, or that of the checkpoint. `loss_of` is its loss, in chunks of the batch if --chunk asks.
    run, optimizer, loss_of = begin(config, images, folder, resume, model, views, ranks, workers)
    with (
        Session(run, optimizer, total_steps, progress, monitor, ranks) as session,  # records, saves, stops
        views_ahead(config, images, session.steps, workers, session.stop, views, session.share) as views_of,
    ):
        for step in session:  # a resumed run begins where the checkpoint was written
            lr = warmup_cosine(step, total_steps, warmup_steps, peak)
            a, b = views_of(step)  # (B,size,size,3) each: a[i] and b[i] are a positive pair
            loss, za, zb = loss_of(a, b, config.temperature)  # scalar, (B,head_dim), (B,head_dim)
            size = optimizer.backward(loss, session.add_up)  # Σ max|g|: it is finite exactly if every gradient is
            # A number that is not finite ends the run here, before it gets into the weights or into a checkpoint.
            session.record(lr=lr, loss=loss.data, gradient=size, top1=contrastive_accuracy_on_device(za, zb, ranks))
            optimizer.step(lr)
            optimizer.zero_grad()  # else the next backward pass would add to these gradients
    return run
