"""The checkpoint of a run, compared with the configuration that it names.

A checkpoint is untrusted, and memory is taken only for what fits. Its text is checked for type and range; then the
network of its configuration is built, once it is known to be no larger than the file, and says which arrays there must
be, and of which shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..module import Module
from ..values import drawing_zeros
from . import checkpoint
from .archive import Header, Rule
from .config import WEIGHTS, Config, build_model

ENTRIES = {  # of the environment, by type; other entries may come with later versions, and must be short
    "numerics": int,
    "threads": int,
    "ranks": int,
    **dict.fromkeys(("device", "precision", "machine", "processor", "python", "numpy", "blas"), str),
}
FIRST_ENVIRONMENT = {"numerics": 1, "device": "cpu", "precision": "float32", "ranks": 1}  # before the entry existed
SMALL = 4_000_000  # number of weights that may be built in any case, so that an entry can be named: 16 MB
MOST_EXTENSIONS = 1000  # number of times that a run was made longer
LONGEST = 300  # length of a text in the environment; names of processors have 50 characters


@dataclass(frozen=True)
class Stored:
    """A checkpoint, checked: what it says, and its arrays (none, if only its text was read)."""

    config: Config
    steps: int
    images: str
    environment: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]
    own: tuple[str, ...]
    extended: list[tuple[int, int]]


def read(path: Path, model: Module | None = None) -> Stored:
    """Read a checkpoint: that of `model`, or of the network of its configuration.

    Raises: CheckpointError, in one line, for one that cannot be used, or that is of another network.
    """

    def rules(meta: Mapping[str, Any], headers: Mapping[str, Header]) -> dict[str, Rule]:
        told = _checked(meta)
        if "model" in told.own and model is None:
            raise ValueError("it is of a model of one's own: load_run(folder, model=…), or pretrain(…, model=…)")
        return implied(told.config, headers, model)

    arrays, meta = checkpoint.load(path, rules)
    with checkpoint.explained(path):
        return _checked(meta, arrays)


def read_text(path: Path) -> Stored:
    """Read the text of a checkpoint, without its arrays. Raises: CheckpointError, as `read`."""
    with checkpoint.explained(path):
        return _checked(checkpoint.load_meta(path))


# ── Its text ──────────────────────────────────────────────────────────────────────────────────────


def _checked(meta: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> Stored:
    """Return the text of a checkpoint. Raises: ValueError for an entry of the wrong type, or out of its range."""
    settings, steps, images = meta.get("config"), meta.get("steps"), meta.get("images", "")
    if not isinstance(settings, dict):
        raise ValueError("config must be a table of settings")
    config = Config.from_dict({"cache_side": -2} | settings)  # before version 0.2 photos were kept as squares
    counted = re.fullmatch(r"(\d{1,12}) images, crc32 [0-9a-f]{8}", images) if isinstance(images, str) else None
    if not counted and images != "":
        raise ValueError("images must be a number and a checksum")
    most = config.epochs * (int(counted[1]) // config.batch) if counted else 2**53
    if type(steps) is not int or not 0 <= steps <= most:
        raise ValueError(f"steps must be a whole number from 0 to {most:,}")
    own = meta.get("own", [])
    if not isinstance(own, list) or own not in ([], ["model"], ["views"], ["model", "views"]):
        raise ValueError("own must name model, views, or both")
    environment, extended = _environment(meta.get("environment", {})), _extended(meta.get("extended", []))
    return Stored(config, steps, images, environment, dict(arrays or {}), tuple(own), extended)


def _extended(given: Any) -> list[tuple[int, int]]:
    pairs: list[Any] = given if isinstance(given, list) and len(given) <= MOST_EXTENSIONS else [given]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 <= n < 2**53 for n in pair)):
            raise ValueError("extended must be a list of pairs: a step, and the epochs before it")
    return [(step, epochs) for step, epochs in pairs]


def _environment(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError("environment must be a table")
    for name, value in given.items():
        kind = ENTRIES.get(name)
        if type(value) not in ((kind,) if kind else (int, str, bool, float, type(None))):
            raise ValueError(f"environment {name} must be of type {kind.__name__ if kind else 'str'}")
        if isinstance(value, str) and len(value) > LONGEST:
            raise ValueError(f"environment {name} is longer than {LONGEST} characters")
    return FIRST_ENVIRONMENT | given


# ── Its arrays ────────────────────────────────────────────────────────────────────────────────────


def implied(config: Config, headers: Mapping[str, Header], model: Module | None = None) -> dict[str, Rule]:
    """Return the rules that the arrays of a checkpoint of this configuration must follow, or of this model.

    Raises: ValueError if the network has more weights than there are in the file; it is then not built.
    """
    there = sum(math.prod(header.shape) for name, header in headers.items() if name.startswith("model/"))
    if model is None:
        model = build_model(_Unrandom(config, max(there, SMALL)))  # type: ignore[arg-type]
    float32 = np.dtype(np.float32)
    rules = {}
    for name, array in model.state_dict().items():
        least = 0.0 if name.endswith("running_var") else -math.inf  # a variance: its root is taken
        rules[f"model/{name}"] = Rule(array.shape, float32, least)
    for k, parameter in enumerate(model.parameters()):
        rules[f"momentum/{k}"] = Rule(parameter.shape, float32)
    if config.precision == "float16":
        rules["scale/value"] = Rule((), float32, 1.0)
        rules["scale/good"] = Rule((), np.dtype(np.int32), 0)
    return rules


class _Unrandom:
    """A configuration whose generator draws zeros, and no more of them than a number that is given."""

    def __init__(self, config: Config, most: int) -> None:
        self.config, self.zeros = config, drawing_zeros(most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def rng(self, purpose: int, index: int) -> np.random.Generator:
        """Return the generator of zeros."""
        assert purpose == WEIGHTS
        return self.zeros
