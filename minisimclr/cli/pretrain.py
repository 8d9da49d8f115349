"""`minisimclr pretrain`: pre-train an encoder on images without labels."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import backend
from ..collective import ALONE, Ranks, broadcast_text
from ..data import Reading, taken
from ..nn import method_of
from ..processor import set_threads, threads
from ..protocols.monitor import Monitor
from ..training import record, stored
from ..training.batches import MOST_WORKERS, resident, training_images
from ..training.config import Config
from ..training.distributed import mpi_ranks
from ..training.folders import require_free, require_resumable
from ..training.large_batch import bytes_of_views, made_late, remarks, require_room
from ..training.presets import FEW_STEPS, PRESETS, TUNED, fitted, preset
from ..training.run import Metrics, environment_changes
from ..training.train import pretrain
from ..values import OLD_CONV, method_of_conv, whole
from .common import free_folder, path_name
from .console import exit_code, largest_memory, note, saying, show, silent, training
from .sources import add_reading, chosen_reading

HELP = "pre-train an encoder on images without labels"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --out, --resume, --workers, and one option for each setting of Config."""
    parser.add_argument(
        "--out", type=path_name, metavar="FOLDER", help="folder of the run (default: runs/NAME-OF-THE-DATA)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, with its configuration, from its last checkpoint",
    )
    _add_ways(parser)
    for item in dataclasses.fields(Config):
        if item.name != "reading":  # has an option for each of its choices
            _add_setting(parser, item)
    add_reading(parser)
    parser.add_argument(
        "--conv",
        choices=tuple(OLD_CONV),
        default=argparse.SUPPRESS,
        help="deprecated spelling of --method conv=NAME, until version 0.4",
    )


def _add_ways(parser: argparse.ArgumentParser) -> None:
    """Add the options that change how a run is computed and watched, and not what it is."""
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help=f"processes that make the views of coming steps, at most {MOST_WORKERS}, for many cores and large images; "
        "the views are the same with any number (default: 0: the training process makes them)",
    )
    _add_preset(parser)
    parser.add_argument(
        "--cache",
        type=path_name,
        metavar="FILE",
        help="file in which photos are kept decoded, for sets larger than memory; it is built if it is not there",
    )
    parser.add_argument(
        "--monitor",
        type=int,
        default=None,
        metavar="N",
        help="epochs between two measurements, of kNN on at most 2,000 labelled training images and of "
        "collapse; 0: none; the run is the same with any (default: a tenth of the run)",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="share each batch among the processes that `mpiexec -n 4 minisimclr pretrain --distributed` starts",
    )


