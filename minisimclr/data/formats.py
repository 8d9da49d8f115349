"""Data sets that are arrays: NumPy files, and those that binaries.py reads.

They are known by the names of their files. All are untrusted: nothing is unpickled that is not plain data, sizes are
checked before they are believed, and what is large is mapped, not read.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..storage import one_line
from .binaries import MAX_BYTES, Arrays, Part, cifar_binary, cifar_python, idx, stl10
from .dataset import DataError, Dataset
from .left_out import FORMATS
from .names import held_out, shown
from .reading import HOME
from .splits import role

FOLDERS = {  # torchvision's names, and those of the archives
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-binary", "cifar-100-python"),
    "stl10": ("stl10_binary",),
    "mnist": ("MNIST/raw", "mnist"),
    "fashionmnist": ("FashionMNIST/raw", "fashion-mnist"),
    "kmnist": ("KMNIST/raw", "kmnist"),
}


def known_folder(source: str) -> str:
    """Return the folder of a data set that is asked for by name: "cifar10" below $MINISIMCLR_DATA, here, or ./data."""
    name = source.lower().replace("-", "").replace("_", "")
    if name not in FOLDERS or os.path.lexists(source):
        return source
    homes = [Path(home) for home in (os.environ.get(HOME, ""), ".", "data") if home]
    for home in homes:
        for folder in FOLDERS[name]:
            if (home / folder).is_dir():
                return str(home / folder)
    looked = ", ".join(str(home / folder) for home in homes for folder in FOLDERS[name])
    raise DataError(f"{source}: not found; looked for {looked}; --data-dir or ${HOME} names the folder of data sets")


def arrays_of(path: Path) -> Arrays | None:
    """Return the splits of an array data set, nothing of which is read yet; None if the path is none.

    A folder that holds nothing but one data set stands for it, as torchvision's `root` does.

    Raises: DataError if it is damaged, or if there are several.
    """
    with plainly(path):
        if path.is_file():
            suffix = path.suffix.lower()
            return _npz(path) if suffix == ".npz" else _npy(path) if suffix == ".npy" else None
        if not path.is_dir():
            return None
        names = set(os.listdir(path))
        for kind in (cifar_binary, cifar_python, stl10, idx):
            found = kind(path, names)
            if found:
                return found
    inside = _inside(path, names)
    return arrays_of(inside) if inside else None


def _inside(path: Path, names: set[str]) -> Path | None:
    """Return the one data set of a known name in a folder that holds nothing else but files of other kinds."""
    there = [folder for folders in (*FOLDERS.values(), ("raw",)) for folder in folders if (path / folder).is_dir()]
    known = [folder for folder in there if arrays_of(path / folder)]
    tops = {folder.partition("/")[0] for folder in known}
    if not known or any(name.lower().endswith(FORMATS) or (path / name).is_dir() for name in names - tops):
        return None
    if len(tops) > 1:
        raise DataError(f"{path}: several data sets: {', '.join(sorted(tops))}; name one of them")
    return path / known[0]


@contextlib.contextmanager
def plainly(path: Path) -> Iterator[None]:
    """Say in one line, with the path, what is wrong with a file of arrays."""
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f"{path}: it lacks {shown(str(error.args[0]))}, and is no data set of its kind") from None
    except (EOFError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: cut off, or damaged ({one_line(str(error))})") from None
    except (ValueError, TypeError, IndexError, AttributeError) as error:  # of untrusted arrays and dictionaries
        text = one_line(str(error))
        if "pickle" in text or "Object arrays" in text or "Python objects" in text:
            text = "it is no NumPy file of numbers; Python objects are not read"
        raise DataError(f"{path}: {'cut off: it holds less than it declares' if 'mmap' in text else text}") from None


def load_arrays(
    path: Path, arrays: Arrays, report: Callable[[str], None], split: str, size: int, limit: int | None
) -> Dataset:
    """Load a split of an array data set, whose splits `arrays_of` has found.

    Raises: DataError for a split that is not there, and for arrays that are no images; OSError if reading fails.
    """
    parts, class_names = arrays
    name = next((name for name in parts if name == split or role(name) == role(split) != ""), "")
    if not name:
        raise DataError(f"{path}: no split {split!r}; there are: {', '.join(parts)}; --split and --test-split choose")
    with plainly(path):
        images, labels = _images(parts[name].images()), parts[name].labels()
    if parts[name].remark:
        report(f"{path}: {parts[name].remark}")
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{path}: {len(images):,} images, but {len(labels):,} labels in split {name!r}")
    count = len(images)
    chosen = [i * count // limit for i in range(limit)] if limit is not None and limit < count else None
    if chosen is not None:
        images, labels = images[chosen], labels if labels is None else labels[chosen]
    if labels is None:
        return Dataset(_squares(images, size), np.zeros(len(images), np.int64), ("unlabelled",))
    with plainly(path):
        numbers, class_names = _numbered(labels, class_names, parts, path)
    return Dataset(_squares(images, size), numbers, class_names)


def _numbered(
    labels: NDArray[Any], class_names: tuple[str, ...], parts: dict[str, Part], path: Path
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels as indices of classes, the same in all splits."""
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1 or labels.dtype.kind not in "iub":
        raise DataError(f"{path}: labels must be one whole number for each image, not {labels.dtype} {labels.shape}")
    numbers = labels[:, 0].astype(np.int64)
    if not class_names:
        every = [numbers, *(np.asarray(part.labels()).ravel() for part in parts.values() if part.labels() is not None)]
        class_names = tuple(str(number) for number in range(1 + max(int(values.max(initial=0)) for values in every)))
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= len(class_names) or len(class_names) > 100_000:
        raise DataError(f"{path}: labels must lie in 0…{len(class_names) - 1}")
    return numbers, class_names


