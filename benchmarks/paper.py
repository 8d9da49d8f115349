"""The paper's findings, run again at the scale of this machine.

    python benchmarks/paper.py temperature                  on doodles; goes on where it was stopped
    python benchmarks/paper.py head --data cifar10.zip      on images of your own
    python benchmarks/paper.py --list                       the experiments, with their runs
    python benchmarks/paper.py temperature --show           the table and the figure of what is there; nothing runs

Every run trains the small encoder on the same images for the same number of steps, but for what the experiment varies,
and is judged on test images: weighted kNN and a linear probe, on h (and on z, where that is the question). Each run
is stored when it is done, in docs/results/paper/, with its settings, its seed and its cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rivals import RIVALS, train

import minisimclr as ms
from minisimclr import ops
from minisimclr.data import Dataset
from minisimclr.storage import write
from minisimclr.training.config import build_model

Array = np.ndarray[Any, Any]
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "paper"
IMAGES, TEST_IMAGES = 2048, 1024  # of each set: what a run sees, and what judges it
BASE = {"batch": 128, "epochs": 12, "size": 32}  # 192 steps: about a minute on one core
DOODLES = {"min_area": 0.3}  # their things are small, and often not in a twelfth of the image
SEEDS = 3


class Run(NamedTuple):
    """One training: its label in the table, what it changes in the configuration, and its seed."""

    label: str
    settings: dict[str, Any]
    seed: int


# ── The experiments ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Experiment:
    """A question of the paper: its runs without seeds, and what the paper found."""

    question: str
    settings: dict[str, dict[str, Any]]  # label -> what differs from BASE
    paper: dict[str, float] = field(default_factory=dict)  # label -> top-1 of the paper, where that is confirmed
    source: str = ""  # table or figure of the paper
    seeds: int = SEEDS
    # Where one seed must do for most rows: this row, the best and the worst get SEEDS. "" repeats none.
    repeated: str = ""

    def runs(self, done: Sequence[dict[str, Any]] = ()) -> Iterator[Run]:
        """Yield every run, seed by seed: a table that was stopped early has each row. `done` grows meanwhile."""
        for seed in range(self.seeds):
            for label, settings in self.settings.items():
                yield Run(label, settings, seed)
        if self.repeated:
            best = sorted(done, key=lambda run: run["h linear"])
            for seed in range(self.seeds, SEEDS):
                for label in dict.fromkeys([self.repeated, best[-1]["label"], best[0]["label"]]):
                    yield Run(label, self.settings[label], seed)


def views_of(first: str, second: str) -> str:
    """Write the views that are changed by these two and by nothing else, as Config.views has them."""
    names = dict.fromkeys([first, second])
    return ",".join(names if "crop" in names else ["whole", *names])


TEMPERATURES = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
STRENGTHS = (0.125, 0.25, 0.5, 1.0)
CHANGES_OF_FIGURE_5 = ("crop", "cutout", "colour", "sobel", "noise", "blur", "rotate")
LOSSES = ("nt_xent", "decoupled", "nt_logistic", "nt_logistic_semi_hard", "triplet", "triplet_semi_hard")

EXPERIMENTS = {
    "temperature": Experiment(
        "Which temperature?",
        {f"τ = {t:g}": {"temperature": t} for t in TEMPERATURES}
        | {"τ = 1, not normalized": {"temperature": 1.0, "task": "dot products"}},
        {"τ = 0.05": 59.7, "τ = 0.1": 64.4, "τ = 0.5": 60.7, "τ = 1": 58.0},
        "Table 5",
    ),
    "head": Experiment(
        "Which projection head, and h or z?",
        {head: {"head": head} for head in ("none", "linear", "mlp2", "mlp3")},
        source="Figure 8: non-linear beats linear by about 3 points, none by more than 10; h beats z by more than 10",
    ),
    "pairs": Experiment(
        "Which two changes make the best views?",
        {" + ".join(dict.fromkeys(pair)): {"views": views_of(*pair)}
         for pair in itertools.combinations_with_replacement(CHANGES_OF_FIGURE_5, 2)},
        source="Figure 5: no change suffices alone, and crop + colour stands out. There one view stays as it is",
        seeds=1,
        repeated="crop + colour",
    ),
    "strength": Experiment(
        "How strong should the colours change?",
        {f"strength {s:g}": {"strength": s} for s in STRENGTHS} | {"strength 1, blur": {"strength": 1.0, "blur": True}},
        {"strength 0.125": 59.6, "strength 0.25": 61.0, "strength 0.5": 62.6, "strength 1": 63.2,
         "strength 1, blur": 64.5},
        "Table 1",
    ),
    "batch": Experiment(
        "How large a batch, for how long?",
        {f"batch {b}, {e} epochs": {"batch": b, "epochs": e} for b in (64, 128, 256, 512) for e in (6, 24)},
        source="Table B.1, on ImageNet: batch 256 gains 9 points from 8 times the epochs, batch 8192 gains 4",
    ),
    "loss": Experiment(
        "Which loss?", {name: {"objective": name} for name in LOSSES}, source="Table 4: NT-Xent is best"
    ),
    "families": Experiment(
        "SimCLR beside one of each family of self-supervision, and beside labels",
        {"SimCLR": {}, **{name: {"task": name} for name in RIVALS}, "untrained": {"task": "untrained"}},
    ),
    "keeps": Experiment(
        "What does h keep, and z drop?",
        {"SimCLR": {"task": "keeps"}},
        source="Table 3, h against z: rotation 67.6 and 25.6, corrupted 99.5 and 59.6, Sobel 96.6 and 56.3",
    ),
}  # fmt: skip


# ── One run ───────────────────────────────────────────────────────────────────────────────────────


def performed(run: Run, base: dict[str, Any], sets: tuple[Dataset, Dataset]) -> dict[str, Any]:
    """Train and judge; return the scores in per cent, and the cost."""
    settings = dict(run.settings)
    task = settings.pop("task", "SimCLR")
    config = ms.Config(**base | settings, seed=run.seed)
    began, cpu = time.monotonic(), time.process_time()
    images, labels = sets[0].images, sets[0].labels
    losses: list[float] = []
    if task in RIVALS:
        rival = train(task, config, images, labels, lambda step, loss: losses.append(loss))
        model = with_encoder(config, rival)
    elif task == "untrained":
        model = build_model(config)
    else:
        own = build_model(config)
        if task == "dot products":
            own.objective = dot_products
        made = ms.pretrain(config, images, model=own, progress=lambda line: losses.append(line["loss"]))
        model = made.model
    spent = {"seconds": round(time.monotonic() - began, 1), "cpu seconds": round(time.process_time() - cpu, 1)}
    judge = kept if task == "keeps" else scores
    ends = {"first loss": losses[0], "last loss": statistics.fmean(losses[-10:])} if losses else {}
    return {"label": run.label, "seed": run.seed, "settings": run.settings, **judge(model, *sets), **ends, **spent}


def with_encoder(config: ms.Config, rival: Any) -> ms.SimCLR:
    """Return a SimCLR with the encoder of a rival, so that it is judged in the same way; its head is untrained."""
    return ms.SimCLR(rival.encoder, build_model(config).head)


def dot_products(za: Any, zb: Any, temperature: float) -> Any:
    """Compute NT-Xent of embeddings that keep their lengths: dot products in place of cosines."""
    n = len(za.data)
    z = ops.concatenate(za, zb)  # (2N,D)
    diagonal = np.where(np.eye(2 * n, dtype=bool), np.float32(-1e9), np.float32(0))  # an anchor is not its own negative
    logits = z @ z.transpose() * (1 / temperature) + diagonal  # (2N,2N)
    return ops.cross_entropy(logits, labels=(np.arange(2 * n) + n) % (2 * n))  # the partner of row i is i ± N


def scores(model: ms.SimCLR, known: Dataset, new: Dataset) -> dict[str, float]:
    """Judge h and z on test images: kNN and linear probe, in per cent."""
    pairs = zip(("h", "z"), ms.embed(model, known.images), ms.embed(model, new.images))
    found = {}
    for name, bank, query in pairs:
        found[f"{name} kNN"] = 100 * ms.knn_accuracy(bank, known.labels, query, new.labels)
        found[f"{name} linear"] = 100 * ms.linear_probe(bank, known.labels, query, new.labels)
    return {name: round(float(score), 2) for name, score in found.items()}


def kept(model: ms.SimCLR, known: Dataset, new: Dataset) -> dict[str, float]:
    """Judge what a linear probe on h, and on z, can tell of what was done to an image (Table 3), in per cent."""
    found = {}
    for question, change in CHANGES.items():
        (bank, answers), (query, truth) = (change(data.images, np.random.default_rng(0)) for data in (known, new))
        for name, a, b in zip(("h", "z"), ms.embed(model, bank), ms.embed(model, query)):
            found[f"{name} {question}"] = round(100 * ms.linear_probe(a, answers, b, truth), 2)
    return found


def _rotated(images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    turns = rng.integers(0, 4, len(images))
    return np.stack([np.rot90(image, k) for image, k in zip(images, turns)]), turns


def _half(change: Callable[[Array, np.random.Generator], Array]) -> Callable[[Array, np.random.Generator], Any]:
    def changed(images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        yes = rng.integers(0, 2, len(images))  # every second image, by chance
        other = change(images, rng)
        return np.where(yes[:, None, None, None] == 1, other, images).astype(np.uint8), yes

    return changed


def _noisy(images: Array, rng: np.random.Generator) -> Array:
    return np.clip(images + rng.normal(0, 16, images.shape), 0, 255)


def _grey(images: Array, rng: np.random.Generator) -> Array:
    return (images @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, axis=-1)


def _sobel(images: Array, rng: np.random.Generator) -> Array:
    from scipy import ndimage

    grey = _grey(images, rng)[..., 0]
    edges = np.hypot(ndimage.sobel(grey, axis=1), ndimage.sobel(grey, axis=2))
    return np.clip(edges / 4, 0, 255)[..., None].repeat(3, axis=-1)


CHANGES = {"rotation": _rotated, "colour": _half(_grey), "noise": _half(_noisy), "Sobel": _half(_sobel)}


# ── The record ────────────────────────────────────────────────────────────────────────────────────


def conduct(name: str, source: str, seeds: int | None, path: Path, images: int = IMAGES) -> list[dict[str, Any]]:
    """Perform the runs of an experiment that are not in its file yet, and store each when it is done."""
    base = BASE | (DOODLES if source == "doodles" else {})
    record = stored(path, {"experiment": name, "data": shown(source), "images": images, "base": base})
    done = {(run["label"], run["seed"]) for run in record["runs"]}
    sets = tuple(
        first(ms.load_dataset(source, split, size=base["size"]), count)
        for split, count in (("train", images), ("test", max(1, images * TEST_IMAGES // IMAGES)))
    )
    experiment = replace(EXPERIMENTS[name], seeds=seeds or EXPERIMENTS[name].seeds)
    for run in experiment.runs(record["runs"]):
        if (run.label, run.seed) in done:
            continue
        print(f"{name}: {run.label}, seed {run.seed} …", end=" ", flush=True)
        record["runs"].append(performed(run, base, sets))  # type: ignore[arg-type]
        write(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"{record['runs'][-1]['seconds']:.0f} s", flush=True)
    return list(record["runs"])


def stored(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Return the record at this path, or an empty one. Raises: ValueError if it belongs to other settings."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {**head, "runs": []}
    record: dict[str, Any] = json.loads(path.read_text())
    if {key: record.get(key) for key in head} != head:
        raise ValueError(f"{path}: its runs were made with other settings; move it away to begin anew")
    return record


def first(data: Dataset, count: int) -> Dataset:
    """Return `count` images of a data set, as many of each class as possible, in an order of their own."""
    order = np.random.default_rng(0).permutation(len(data.images))
    turn = np.zeros(len(order), int)  # the how-manieth of its class an image is, in that order
    for label in np.unique(data.labels):
        rows = order[data.labels[order] == label]
        turn[rows] = np.arange(len(rows))
    chosen = order[np.argsort(turn[order], kind="stable")][:count]
    return Dataset(data.images[chosen], data.labels[chosen], data.class_names)


def shown(source: str) -> str:
    """Return the name of a data set: no path of a machine belongs into a result."""
    return "doodles" if source == "doodles" else Path(source).stem


# ── Table and figure ──────────────────────────────────────────────────────────────────────────────


def table(experiment: Experiment, runs: list[dict[str, Any]]) -> str:
    """Write the means over seeds, with their spread, beside the paper's, in Markdown."""
    columns = [key for key, value in runs[0].items() if key[:2] in ("h ", "z ")] if runs else []
    head = ["", *columns, *(["the paper"] if experiment.paper else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label in experiment.settings:
        cells = [spread([run[column] for run in runs if run["label"] == label]) for column in columns]
        if experiment.paper:
            cells.append(f"{experiment.paper[label]:.1f}" if label in experiment.paper else "")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Write the mean, and the standard deviation if there are several."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def figure(experiment: Experiment, runs: list[dict[str, Any]], path: Path) -> None:
    """Draw each score of h as a row of points: every seed, and their mean."""
    import matplotlib.pyplot as plt

    labels = [label for label in experiment.settings if any(run["label"] == label for run in runs)]
    columns = [key for key in runs[0] if key.startswith("h ")]
    drawing, axes = plt.subplots(figsize=(7, 1 + 0.4 * len(labels)), layout="constrained")
    for k, column in enumerate(columns):
        colour = f"C{k}"
        for y, label in enumerate(labels):
            values = [run[column] for run in runs if run["label"] == label]
            axes.plot(values, [y + 0.12 * k] * len(values), "o", color=colour, markersize=4, alpha=0.5)
            axes.plot(statistics.fmean(values), y + 0.12 * k, "|", color=colour, markersize=14,
                      label=column if y == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on test images, per cent", title=experiment.question)
    axes.grid(axis="x", linewidth=0.4)
    axes.legend(loc="best", fontsize=8)
    drawing.savefig(path, metadata={"Software": None}, dpi=120)
    plt.close(drawing)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--data", default="doodles", help="folder or zip of labelled images (default: doodles)")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help=f"seeds of each run (default: {SEEDS})")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help=f"training images (default: {IMAGES})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--list", action="store_true", help="list the experiments and leave")
    parser.add_argument("--show", action="store_true", help="write table and figure of what is there; run nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - EXPERIMENTS.keys():
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    for name in options.names if not options.list else EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        if options.list:
            count = len(experiment.settings) * experiment.seeds + (6 if experiment.repeated else 0)
            print(f"{name:12} {count:3} runs  {experiment.question}")
            continue
        path = options.out / f"{name}-{shown(options.data)}.json"
        if options.show:
            runs = json.loads(path.read_text())["runs"]
        else:
            runs = conduct(name, options.data, options.seeds, path, options.images)
        print(f"\n{experiment.question} ({experiment.source or 'not in the paper'})\n\n{table(experiment, runs)}\n")
        figure(experiment, runs, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
