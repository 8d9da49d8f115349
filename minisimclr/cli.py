"""The command line: `minisimclr demo`, `pretrain`, `evaluate`, `embed`, `report`, `gradcheck`.

Exit codes: 0 done; 1 a check failed; 2 usage, configuration or data refused; 3 training turned non-finite;
4 input/output; 130 SIGINT; 143 SIGTERM. An error is one line; --debug shows where it came from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from . import backend, gradchecks, report
from .config import Config
from .data import DataError, Dataset, load_dataset, resident
from .evaluate import compare, embed
from .run import Interrupted, Metrics, Run, environment_changes, load_run
from .train import NonFiniteError, pretrain

# What the demo trains: 12 epochs of 5,000 doodles, about a minute and a half on two cores.
DEMO = Config(data="doodles", batch=128, epochs=12, lr=0.2, temperature=0.2, min_area=0.3)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        backend.set_threads(options.threads)
        code: int | None = options.command(options)
        return code or 0
    except Exception as error:
        if options.debug:
            raise
        return _explained(error)
    except KeyboardInterrupt:
        _complain("stopped")
        return 130


def _explained(error: Exception) -> int:
    """Print an error as one line and return its exit code."""
    if isinstance(error, Interrupted):
        print(f"minisimclr: {error}", file=sys.stderr)
        return 128 + error.signum
    code = 3 if isinstance(error, NonFiniteError) else 4 if isinstance(error, OSError) else 2
    if isinstance(error, BrokenPipeError):  # whoever read our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if isinstance(error, (ValueError, NonFiniteError)):
        _complain(str(error))
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
    elif isinstance(error, MemoryError):  # CuPy's OutOfMemoryError is one too
        _complain(f"not enough memory{backend.whose_memory(error)}; use a smaller --batch, --size or --width")
    elif isinstance(error, (RuntimeError, ImportError)):
        _complain(str(error))
    else:
        _complain(f"unexpected {type(error).__name__}: {error}; --debug shows where it came from")
        return 1
    return code


def _complain(message: str) -> None:
    print(f"minisimclr: error: {' '.join(message.split())}", file=sys.stderr)


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────

def _demo(options: argparse.Namespace) -> None:
    config = dataclasses.replace(DEMO, seed=options.seed, epochs=options.epochs or DEMO.epochs, device=options.device)
    backend.require(config.device)
    folder = options.out or _free_folder(Path("runs/demo"))
    started = time.monotonic()
    with _saying("drawing 7,000 doodles"):
        train = load_dataset(config.data, "train", size=config.size)
        tests = {split: load_dataset(config.data, split, size=config.size) for split in ("test", "unseen")}
    with _training(config, start=0) as progress:
        run = pretrain(config, train.images, folder=folder, progress=progress)
    _evaluated(run, train, {"test": tests["test"], "unseen style": tests["unseen"]}, k=20, temperature=0.1)
    print(f"took {time.monotonic() - started:.0f} s; see the pictures in {folder}")


def _pretrain(options: argparse.Namespace) -> None:
    given = {item.name: getattr(options, item.name) for item in dataclasses.fields(Config)
             if hasattr(options, item.name)}
    start = 0
    if options.resume:
        if options.out is None:
            raise ValueError("--resume needs the folder of the run: --out FOLDER")
        stored = load_run(options.out)
        config, start = dataclasses.replace(stored.config, **given), stored.steps
        backend.require(config.device)
        for change in environment_changes(options.out, config.device, config.precision):
            print(f"minisimclr: note: {change}; the run goes on, but not bit for bit", file=sys.stderr)
    else:
        config = Config(**given)
        backend.require(config.device)
    folder = options.out or _free_folder(Path("runs") / Path(config.data).stem)
    with _saying(f"loading {config.data}"):
        images = load_dataset(config.data, "train", size=config.size).images
    if config.device != "cpu":
        sent = "once, before the first step" if resident(images, config.device) else "batch by batch: they do not fit"
        print(f"minisimclr: note: {backend.device_name(config.device)}; {images.nbytes / 2**20:,.0f} MiB of images "
              f"are sent there {sent}", file=sys.stderr)
    with _training(config, start) as progress:
        run = pretrain(config, images, folder=folder, resume=options.resume, workers=options.workers,
                       progress=progress)
    print(f"trained {run.steps:,} steps; next: minisimclr evaluate {folder}")


def _evaluate(options: argparse.Namespace) -> None:
    run = load_run(options.run, options.device)
    _evaluated(run, *_splits(run, options.data), k=options.k, temperature=options.knn_temperature)


def _report(options: argparse.Namespace) -> None:
    run = load_run(options.run, options.device)
    train, tests = _splits(run, options.data)
    for path in report.draw_all(run, train, next(iter(tests.values())), options.run):
        print(path)


def _embed(options: argparse.Namespace) -> None:
    run = load_run(options.run, options.device)
    data = load_dataset(options.data or run.config.data, options.split, size=run.config.size)
    h, z = embed(run.model, data.images)
    with open(options.to, "wb") as file:
        np.savez(file, h=h, z=z, labels=data.labels, class_names=np.array(data.class_names))
    print(f"{options.to}: h {h.shape}, z {z.shape}, labels, class_names")


def _gradcheck(options: argparse.Namespace) -> int:
    with _saying("checking every operation"):
        text, passed = gradchecks.main_table(color=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    print(text)
    return 0 if passed else 1


def _splits(run: Run, source: str | None) -> tuple[Dataset, dict[str, Dataset]]:
    """The training split, and the splits to test on."""
    source, size = source or run.config.data, run.config.size
    with _saying(f"loading {source}"):
        train = load_dataset(source, "train", size=size)
        if len(train.class_names) < 2:
            raise DataError(f"{source}: evaluation needs labelled images: at least two folders, one for each class")
        tests = {"test": load_dataset(source, "test", size=size)}
        if source == "doodles":
            tests["unseen style"] = load_dataset(source, "unseen", size=size)
    return train, tests


def _evaluated(run: Run, train: Dataset, tests: dict[str, Dataset], k: int, temperature: float) -> None:
    """Print the table and keep it, with the pictures, in the run's folder."""
    assert run.folder is not None
    with _saying("comparing representations") as say:
        scores = compare(run, train, tests, k=k, temperature=temperature, progress=say)
    text = report.table(scores)
    classes = len(train.class_names)
    settings = f"accuracy in percent; {classes} classes, chance {100 / classes:.1f}; k = {k}"
    print(f"\n{text}\n\n{settings}")
    (run.folder / "table.txt").write_text(f"{text}\n\n{settings}\n")
    results = {"steps": run.steps, "k": k, "temperature": temperature, "train_images": len(train),
               "test_images": {name: len(data) for name, data in tests.items()},
               "scores": [dataclasses.asdict(score) for score in scores]}
    (run.folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    with _saying("drawing pictures"):
        report.draw_all(run, train, next(iter(tests.values())), run.folder)


def _free_folder(wanted: Path) -> Path:
    """runs/demo, or runs/demo-2, runs/demo-3 …: the first that holds no run."""
    folder, number = wanted, 1
    while (folder / "checkpoint.npz").exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


# ── What the user sees meanwhile ──────────────────────────────────────────────────────────────────

@contextmanager
def _saying(what: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, a line that says what is being done, and is wiped afterwards."""
    shown = sys.stderr.isatty()

    def say(detail: str) -> None:
        if shown:
            print(f"\r\x1b[K{what}{': ' if detail else ' …'}{detail}", end="", file=sys.stderr, flush=True)

    say("")
    try:
        yield say
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _training(config: Config, start: int) -> Iterator[Callable[[Metrics], None]]:
    """The progress line: a bar on a terminal; in a log, a plain line now and then."""
    bar: Any = None
    spoken = began = time.monotonic()

    def progress(metrics: Metrics) -> None:
        nonlocal bar, spoken
        text = f"loss {metrics['loss']:.3f} (chance {metrics['chance']:.2f}), top-1 {100 * metrics['top1']:.0f} %"
        if sys.stderr.isatty():
            if bar is None:
                bar = tqdm(total=metrics["steps"], initial=start, unit="step", dynamic_ncols=True, smoothing=0.1,
                           bar_format="step {n_fmt}/{total_fmt} {bar:20} {desc}, {remaining} left")
            bar.set_description_str(f"{text}, {metrics['images_per_second']:.0f} images/s", refresh=False)
            bar.update()
        elif time.monotonic() - spoken > 10 or metrics["step"] + 1 == metrics["steps"]:
            spoken = time.monotonic()
            done, steps = metrics["step"] + 1, metrics["steps"]
            rate = (done - start) / (spoken - began)
            left = tqdm.format_interval((steps - done) / rate)
            print(f"step {done}/{steps}  {text}, {rate * config.batch:.0f} images/s, {left} left",
                  file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


# ── Options ───────────────────────────────────────────────────────────────────────────────────────

class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {self.prog} --help")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minisimclr", description="SimCLR from scratch in NumPy and CuPy.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.set_defaults(command=run)
        sub.add_argument("--threads", type=int, default=None, metavar="N",
                         help="threads to work with (default: $MINISIMCLR_THREADS, else the usable cores)")
        sub.add_argument("--debug", action="store_true", help="show a traceback for an error")
        return sub

    demo = command("demo", _demo, "draw a data set, pre-train on it, evaluate, and show what was learned")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/demo)")
    demo.add_argument("--seed", type=int, default=DEMO.seed, metavar="N",
                      help=f"of all random numbers (default: {DEMO.seed})")
    demo.add_argument("--epochs", type=int, default=None, metavar="N",
                      help=f"passes over the images (default: {DEMO.epochs})")

    train = command("pretrain", _pretrain, "pre-train an encoder on images without labels")
    train.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/NAME-OF-THE-DATA)")
    train.add_argument("--resume", action="store_true",
                       help="go on with the run in --out, with its configuration, from its last checkpoint")
    train.add_argument("--workers", type=int, default=0, metavar="N",
                       help="processes that make the views of coming steps, for many cores and large images; the "
                            "views are the same with any number (default: 0: the training process makes them)")
    for item in dataclasses.fields(Config):
        _add_setting(train, item)

    evaluate = command("evaluate", _evaluate, "measure how well the classes can be told apart by h, and by z")
    evaluate.add_argument("--k", type=int, default=20, metavar="N", help="neighbours that vote (default: 20)")
    evaluate.add_argument("--knn-temperature", type=float, default=0.1, metavar="T",
                          help="a neighbour of cosine similarity s votes with weight exp(s/T) (default: 0.1)")
    pictures = command("report", _report, "draw the pictures of a run again")
    embedding = command("embed", _embed, "write h and z of every image to an .npz file")
    embedding.add_argument("--split", default="test", help="which images (default: test)")
    embedding.add_argument("--to", type=Path, required=True, metavar="FILE.npz", help="where to write")
    command("gradcheck", _gradcheck, "hold every operation's value and gradient against independent ones")
    for sub in (demo, evaluate, pictures, embedding):
        sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                         help="where to compute, wherever it was trained (default: cpu)" if sub is not demo else
                              "where to compute (default: cpu)")
    for sub in (evaluate, pictures, embedding):
        sub.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
        sub.add_argument("--data", default=None, help="folder or zip (default: what the run was trained on)")
    return parser


def _add_setting(parser: argparse.ArgumentParser, item: dataclasses.Field[Any]) -> None:
    """An option for one field of Config. Left out, it is absent from the namespace: Config knows the default."""
    flag, help = "--" + item.name.replace("_", "-"), item.metadata["help"].replace("%", "%%")
    if isinstance(item.default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                            help=f"{help} (default: {'yes' if item.default else 'no'})")
        return
    choices = item.metadata["choices"] or None
    metavar = None if choices else {int: "N", float: "X", str: "PATH"}[type(item.default)]
    parser.add_argument(flag, type=type(item.default), default=argparse.SUPPRESS, choices=choices, metavar=metavar,
                        help=f"{help} (default: {item.default})")
