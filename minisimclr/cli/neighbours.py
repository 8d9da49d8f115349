"""`minisimclr neighbours`: find the images that look most like a picture."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import DataError, Reading, taken
from ..evaluation.embed import Matrix
from ..protocols.embeddings import Embeddings, read_embeddings
from ..storage import one_line, open_regular, shown, write
from ..training.folders import require_output
from ..training.run import Run, load_run
from .common import add_device, path_name, some_text
from .console import saying, show
from .sources import all_splits

HELP = "find the images that look most like a picture"
SAME = 0.999  # least cosine of an image's h, computed again, with that of the file: rounding takes 1e-5 of it


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --in, --k, --sheet, --data, --split, --device, the run and the pictures."""
    add_device(parser)
    parser.add_argument("run", type=path_name, metavar="RUN", help="folder of a run")
    parser.add_argument("queries", type=path_name, nargs="+", metavar="QUERY.png", help="picture to look for")
    parser.add_argument(
        "--in",
        dest="among",
        type=path_name,
        required=True,
        metavar="FILE.npz",
        help="file that `minisimclr embed RUN` wrote",
    )
    parser.add_argument("--k", type=int, default=8, metavar="N", help="number of neighbours (default: 8)")
    parser.add_argument("--sheet", type=path_name, metavar="SHEET.png", help="picture of the neighbours to write")
    parser.add_argument(
        "--data", type=some_text, default=None, help="for --sheet: where the images are (default: as embedded)"
    )
    parser.add_argument(
        "--split", type=some_text, default=None, help="for --sheet: split of the images (default: as embedded)"
    )


def run_command(options: argparse.Namespace) -> None:
    """Print the neighbours of each picture, and draw them if a sheet is wanted.

    Raises: CheckpointError for a run that cannot be loaded, DataError for a file or a picture that cannot be used.
    """
    if options.sheet is not None:
        require_output(options.sheet, options.among, *options.queries)  # before the work, not after it
    run = load_run(options.run, options.device)
    among = read_embeddings(options.among)
    pictures = np.stack([_picture(path, run.config.size) for path in options.queries])  # uint8 (Q,size,size,3)
    try:
        indices, similarities = run.nearest(pictures, among.rows, options.k)  # (Q,k) each
    except ValueError as error:
        raise DataError(f"{shown(options.among)}: {error}") from None
    for path, row, similar in zip(options.queries, indices, similarities):
        show(shown(path), *(f"{s:7.4f}  {among.name(i)}" for i, s in zip(row, similar)))
    if options.sheet is not None:
        found = _images(options, run, among, indices)
        from ..report.sheet import sheet  # Pillow's fonts are loaded by who draws

        write(options.sheet, sheet(pictures, found, similarities))
        show(f"{options.sheet}: each picture, and right of it its neighbours with their similarity")


def _picture(path: Path, size: int) -> NDArray[np.uint8]:
    """Read a picture as `load_dataset` reads one. Raises: DataError if it is none; OSError if it cannot be read."""
    from ..data.archive import MAX_FILE_BYTES
    from ..data.decode import decode_image

    try:
        descriptor = open_regular(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(f"{shown(path)}: {error}") from None
    with os.fdopen(descriptor, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd files; what matters is an error
        try:
            return decode_image(file, size)
        except Exception as error:  # a decoder may raise anything for hostile bytes
            raise DataError(f"{shown(path)}: {one_line(str(error)) or type(error).__name__}") from None


def _images(options: argparse.Namespace, run: Run, among: Embeddings, indices: Matrix) -> NDArray[np.uint8]:
    """Load the images that were found, (Q,k,size,size,3), and see that they are those that were embedded.

    Raises: DataError if they are not.
    """
    source = options.data or among.data or run.config.data
    split = options.split or among.split
    with saying(f"loading {source}"):
        reading = Reading.from_text("" if options.data else run.config.reading)
        splits = all_splits(run, source, reading, split or None)
    which = f"of the split {one_line(split)!r}" if split else "of all splits"
    wrong = f"{one_line(source)}: the images {which} are not those of {shown(options.among)}"
    if sum(map(len, splits.values())) != len(among.rows):
        raise DataError(f"{wrong}; say which with --data and --split")
    places = [(taken(data), slice(k, k + 1)) for data in splits.values() for k in range(len(data))]  # (N,)
    found = np.concatenate([images[row] for images, row in map(places.__getitem__, indices.ravel())])  # (Q·k,S,S,3)
    again, before = run.embed(found)[0], among.rows[indices.ravel()]
    length = np.linalg.norm(again, axis=1) * np.linalg.norm(before, axis=1)
    if not ((again * before).sum(axis=1) >= SAME * length).all():
        raise DataError(f"{wrong}, or another run embedded them")
    return found.reshape(*indices.shape, *found.shape[1:])
