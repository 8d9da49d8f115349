"""`minisimclr demo`: draw images, pre-train on them, and show what was learned."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import numpy as np

from .. import backend, ops
from ..checks.gradcheck import gradcheck
from ..data import load_dataset
from ..nn import method_of
from ..protocols.monitor import Monitor
from ..training.config import Config
from ..training.folders import require_free
from ..training.train import pretrain
from .common import add_device, free_folder, path_name
from .console import saying, show, training
from .evaluate import evaluated

HELP = "draw a data set, pre-train on it, evaluate, and show what was learned"

# The run of the demo: 12 epochs of 5,000 doodles take about two minutes and a half on two cores.
DEMO = Config(data="doodles", batch=128, epochs=12, lr=0.2, temperature=0.2, min_area=0.3)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the few settings that may differ from the demo's."""
    parser.add_argument("--out", type=path_name, metavar="FOLDER", help="folder of the run (default: runs/demo)")
    parser.add_argument(
        "--seed", type=int, default=DEMO.seed, metavar="N", help=f"seed of all random numbers (default: {DEMO.seed})"
    )
    parser.add_argument(
        "--epochs", type=int, default=DEMO.epochs, metavar="N", help=f"passes over the images (default: {DEMO.epochs})"
    )
    parser.add_argument(
        "--method",
        default=DEMO.method,
        metavar="NAMES",
        help=f"form of each operation, as for pretrain; plain runs the code that is read first, in a few times "
        f"the time (default: {DEMO.method})",
    )
    add_device(parser, "device that computes")


def check_pooling() -> None:
    """Check the gradient of max-pooling in its plain form, the one plain form that the demo's small network leaves out.

    So whoever steps through the demo meets every operation of the first reading list.
    """
    pool = functools.partial(ops.max_pool2d, kernel=3, stride=2, padding=1, method="plain")  # as in a ResNet's stem
    with saying("checking max-pooling, which this network leaves out"):
        gradcheck(pool, np.random.default_rng(0).standard_normal((5, 5, 2, 1)))  # (H,W,N,C)


def run_command(options: argparse.Namespace) -> None:
    """Run the demo: its table is printed, and kept with the pictures in the folder of the run.

    Raises: what `pretrain` raises.
    """
    given = {name: getattr(options, name) for name in ("seed", "epochs", "method", "device")}
    config = dataclasses.replace(DEMO, **given)
    backend.require(config.device)
    folder = options.out or free_folder(Path("runs/demo"))
    require_free(folder)  # before the work, not after it
    started = time.monotonic()
    with saying("drawing 7,000 doodles"):
        train = load_dataset(config.data, "train", size=config.size)
        tests = {split: load_dataset(config.data, split, size=config.size) for split in ("test", "unseen")}
    if method_of("pool", config.method) == "plain":
        check_pooling()
    # Labels are looked at by the monitor alone, which changes nothing: four times, for the curves of report.html.
    monitor = Monitor(config, train.images, train.labels, every=max(1, config.epochs // 4))
    with training(config, start=0) as progress:
        run = pretrain(config, train.images, folder=folder, progress=progress, monitor=monitor)
    evaluated(run, train, {"test": tests["test"], "unseen style": tests["unseen"]}, k=20, temperature=0.1)
    show(f"took {time.monotonic() - started:.0f} s; see {folder / 'report.html'}")
