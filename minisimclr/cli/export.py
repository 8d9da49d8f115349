"""`minisimclr export`: write the encoder of a run to a file that PyTorch reads, too."""

from __future__ import annotations

import argparse

from ..interop import save_torchvision, torch_lines
from ..resnet import ResNet
from ..storage import shown
from ..training.folders import require_output
from ..training.run import load_run
from ..values import instance
from .common import path_name
from .console import show

HELP = "write the encoder of a run to a file that PyTorch reads, too"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, the run, and the file."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="number format of the file; float16 is half as large, and rounds weights to 11 bits (default: float32)",
    )
    parser.add_argument("run", type=path_name, metavar="RUN", help="folder of a run")
    parser.add_argument("file", type=path_name, metavar="FILE.safetensors", help="file to write")


def run_command(options: argparse.Namespace) -> None:
    """Write the encoder under torchvision's names, and show the lines of PyTorch that load it.

    Raises: CheckpointError for a run that cannot be loaded, OSError for a file that cannot be written, ValueError for
            a name that is another kind of file's.
    """
    if options.file.suffix != ".safetensors":
        raise ValueError(f"{shown(options.file)}: the ending must be .safetensors, by which PyTorch's users know it")
    require_output(options.file)
    encoder = instance("the encoder of the run", load_run(options.run).model.encoder, ResNet)
    save_torchvision(encoder, options.file, dtype=options.dtype)
    show(f"{options.file}: {encoder.features} features, {options.file.stat().st_size / 1e6:.2f} MB; in PyTorch:\n")
    show(torch_lines(encoder, options.file))
