"""Pre-training: images in, a trained SimCLR out. This is Algorithm 1 of the paper with its loop around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .augment import two_views
from .backend import blas_at_one_thread, to_device
from .config import ORDER, VIEWS, Config, build_model, build_optimizer
from .data import DataError, epoch_order, load_dataset
from .ntxent import contrastive_accuracy
from .optim import Optimizer, warmup_cosine
from .run import (
    Interrupted,
    Metrics,
    NonFiniteError,
    Run,
    claim,
    fingerprint,
    keeper,
    metrics_file,
    restore,
    stop_signals,
)

__all__ = ["NonFiniteError", "pretrain"]


def pretrain(config: Config, images: np.ndarray[Any, Any] | None = None, *, folder: str | Path | None = None,
             resume: bool = False, progress: Callable[[Metrics], None] = lambda metrics: None) -> Run:
    """Train SimCLR (Algorithm 1 of the paper) and return the run.

    images    uint8 (N,H,W,3); by default the training split of config.data
    folder    where to keep config.json, metrics.jsonl and checkpoint.npz; None: nowhere
    resume    go on from the folder's checkpoint, with the same configuration
    progress  is called with the metrics of every step

    Raises ValueError for data or a folder that does not fit, NonFiniteError, Interrupted (SIGINT, SIGTERM).
    """
    images = load_dataset(config.data, "train", size=config.size).images if images is None else images
    steps_per_epoch = len(images) // config.batch
    total_steps = config.epochs * steps_per_epoch
    if not total_steps:
        raise DataError(f"{len(images)} images are fewer than one batch of {config.batch}; use a smaller --batch")
    peak = config.lr * config.batch / 256                                # the paper's linear scaling, §2.1
    model = build_model(config).to(config.device)
    optimizer = build_optimizer(config, model)
    run = Run(config, model, folder=claim(folder, resume), images=fingerprint(images))
    if resume:
        restore(run, optimizer)
    epoch = -1
    with blas_at_one_thread(), stop_signals() as stop, metrics_file(run) as write, keeper(run, optimizer) as save:
        for step in range(run.steps, total_steps):
            if step // steps_per_epoch != epoch:
                epoch = step // steps_per_epoch
                batches = epoch_order(len(images), config.batch, config.rng(ORDER, epoch))
            started = time.perf_counter()
            batch = to_device(images[batches[step % steps_per_epoch]], config.device)                  # (N,H,W,3) uint8
            a, b = two_views(batch, config.rng(VIEWS, step), config.size, config.strength, config.blur, config.min_area)
            loss, za, zb = model.loss(a, b, config.temperature)
            _require_finite(loss.item(), "loss", step)
            loss.backward()
            _require_finite(_gradient_size(optimizer), "gradient", step)
            lr = warmup_cosine(step, total_steps, round(config.warmup * total_steps), peak)
            optimizer.step(lr)
            optimizer.zero_grad()
            run.steps = step + 1
            write({"step": step, "steps": total_steps, "epoch": epoch, "loss": loss.item(), "lr": lr,
                   "chance": math.log(2 * config.batch - 1), "top1": contrastive_accuracy(za, zb),
                   "images_per_second": config.batch / (time.perf_counter() - started)})
            progress(run.history[-1])
            save(now=bool(stop) or run.steps == total_steps)
            if stop:
                raise Interrupted(f"stopped after step {run.steps} of {total_steps}", stop[0])
    return run


def _require_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(f"the {what} became {value} at step {step}; the weights were left as they were; "
                             "try a lower lr or a higher temperature")


def _gradient_size(optimizer: Optimizer) -> float:
    """Σ max|g|, finite exactly if every gradient is: the squares of the usual norm would overflow float32."""
    return sum(float(abs(p.grad).max()) for p in optimizer.params if p.grad is not None)
