"""Checkpoints: one file, replaced atomically, that a run resumes from bit for bit.

The file is a NumPy archive (.npz) of plain arrays, without pickle: "model/…" under torchvision's names and
in its layout, "momentum/…" and "scale/…" of the optimizer, and "meta", JSON text: the configuration, the position
(steps done) and the environment. There is no generator state to keep: each step draws its random numbers from a
fresh generator seeded with (seed, step), so seed and position *are* the random state.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import device_name
from ..processor import blas_kernels, threads

FORMAT = 1  # number of the layout described above; another one is refused
LARGEST = 8 << 30  # bytes that a checkpoint may unpack to; more is refused unread, because the file is untrusted
NUMERICS = 1  # number of our arithmetic: raised by each change after which a step computes other bits than before


class CheckpointError(OSError):
    """A checkpoint that cannot be read or does not fit; the message says which file and why."""


def save(path: Path, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write arrays and meta to `path`, or leave what was there untouched.

    A temporary file in the same folder is written first, then sent to the disk (fsync), then renamed. So one always
    finds the whole old file or the whole new one, even after a power cut or `kill -9`.
    """
    text = np.frombuffer(json.dumps({"format": FORMAT, **meta}).encode(), np.uint8)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, meta=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (not possible, and not needed, on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read the arrays and the meta of a checkpoint.

    Raises: CheckpointError, in one line, for anything that is not one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST:
            raise CheckpointError(f"checkpoint {path} would unpack to {size / 2**30:.1f} GiB; refused")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {meta['format']}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except CheckpointError:
        raise
    except Exception as error:  # the readers of a damaged file raise almost anything
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}") from None
    return arrays, meta


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Turn what goes wrong when the contents of a readable checkpoint are taken over into a CheckpointError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} does not fit: {error}") from None


def part(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays under "prefix/", without the prefix."""
    return {name.removeprefix(prefix + "/"): array for name, array in arrays.items() if name.startswith(prefix + "/")}


def environment(device: str = "cpu", precision: str = "float32") -> dict[str, Any]:
    """Return all that must be the same, besides the settings, for a resumed run to continue bit for bit."""
    return {
        "numerics": NUMERICS,
        "device": device_name(device),
        "precision": precision,
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas_kernels(),
        "threads": threads(),
    }


# The environment of a checkpoint that was written before these entries existed.
FIRST_ENVIRONMENT = {"numerics": 1, "device": "cpu", "precision": "float32"}


def _processor() -> str:
    """Return the name of the processor: BLAS chooses its kernels by it, so it belongs to the environment."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