def run_command(options: argparse.Namespace) -> None:
    """Train, or go on training.

    Raises: what `pretrain` raises, and ValueError for options that do not fit together.
    """
    whole("--workers", options.workers, 0, MOST_WORKERS)
    if options.monitor is not None:
        whole("--monitor", options.monitor, 0)
    if not options.distributed:
        _train(options, ALONE)
        return
    with mpi_ranks(exit_code) as ranks, silent(ranks.rank > 0):  # rank 0 speaks for all
        if options.threads is None and "MINISIMCLR_THREADS" not in os.environ:
            set_threads(max(1, threads() // ranks.on_this_machine))
        _train(options, ranks)


def _train(options: argparse.Namespace, ranks: Ranks) -> None:
    config, start = _configuration(options, ranks)
    require_room(config, options.workers, None, ranks)
    folder = options.out or free_folder(Path("runs") / (Path(config.data).resolve().stem or "images"))
    if ranks.rank == 0:  # who alone writes; and before the images are read, not after it
        (require_resumable if options.resume else require_free)(folder)
    reading = Reading.from_text(config.reading)
    with saying(f"loading {config.data}"):
        train = training_images(config, options.cache, note)
        images = taken(train)
    if not options.resume:
        given = [item.name for item in dataclasses.fields(Config) if hasattr(options, item.name)]
        config, chosen = fitted(config, len(images), given, options.preset)
        if chosen:
            note(chosen)
    kept = getattr(images, "kept", "")  # of photos; an array needs no word
    note(f"{config.data}: {len(images):,} images of the split {reading.split!r}{', ' if kept else ''}{kept}")
    if config.device != "cpu" and not kept:
        sent = "once, before the first step" if resident(images, config.device) else "batch by batch: they do not fit"
        size = f"{images.nbytes / 2**20:,.0f} MiB"
        note(f"{backend.device_name(config.device)}; {size} of images are sent there {sent}")
        if options.workers:
            note("no worker is started: the GPU makes the views of these images faster than they could be sent to it")
    late = [f"the views of a batch take {bytes_of_views(config) / 2**30:.1f} GiB"] if kept and made_late(config) else []
    for line in remarks(config) + late:
        note(line)
    if ranks.size > 1 and method_of("ntxent", config.method) != "auto":
        note(f"the loss of a batch that {ranks.size} ranks share has one form, whatever --method says")
    monitor = None if options.monitor == 0 else Monitor(config, images, train.labels, every=options.monitor)
    more = {"workers": options.workers, "monitor": monitor, "ranks": ranks}
    with training(config, start) as progress:
        clock = Clock(progress)
        run = pretrain(config, images, folder=folder, resume=options.resume, progress=clock.show, **more)
    for line in clock.lines(config.batch):
        note(line)
    show(f"trained {run.steps:,} steps; next: minisimclr evaluate {folder}")


class Clock:
    """The time and the memory that training took; it shows the metrics of each step by a function that is given."""

    def __init__(self, show: Callable[[Metrics], None]) -> None:
        self.next = show
        self.began = time.monotonic()
        self.steps: list[float] = []  # when the first step ended, and when the last one did
        self.count = 0

    def show(self, metrics: Metrics) -> None:
        """Note that a step ended."""
        self.steps = [*self.steps[:1], time.monotonic()]
        self.count += 1
        self.next(metrics)

    def lines(self, batch: int) -> list[str]:
        """Return a line with the time to the first step, images per second after it, and the largest memory so far."""
        if not self.count:  # a run that was resumed
            return ["the run had all its steps already; --resume with more --epochs makes it longer"]
        if self.count < 2:
            return []
        first, last = self.steps
        rate = batch * (self.count - 1) / (last - first) if last > first else math.inf
        return [f"first step after {first - self.began:.1f} s, then {rate:,.0f} images/s; {largest_memory()}"]


def _configuration(options: argparse.Namespace, ranks: Ranks) -> tuple[Config, int]:
    """Return the configuration that the options ask for, and the number of steps that are done already."""
    given = {
        item.name: getattr(options, item.name) for item in dataclasses.fields(Config) if hasattr(options, item.name)
    }
    if hasattr(options, "conv"):
        if "method" in given:
            raise ValueError("--conv is an old spelling of --method: give --method alone")
        given["method"] = method_of_conv(options.conv)
        note(f"--conv is deprecated and ends with version 0.4; write --method {given['method']}")
    if not options.resume:
        head = (preset(options.preset) | given).get("head", "auto")
        if "head_layers" in given and head != "auto":  # a head by name has layers of its own
            raise ValueError(f"--head-layers is for --head auto, not for {head}")
        if "head_dim" in given and head == "none":
            raise ValueError("--head-dim has no meaning with --head none: z is h")
        config = Config(**(preset(options.preset) | given), reading=chosen_reading(options).as_text())
        backend.require(config.device)
        return config, 0
    if options.preset:
        raise ValueError("--resume goes on with the settings of the run: leave out --preset")
    if options.out is None:
        raise ValueError("--resume needs the folder of the run: --out FOLDER")
    found = json.loads(broadcast_text(ranks, _stored(options.out) if ranks.rank == 0 else ""))
    config, steps = Config.from_dict(found["config"]), found["steps"]
    config = dataclasses.replace(config, **given, reading=chosen_reading(options, config.reading).as_text())
    backend.require(config.device)
    if ranks.rank == 0:  # the others may be on machines that do not see the folder
        for change in environment_changes(options.out, config, ranks.size):
            note(f"{change}; the run goes on, but not bit for bit")
        if config.epochs > found["config"]["epochs"]:
            note(
                f"the run of {found['config']['epochs']} epochs becomes one of {config.epochs}: from step {steps:,} "
                "on, the learning rate is that of the longer schedule"
            )
        for line in record.remarks(options.out / "metrics.jsonl", steps):
            note(line)
    return config, steps


def _stored(folder: Path) -> str:
    """Return the configuration and the steps of the checkpoint in a folder, as JSON."""
    found = stored.read_text(folder / "checkpoint.npz")
    return json.dumps({"config": found.config.as_dict(), "steps": found.steps})


def _add_preset(parser: argparse.ArgumentParser) -> None:
    """Add --preset."""
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help="settings to begin with; options beside it win (default: the defaults below, or those of few-images where "
        f"these would make fewer than {FEW_STEPS} steps, and none of --{', --'.join(TUNED)} is given)",
    )


def _add_setting(parser: argparse.ArgumentParser, item: dataclasses.Field[Any]) -> None:
    """Add the option of one setting. If it is left out, the namespace lacks it: Config knows the default."""
    flag, help = "--" + item.name.replace("_", "-"), item.metadata["help"].replace("%", "%%")
    if isinstance(item.default, bool):
        parser.add_argument(
            flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{help} (default: {'yes' if item.default else 'no'})",
        )
        return
    choices = item.metadata["choices"] or None
    metavar = None if choices else item.metadata["metavar"] or {int: "N", float: "X", str: "PATH"}[type(item.default)]
    parser.add_argument(
        flag,
        type=type(item.default),
        default=argparse.SUPPRESS,
        choices=choices,
        metavar=metavar,
        help=f"{help} (default: {'none' if item.default == '' else item.default})",
    )
