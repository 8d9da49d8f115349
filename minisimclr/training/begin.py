"""The beginning of a run: its network, loss and optimizer, new or from a checkpoint.

All that can be refused is refused here, before anything is written. The loop in train.py then has a network that can
be trained, and need not know where it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..backend import Array
from ..collective import ALONE, Ranks
from ..engine.autograd import Tensor
from ..interop import load_into
from ..simclr import SimCLR
from ..values import function, instance
from . import distributed, precision
from .config import Config
from .large_batch import in_chunks, loss_by_chunks, require_room
from .optim import Optimizer
from .run import Run, fingerprint, restore, take_folder

Loss = Callable[[Array, Array, float], tuple[Tensor, Array, Array]]  # views a, views b, τ -> loss, za, zb


def begin(
    config: Config,
    images: Any,
    folder: str | Path | None,
    resume: bool,
    model: SimCLR | None = None,
    views: object = None,
    ranks: Ranks | None = None,
    workers: int = 0,
) -> tuple[Run, Optimizer, Loss]:
    """Build the model, its loss and its optimizer, take the folder, and go on from its checkpoint if it is resumed.

    model, views  those that the caller brought, or None; the run remembers that it needs them
    ranks         the processes that share each batch: rank 0 keeps the run, and gives the others its weights

    Raises: RuntimeError for a precision that the device does not have, ValueError for a folder that does not fit,
            CheckpointError for a checkpoint that cannot be used; nothing is written by then.
    """
    from .workers import leave_if_only_imported  # here, for the time that multiprocessing takes to import

    leave_if_only_imported()
    require_room(config, workers, views, ranks)
    ranks = ranks or ALONE
    own: dict[str, Any] = {"model": model and instance("model", model, SimCLR), "views": None}
    if views is not None:
        own["views"] = function("views", views)
    model, optimizer = precision.build(config, model, ranks)
    run = Run(config, model, images=fingerprint(images), ranks=ranks.size, news=getattr(images, "news", dict))
    run.own = tuple(name for name, thing in own.items() if thing is not None)
    distributed.require_same(ranks, run)
    if ranks.rank == 0:
        if run.config.init and not resume:
            load_into(run.model.encoder, run.config.init)
        run.folder, run.lock = take_folder(folder, resume)
    try:
        if resume and ranks.rank == 0:
            restore(run, optimizer.load_state_dict)
        distributed.take_over(ranks, run, optimizer)
    except BaseException:
        run.release()
        raise
    # In chunks the loss is the same, but a graph never holds more than a chunk of the batch: chapter 14.
    loss_of = partial(loss_by_chunks, model, chunk=config.chunk) if in_chunks(config) else model.loss
    return run, optimizer, loss_of
