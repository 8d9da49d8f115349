"""Pre-training: images in, a trained SimCLR out. This is Algorithm 1 of the paper with its loop around it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError, load_dataset
from ..ntxent.exact import contrastive_accuracy
from ..processor import blas_at_one_thread
from .batches import views_ahead
from .config import Config, build_model, build_optimizer
from .optim import warmup_cosine
from .precision import LossScale, use_tf32
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
from .session import READ_EVERY, Meter

__all__ = ["NonFiniteError", "pretrain"]


def pretrain(
    config: Config,
    images: np.ndarray[Any, Any] | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    workers: int = 0,
    progress: Callable[[Metrics], None] = lambda metrics: None,
) -> Run:
    """Train SimCLR (Algorithm 1 of the paper) and return the run.

    images    uint8 (N,H,W,3); by default the training split of config.data
    folder    where to keep config.json, metrics.jsonl and checkpoint.npz; None: nowhere
    resume    go on from the folder's checkpoint, with the same configuration
    workers   processes that make the views of coming steps; the views are the same with any number (views.py)
    progress  is called with the metrics of every step

    Raises ValueError for data or a folder that does not fit, NonFiniteError, Interrupted (SIGINT, SIGTERM).
    """
    images = load_dataset(config.data, "train", size=config.size).images if images is None else images
    steps_per_epoch = len(images) // config.batch
    total_steps = config.epochs * steps_per_epoch
    if not total_steps:
        raise DataError(f"{len(images)} images are fewer than one batch of {config.batch}; use a smaller --batch")
    peak = config.lr * config.batch / 256  # the paper's linear scaling, §2.1
    use_tf32(config.precision == "tf32", config.device)
    model = build_model(config).to(config.device)
    optimizer = build_optimizer(config, model)
    scale = LossScale(optimizer, dynamic=config.precision == "float16")
    run = Run(config, model, folder=claim(folder, resume), images=fingerprint(images))
    if resume:
        restore(run, optimizer, scale)
    meter = Meter(READ_EVERY[config.device])
    with (
        blas_at_one_thread(),
        scale.quiet(),
        stop_signals() as stop,
        metrics_file(run) as write,
        keeper(run, optimizer, scale) as save,
        views_ahead(config, images, range(run.steps, total_steps), workers) as views,
    ):
        for step in range(run.steps, total_steps):
            lr = warmup_cosine(step, total_steps, round(config.warmup * total_steps), peak)
            meter.begin(
                step=step,
                steps=total_steps,
                epoch=step // steps_per_epoch,
                lr=lr,
                chance=math.log(2 * config.batch - 1),
            )
            a, b = views(step)  # (N,size,size,3) each
            loss, za, zb = model.loss(a, b, config.temperature)
            meter.note(loss=loss.data)
            loss.backward(scale.value)
            meter.note(gradient=scale.unscale(), top1=contrastive_accuracy(za, zb))
            reading = meter.full or bool(stop) or step + 1 == total_steps
            lines = meter.read(config.batch) if reading else []  # refuses what is not finite: no update then
            scale.step(lr)
            optimizer.zero_grad()
            run.steps = step + 1
            for line in lines:
                write(line)
                progress(line)
            if reading:  # only what was read and found finite is saved
                save(now=bool(stop) or run.steps == total_steps)
                if stop:
                    raise Interrupted(f"stopped after step {run.steps} of {total_steps}", stop[0])
    return run
