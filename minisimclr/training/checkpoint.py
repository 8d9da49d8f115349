"""Checkpoints: one file, replaced atomically, that a run resumes from bit for bit.

The file is a NumPy archive (.npz) of plain arrays, without pickle: "model/…" under torchvision's names and
in its layout, "momentum/…" and "scale/…" of the optimizer, and "meta", JSON text: the configuration, the position
(steps done) and the environment. There is no generator state to keep: each step draws its random numbers from a
fresh generator seeded with (seed, step), so seed and position *are* the random state.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import device_name
from ..processor import blas_kernels, threads
from ..storage import one_line, shown, write
from . import archive
from .archive import Header, Rule

FORMAT = 1  # number of the layout described above; another one is refused
NUMERICS = 4  # number of our arithmetic: raised by each change after which a step computes other bits than before


class CheckpointError(OSError):
    """A checkpoint that cannot be read or does not fit; the message says which file and why."""


def save(path: Path, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write arrays and meta to `path`, or leave what was there untouched (storage.py says how)."""
    text = np.frombuffer(json.dumps({"format": FORMAT, **meta}).encode(), np.uint8)
    write(path, lambda file: np.savez(file, meta=text, **arrays))


Implied = Callable[[dict[str, Any], Mapping[str, Header]], Mapping[str, Rule]]


def load(path: Path, implied: Implied | None = None) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read the arrays and the meta of a checkpoint.

    implied  is called with the meta and the headers of the arrays, and returns the rules that they must follow; an
             array without a rule is refused, and nothing is read until all of them are followed

    Raises: CheckpointError, in one line, for anything that is not one.
    """
    with explained(path), archive.opened(path) as opened:
        meta = _meta(opened)
        names = [name for name in opened.headers if name != "meta"]
        if implied is not None:
            rules = implied(meta, {name: opened.headers[name] for name in names})
            opened.require({**rules, "meta": Rule(*opened.headers["meta"])})
        return {name: opened.read(name) for name in names}, meta


def load_meta(path: Path) -> dict[str, Any]:
    """Read the meta of a checkpoint alone. Raises: CheckpointError, as `load`."""
    with explained(path), archive.opened(path) as opened:
        return _meta(opened)


def _meta(opened: archive.Archive) -> dict[str, Any]:
    text = opened.text("meta")
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("meta is no JSON") from None
    if not isinstance(meta, dict) or "format" not in meta:
        raise ValueError("meta names no format")
    if type(meta["format"]) is not int or meta["format"] != FORMAT:
        raise ValueError(f"it has format {json.dumps(meta['format'])[:20]}, this version reads {FORMAT}")
    return meta


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is read into a CheckpointError: one line, of 180 characters at most."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {shown(path)}") from None
    except Exception as error:  # the readers of a damaged file raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"checkpoint {shown(path)} cannot be used: {reason or type(error).__name__}"
        raise CheckpointError(one_line(text, most=180)) from None


def part(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays under "prefix/", without the prefix."""
    return {name.removeprefix(prefix + "/"): array for name, array in arrays.items() if name.startswith(prefix + "/")}


def environment(device: str = "cpu", precision: str = "float32", ranks: int = 1) -> dict[str, Any]:
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
        "ranks": ranks,  # processes that shared each batch: their sums were added in this many parts
    }


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
