"""Folders of runs: which are ours, which are free, and which hold files of somebody else."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from ..storage import open_regular, require_replaceable, shown
from .config import Config

# The files that a run writes into its folder, by the commands that write them.
PICTURES = ("report.html", "views.png", "neighbours.png", "similarity.png")
FINETUNED = ("finetune.json", "finetune.png")
NAMES = (
    "config.json",
    "metrics.jsonl",
    "checkpoint.npz",
    "table.txt",
    "confusion.txt",
    "results.json",
    *FINETUNED,
    *PICTURES,
)
LARGEST = 1 << 16  # size of config.json, bytes; ours have 500


def run_id(config: Config) -> str:
    """Return the entry "run" of config.json: it says that the folder is a run's.

    It follows from the settings, so that the same run leaves the same files.
    """
    text = json.dumps(config.as_dict(), sort_keys=True)
    return f"minisimclr {hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _settings(folder: Path) -> dict[str, object] | None:
    """Return what config.json holds if that is the settings of a run, else None."""
    try:
        with os.fdopen(open_regular(folder / "config.json", LARGEST), "rb") as file:
            settings = json.loads(file.read(LARGEST + 1).decode())
        if not isinstance(settings, dict) or not settings:
            return None
        Config.from_dict(settings)
        return settings
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def is_ours(folder: Path) -> bool:
    """Return True if the folder's config.json carries a run's entry, also if there is no checkpoint yet."""
    settings = _settings(folder)
    return settings is not None and re.fullmatch("minisimclr [0-9a-f]{32}", str(settings.get("run"))) is not None


def require_output(path: Path, *sources: Path | str) -> None:
    """Refuse an output that would replace a file of a run, or what the command reads: neither could be had again.

    sources  files and folders that are read; a name that does not exist, such as "doodles", is no file. In a folder of
             images, a .npz or .parquet is no image, and may be replaced

    Raises: ValueError; OSError for a name that is a link, a pipe or a folder, or that is in no folder.
    """
    require_replaceable(path)
    try:
        os.stat(os.path.join(path.parent, ""))
    except OSError as error:
        error.filename = str(path)  # as if it had been opened
        raise
    if path.name in NAMES and (is_ours(path.parent) or os.path.lexists(path.parent / "checkpoint.npz")):
        raise ValueError(f"{shown(path)} is a file of a run, and is not replaced; choose another name")
    there = path.resolve()
    read = {there} if path.suffix in (".npz", ".parquet") else {there, *there.parents}
    for source in map(Path, sources):
        if path.exists() and source.exists() and source.resolve() in read:
            raise ValueError(f"{shown(path)} is among what is read, and is not replaced; choose another name")


def require_free(folder: Path) -> None:
    """Refuse a folder in which no run can be begun: one that holds a run, or files of somebody else of these names.

    Raises: ValueError; OSError for a name that is a link, a pipe or a folder, or if the folder cannot be read.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)} is a file; choose another folder with --out")
    there = [name for name in NAMES if os.path.lexists(folder / name)]
    if "checkpoint.npz" in there:
        raise ValueError(
            f"{shown(folder)} already holds a run; go on with --resume, or choose another folder with --out"
        )
    if there and not is_ours(folder):
        raise ValueError(f"{shown(folder)} holds a {there[0]} that is not a run's; choose another folder with --out")
    _require_replaceable(folder)


def require_resumable(folder: Path) -> None:
    """Refuse to go on in a folder whose config.json is not that of a run; without the file, the checkpoint is enough.

    Raises: ValueError; OSError for a name that is a link, a pipe or a folder.
    """
    _require_replaceable(folder)
    if os.path.lexists(folder / "config.json") and _settings(folder) is None:
        raise ValueError(f"{shown(folder / 'config.json')} is not that of a run; move it away to go on")


def _require_replaceable(folder: Path) -> None:
    for name in NAMES:
        require_replaceable(folder / name)
