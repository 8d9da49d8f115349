"""`minisimclr data`: show what is read from a folder or an archive, and what is left out."""

from __future__ import annotations

import argparse
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data import Reading, load_dataset, splits_of
from ..data.find import Found, found
from ..data.left_out import SHEET
from ..processor import parallel
from ..storage import write
from ..training.folders import require_output
from .common import path_name, some_text
from .console import saying, show
from .sources import add_reading, chosen_reading

HELP = "show what is read from a folder or an archive, and what is left out"
SHOWN = 64  # images on the contact sheet
SIDE = 64  # of an image on it, pixels
CLASSES = 20  # of which the images are counted one by one; of more, the least and the most


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the source, --sheet, and the options that settle how it is read."""
    parser.add_argument("path", type=some_text, metavar="PATH", help="folder, zip file, list of files, or data set")
    parser.add_argument(
        "--sheet", type=path_name, default=Path(SHEET), metavar="FILE.png", help=f"contact sheet (default: {SHEET})"
    )
    add_reading(parser)


def run_command(options: argparse.Namespace) -> None:
    """Print the counts, and draw a contact sheet.

    Raises: DataError for data that cannot be used; OSError if reading or writing fails.
    """
    require_output(options.sheet, *(() if options.sheet.name == SHEET else (options.path,)))
    reading = chosen_reading(options)
    lines, images = _of_arrays(options.path, reading) if _is_array(options.path) else _of_files(options.path, reading)
    from ..report.sheet import grid  # Pillow's fonts are loaded by who draws

    write(options.sheet, grid(images))
    show(*lines, f"{options.sheet}: {len(images)} of the images")


def _is_array(source: str) -> bool:
    from ..data.formats import arrays_of, known_folder

    return source == "doodles" or arrays_of(Path(known_folder(source))) is not None


def _of_arrays(source: str, reading: Reading) -> tuple[list[str], NDArray[np.uint8]]:
    """Describe a data set that is arrays, or drawn."""
    lines, some = [source], []
    for name in splits_of(source, reading):
        data = load_dataset(source, name, size=SIDE, reading=reading)
        lines.append(_split_line(name, data.labels, data.class_names))
        some.append(data.images[:: max(1, len(data) // (SHOWN // 2))])
    return lines, np.concatenate(some)[:SHOWN]


def _of_files(source: str, reading: Reading) -> tuple[list[str], NDArray[np.uint8]]:
    """Describe files: every one is read and decoded."""
    from ..data.decode import decode_image, header

    everything = found(Path(source), reading, keep_names=True)
    entries, count = everything.entries, len(everything.entries)
    of_split = {k: name for name, images in everything.layout.splits.items() for k in images}
    chosen = set(list(of_split)[:: max(1, len(of_split) // SHOWN)][:SHOWN])
    sizes: dict[int, tuple[int, int]] = {}
    digests: dict[int, bytes] = {}
    damaged: dict[int, str] = {}
    drawn: dict[int, NDArray[np.uint8]] = {}

    def look(k: int) -> None:
        try:
            data = entries[k].read()
            digests[k] = hashlib.blake2b(data, digest_size=16).digest()
            sizes[k] = header(data)
            image = decode_image(io.BytesIO(data), SIDE)
            if k in chosen:
                drawn[k] = image
        except Exception as error:  # a decoder may raise anything for hostile bytes
            damaged[k] = " ".join(str(error).split()) or type(error).__name__

    with saying(f"reading {count:,} images of {source}"):
        parallel(look, of_split)
    lines = _found_lines(source, everything) + _sizes_lines(sizes)
    lines += _duplicate_lines(digests, of_split, [entry.name for entry in entries])
    if damaged:
        lines.append(f"{len(damaged):,} cannot be read")
        lines += [f"  {entries[k].name}: {why}" for k, why in sorted(damaged.items())]
    for cause, names in (everything.left.names or {}).items():
        lines.append(f"{len(names):,} left out: {cause}")
        lines += [f"  {name}" for name in names]
    return lines, np.stack([drawn[k] for k in sorted(drawn)] or [np.full((SIDE, SIDE, 3), 255, np.uint8)])


def _found_lines(source: str, everything: Found) -> list[str]:
    """Return a line for each split, and one for each remark on how the names were read."""
    notes: list[str] = []
    everything.say(notes.append)
    lines = [f"{source}: {sum(map(len, everything.layout.splits.values())):,} images"]
    for name, images in everything.layout.splits.items():
        if images:
            split = everything.listing(name)
            lines.append(_split_line(name, split.labels, split.class_names))
        else:
            lines.append(f"  {name:<12} no images")
    return lines + [f"  note: {note.removeprefix(f'{source}: ')}" for note in notes]


def _split_line(name: str, labels: NDArray[np.int64], class_names: tuple[str, ...]) -> str:
    """Return a line with the images of a split and its classes."""
    if class_names == ("unlabelled",):
        return f"  {name:<12} {len(labels):>9,}  no labels"
    counts = np.bincount(labels, minlength=len(class_names))
    if len(class_names) <= CLASSES:
        return f"  {name:<12} {len(labels):>9,}  " + ", ".join(f"{c} {n:,}" for c, n in zip(class_names, counts))
    return (
        f"  {name:<12} {len(labels):>9,}  {len(class_names):,} classes of {counts.min():,} to {counts.max():,} images"
    )


def _sizes_lines(sizes: dict[int, tuple[int, int]]) -> list[str]:
    """Return a line with the sizes of the images."""
    if not sizes:
        return []
    common = Counter(sizes.values()).most_common(3)
    if len(common) == 1:
        return [f"  all are {common[0][0][0]}×{common[0][0][1]} pixels"]
    shorter = sorted(min(size) for size in sizes.values())
    (width, height), times = common[0]
    return [
        f"  shorter side {shorter[0]:,} to {shorter[-1]:,} pixels, half of them up to {shorter[len(shorter) // 2]:,}; "
        f"most often {width}×{height} ({times:,})"
    ]


def _duplicate_lines(digests: dict[int, bytes], of_split: dict[int, str], names: list[str]) -> list[str]:
    """Return the files of different splits that are equal, byte by byte."""
    same: dict[bytes, list[int]] = {}
    for k in sorted(digests):
        same.setdefault(digests[k], []).append(k)
    across = [group for group in same.values() if len({of_split[k] for k in group}) > 1]
    if not across:
        return ["  no file is in two splits"] if len(set(of_split.values())) > 1 else []
    return [f"{len(across):,} {'file is' if len(across) == 1 else 'files are'} in more than one split"] + [
        "  " + " = ".join(names[k] for k in group) for group in across
    ]