def _images(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images (N,H,W,3); grey ones become RGB, and channels in front go behind."""
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 3 and images.shape[2] in (3, 4):
        raise ValueError(f"{images.shape} may be one image, or {len(images)} grey ones that are {images.shape[2]} wide")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must have the shape (N,H,W), (N,H,W,1) or (N,H,W,3), not {images.shape}")
    return images


def _squares(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the central square of each image, as `decode_image` does: (N,size,size,3)."""
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
    height, width = images.shape[1:3]
    left, top, side = max(0, width - height) / 2, max(0, height - width) / 2, min(width, height)
    box = (left, top, left + side, top + side)
    result = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        rgb = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (height, width, 3))))
        result[i] = np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return result


# ── NumPy ─────────────────────────────────────────────────────────────────────────────────────────


def _npy(path: Path) -> Arrays:
    return {"train": Part(lambda: np.load(path, mmap_mode="r", allow_pickle=False), lambda: None)}, ()


def _npz(path: Path) -> Arrays:
    """images and labels, MedMNIST's train_images …, or Keras's x_train …."""
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    pairs = {"train": [("images", "labels"), ("data", "labels"), ("x", "y"), ("X", "y"), ("X", "Y")]}
    for split in ("train", "val", "test"):
        pairs.setdefault(split, []).extend([(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")])
    parts = {}
    for split, keys in pairs.items():
        for images, labels in keys:
            if images in names:
                known = labels if labels in names else None
                parts[split] = Part(_member(path, images), _member(path, known) if known else lambda: None)
    if not parts:
        raise DataError(
            f"{path}: an .npz file of images needs arrays called images and labels, or train_images …, x_train …; "
            f"it has {', '.join(sorted(names)[:6])}"
        )
    return (_with_test(parts["train"]) if list(parts) == ["train"] else parts), ()


def _member(path: Path, name: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        with zipfile.ZipFile(path) as archive:
            declared = archive.getinfo(f"{name}.npy").file_size
        if declared > MAX_BYTES:
            raise ValueError(f"{name} unpacks to {declared >> 30} GiB, more than {MAX_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])

    return read


def _with_test(train: Part) -> dict[str, Part]:
    """Set a tenth of the images apart, by their numbers, where there is no other split."""
    labels = train.labels()
    if labels is None:
        return {"train": train}
    held = np.array([held_out((str(i),)) for i in range(len(labels))], bool)

    def part(mask: NDArray[np.bool_]) -> Part:
        return Part(lambda: train.images()[mask], lambda: labels[mask])

    return {"train": part(~held), "test": part(held)}
