"""`minisimclr duplicates`: name the pairs of images that are almost the same."""

from __future__ import annotations

import argparse

from ..evaluation.duplicates import duplicates
from ..protocols.embeddings import read_embeddings
from .common import path_name
from .console import note, show

HELP = "name the pairs of images that are almost the same"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --above, --most, --of, and the file of embeddings."""
    parser.add_argument("file", type=path_name, metavar="FILE.npz", help="file that `minisimclr embed` wrote")
    parser.add_argument(
        "--above", type=float, default=0.99, metavar="COSINE", help="least similarity of a pair, −1…1 (default: 0.99)"
    )
    parser.add_argument(
        "--most", type=int, default=1000, metavar="N", help="number of pairs that are listed at most (default: 1000)"
    )
    parser.add_argument("--of", choices=("h", "z"), default="h", help="representation that is compared (default: h)")


def run_command(options: argparse.Namespace) -> None:
    """List the pairs, the most similar first.

    Raises: DataError for a file that cannot be used; ValueError for a number out of its range.
    """
    embeddings = read_embeddings(options.file, options.of)
    found = duplicates(embeddings.rows, options.above, options.most)
    for (i, j), similarity in zip(found.pairs, found.similarities):
        show(f"{similarity:.4f}  {embeddings.name(i)}  |  {embeddings.name(j)}")
    if found.found > len(found.pairs):
        note(f"{found.found - len(found.pairs)} more pairs are as similar; see --most and --above")
    if not found.found:
        note(f"none of the {len(embeddings.rows)} images is that similar to another; see --above")
