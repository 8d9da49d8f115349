"""`minisimclr pretrain`: pre-train an encoder on images without labels."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from .. import backend
from ..data import load_dataset
from ..training.batches import resident
from ..training.config import Config
from ..training.run import environment_changes, load_run
from ..training.train import pretrain
from .common import free_folder
from .console import saying, training

HELP = "pre-train an encoder on images without labels"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/NAME-OF-THE-DATA)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, with its configuration, from its last checkpoint",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that make the views of coming steps, for many cores and large images; the "
        "views are the same with any number (default: 0: the training process makes them)",
    )
    for item in dataclasses.fields(Config):
        _add_setting(parser, item)


def run_command(options: argparse.Namespace) -> None:
    given = {
        item.name: getattr(options, item.name) for item in dataclasses.fields(Config) if hasattr(options, item.name)
    }
    start = 0
    if options.resume:
        if options.out is None:
            raise ValueError("--resume needs the folder of the run: --out FOLDER")
        stored = load_run(options.out)
        config, start = dataclasses.replace(stored.config, **given), stored.steps
        backend.require(config.device)
        for change in environment_changes(options.out, config.device, config.precision):
            print(f"minisimclr: note: {change}; the run goes on, but not bit for bit", file=sys.stderr)
    else:
        config = Config(**given)
        backend.require(config.device)
    folder = options.out or free_folder(Path("runs") / Path(config.data).stem)
    with saying(f"loading {config.data}"):
        images = load_dataset(config.data, "train", size=config.size).images
    if config.device != "cpu":
        sent = "once, before the first step" if resident(images, config.device) else "batch by batch: they do not fit"
        print(
            f"minisimclr: note: {backend.device_name(config.device)}; {images.nbytes / 2**20:,.0f} MiB of images "
            f"are sent there {sent}",
            file=sys.stderr,
        )
    with training(config, start) as progress:
        run = pretrain(config, images, folder=folder, resume=options.resume, workers=options.workers, progress=progress)
    print(f"trained {run.steps:,} steps; next: minisimclr evaluate {folder}")


def _add_setting(parser: argparse.ArgumentParser, item: dataclasses.Field[Any]) -> None:
    """An option for one field of Config. Left out, it is absent from the namespace: Config knows the default."""
    flag, help = "--" + item.name.replace("_", "-"), item.metadata["help"].replace("%", "%%")
    if isinstance(item.default, bool):
        parser.add_argument(
            flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{help} (default: {'yes' if item.default else 'no'})",
        )
        return
    choices = item.metadata["choices"] or None
    metavar = None if choices else {int: "N", float: "X", str: "PATH"}[type(item.default)]
    parser.add_argument(
        flag,
        type=type(item.default),
        default=argparse.SUPPRESS,
        choices=choices,
        metavar=metavar,
        help=f"{help} (default: {item.default})",
    )
