"""`minisimclr embed`: write h and z of every image to an .npz file."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ..data import load_dataset
from ..evaluation.embed import embed
from ..training.run import load_run
from .common import add_run

HELP = "write h and z of every image to an .npz file"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="test", help="which images (default: test)")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE.npz", help="where to write")
    add_run(parser)


def run_command(options: argparse.Namespace) -> None:
    run = load_run(options.run, options.device)
    data = load_dataset(options.data or run.config.data, options.split, size=run.config.size)
    h, z = embed(run.model, data.images)
    with open(options.to, "wb") as file:
        np.savez(file, h=h, z=z, labels=data.labels, class_names=np.array(data.class_names))
    print(f"{options.to}: h {h.shape}, z {z.shape}, labels, class_names")
