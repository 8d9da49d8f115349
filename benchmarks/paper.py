"""The paper's findings, run again at the scale of this machine.

    python benchmarks/paper.py temperature                  on doodles; goes on where it was stopped
    python benchmarks/paper.py head --data cifar10.zip      on images of your own
    python benchmarks/paper.py --list                       the experiments, with their runs
    python benchmarks/paper.py --lengths                    the first gradient of each task: why the rates differ
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
from minisimclr.data import DataError, Dataset
from minisimclr.storage import write
from minisimclr.training.config import build_model
from minisimclr.training.run import fingerprint
from minisimclr.views import to_float, two_views

Array = np.ndarray[Any, Any]
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "paper"
IMAGES, TEST_IMAGES = 2048, 1024  # what a run sees, and what judges it if there are so many: doodles have 1,000
# 192 steps, half a minute on one core. The peak of the rate, lr·batch/256, is the best one of docs/results/temperature.
BASE = {"batch": 64, "epochs": 6, "size": 32, "temperature": 0.1, "lr": 0.2}
DOODLES = {"min_area": 0.3}  # their things are small: a crop of a twelfth of the image often misses them
SEEDS = 3
HEADLESS = (*RIVALS, "untrained")  # tasks that train no head of SimCLR, so that z would be that of a random one
LAST = 10  # steps at the end of a run over which loss and contrastive accuracy are averaged
Settings = dict[str, Any]


class Run(NamedTuple):
    """One training: its label in the table, what it changes in the configuration, and its seed."""

    label: str
    settings: Settings
    seed: int


# ── The experiments ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Experiment:
    """A question of the paper: its runs without seeds, and what the paper found.

    A label may have several settings to try, in a tuple. Then seed 0 runs all of them, and the one whose linear probe
    is best on held-out *training* images gets the other seeds and the row in the table.
    """

    question: str
    settings: dict[str, Settings | tuple[Settings, ...]]  # label -> what differs from BASE
    paper: dict[str, float | str] = field(default_factory=dict)  # label -> the paper's number of that row
    source: str = ""  # table or figure of the paper, and what differs here
    seeds: int = SEEDS
    # Where one seed must do for most rows: this row, the best and the worst get SEEDS. "" repeats none.
    repeated: str = ""

    def tried(self, label: str) -> tuple[Settings, ...]:
        """Return the settings that are tried for a label: one or several."""
        settings = self.settings[label]
        return settings if isinstance(settings, tuple) else (settings,)

    def chosen(self, label: str, done: Sequence[dict[str, Any]]) -> Settings:
        """Return the settings of a label that are best on held-out training images, by the runs of seed 0."""
        if len(tried := self.tried(label)) == 1:
            return tried[0]
        known = [run for run in done if run["label"] == label and run["seed"] == 0 and run["settings"] in tried]
        return max(known, key=lambda run: run["validation"])["settings"] if known else tried[0]

    def runs(self, done: Sequence[dict[str, Any]] = ()) -> Iterator[Run]:
        """Yield every run, seed by seed: a table that was stopped early has each row. `done` grows meanwhile."""
        for seed in range(self.seeds):
            for label in self.settings:
                for settings in [self.chosen(label, done)] if seed else self.tried(label):
                    yield Run(label, settings, seed)
        if self.repeated:
            again = dict.fromkeys([self.repeated, *self.extremes(done)])
            for seed in range(self.seeds, SEEDS):
                for label in again:
                    yield Run(label, self.tried(label)[0], seed)

    def extremes(self, done: Sequence[dict[str, Any]]) -> list[str]:
        """Return the labels that are best and worst on held-out training images, by the seeds that every row has."""
        means = {}
        for label in self.settings:
            if own := [run["validation"] for run in done if run["label"] == label and run["seed"] < self.seeds]:
                means[label] = statistics.fmean(own)
        return [max(means, key=lambda label: means[label]), min(means, key=lambda label: means[label])] if means else []

    def reported(self, done: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Return the runs of each label that the table shows: those of the chosen settings."""
        chosen = {label: self.chosen(label, done) for label in self.settings}
        return {
            label: [run for run in done if run["label"] == label and run["settings"] == settings]
            for label, settings in chosen.items()
        }


def views_of(first: str, second: str) -> str:
    """Write the views that are changed by these two and by nothing else, as Config.views has them."""
    names = ["crop,flip" if name == "crop" else name for name in dict.fromkeys([first, second])]
    return ",".join(names if "crop" in (first, second) else ["whole", *names])


def rates(*values: float, **settings: Any) -> tuple[Settings, ...]:
    """Return settings that differ in the learning rate."""
    return tuple({**settings, "lr": lr} for lr in values)


# SGD's steps are as long as the gradient, and that of NT-Xent carries 1/τ (chapter 5). So the rate is in proportion to
# the temperature, or else the table would compare rates. (The paper's LARS divides by the length of the gradient.)
RATE = BASE["lr"] / BASE["temperature"]
TEMPERATURES = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
LENGTH = 128  # mean |z|² after the head's batch norm: dot products are that much larger than cosines
STRENGTHS = (0.125, 0.25, 0.5, 1.0)
LOSSES = ("nt_xent", "decoupled", "nt_logistic", "nt_logistic_semi_hard", "triplet", "triplet_semi_hard")
CHANGES_OF_FIGURE_5 = ("crop", "cutout", "colour", "sobel", "noise", "blur", "rotate")
LOGISTIC = tuple({"temperature": t, "lr": 2 * RATE * t} for t in (0.1, 0.5))  # its gradient is half of NT-Xent's
TRIPLET = rates(0.5 * RATE, 1.5 * RATE)  # no temperature, so no factor 1/τ

EXPERIMENTS = {
    "temperature": Experiment(
        "Which temperature?",
        {f"τ = {t:g}": {"temperature": t, "lr": round(RATE * t, 3)} if t != BASE["temperature"] else {}
         for t in TEMPERATURES}
        | {f"τ = {t:g}, not normalized": {"temperature": t, "lr": round(RATE * t / LENGTH, 4), "task": "dot products"}
           for t in (10.0, 100.0)},
        {"τ = 0.05": 59.7, "τ = 0.1": 64.4, "τ = 0.5": 60.7, "τ = 1": 58.0,
         "τ = 10, not normalized": 57.2, "τ = 100, not normalized": 57.0},
        "Table 5",
    ),
    "head": Experiment(
        "Which projection head, and h or z?",
        {"none": {"head": "none"}, "linear": {"head": "linear"}, "mlp2": {}, "mlp3": {"head": "mlp3"}},
        source="Figure 8: non-linear beats linear by about 3 points, none by more than 10; h beats z by more than 10",
    ),
    "pairs": Experiment(
        "Which two changes make the best views?",
        {" + ".join(dict.fromkeys(pair)): {"views": views_of(*pair), "task": "one branch"}
         for pair in itertools.combinations_with_replacement(CHANGES_OF_FIGURE_5, 2)},
        source="Figure 5: no change suffices alone, and crop + colour stands out. One view is changed, one is not. "
        "There, both images are first cropped at random; here, the other view is the whole image",
        seeds=1,
        repeated="crop + colour",
    ),
    "strength": Experiment(
        "How strong should the colours change?",
        {f"strength {s:g}": {"strength": s} if s != 0.5 else {} for s in STRENGTHS}
        | {"strength 1, blur": {"strength": 1.0, "blur": True}},
        {"strength 0.125": 59.6, "strength 0.25": 61.0, "strength 0.5": 62.6, "strength 1": 63.2,
         "strength 1, blur": 64.5},
        "Table 1",
    ),
    "batch": Experiment(
        "How large a batch, for how long?",
        {f"batch {b}, {e} epochs": {"batch": b, "epochs": e} for b in (32, 64, 128, 256) for e in (3, 12)},
        source="Table B.1, on ImageNet: batch 256 gains 9 points from 8 times the epochs, batch 8192 gains 4",
    ),
    "loss": Experiment(
        "Which loss?",
        {"nt_xent": {}, "decoupled": {"objective": "decoupled"}}
        | {name: tuple({"objective": name, **tried} for tried in LOGISTIC)
           for name in ("nt_logistic", "nt_logistic_semi_hard")}
        | {name: tuple({"objective": name, **tried} for tried in TRIPLET)
           for name in ("triplet", "triplet_semi_hard")},
        {"nt_xent": 63.9, "nt_logistic": 51.6, "nt_logistic_semi_hard": 57.9, "triplet": 50.9,
         "triplet_semi_hard": 57.5},
        "Table 4. There, negatives of one view only; rate, margin and temperature tuned more finely. Here, the rate of "
        "NT-Xent was tuned beforehand, on more settings (docs/results/temperature, scored on test images); decoupled "
        "takes it too, and the others try two each",
    ),
    "families": Experiment(
        "SimCLR beside one of each family of self-supervision, and beside labels",
        {"SimCLR": {}, "instance": rates(0.4, 1.6, task="instance"), "rotation": rates(1.0, 4.0, task="rotation"),
         "masked": rates(10.0, 50.0, task="masked"), "supervised": rates(1.0, 4.0, task="supervised"),
         "untrained": {"task": "untrained"}},
        source="Not in the paper. Supervised is a reference, and its rate is chosen by a probe on images whose labels "
        "it was trained with",
    ),
    "keeps": Experiment(
        "What does h keep, and z drop?",
        {question: {"task": f"keeps {question}", **({"views": f"crop,flip,colour,{name}"} if name else {})}
         for question, name in {"colour": "", "rotation": "rotate", "noise": "noise", "Sobel": "sobel"}.items()},
        {"colour": "99.3 and 97.4 (chance 80)", "rotation": "67.6 and 25.6 (chance 25)",
         "noise": "99.5 and 59.6 (chance 50)", "Sobel": "96.6 and 56.3 (chance 50)"},
        "Table 3, h and z. There, by an MLP; here, by a linear probe, and grey is as likely as colour",
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
    ends: dict[str, float] = {}
    if task in RIVALS:
        rival = train(task, config, images, labels, lambda step, loss: losses.append(loss))
        model = with_encoder(config, rival)
    elif task == "untrained":
        model = build_model(config)
    else:
        own = build_model(config)
        if task == "dot products":
            own.objective = dot_products
        made = ms.pretrain(config, images, model=own, views=one_branch(config) if task == "one branch" else None)
        model, losses = made.model, [line["loss"] for line in made.history]
        ends = {"contrastive": round(100 * statistics.fmean(line["top1"] for line in made.history[-LAST:]), 2)}
    if losses:
        ends |= {"first loss": losses[0], "last loss": statistics.fmean(losses[-LAST:])}
    spent = {"seconds": round(time.monotonic() - began, 1), "cpu seconds": round(time.process_time() - cpu, 1)}
    if task.startswith("keeps "):
        found = kept(model, *sets, task.removeprefix("keeps "))
    else:
        found = scores(model, *sets, names=("h",) if task in HEADLESS else ("h", "z"))
    return {"label": run.label, "seed": run.seed, "settings": run.settings, **found, **ends, **spent}


def one_branch(config: ms.Config) -> Callable[[Array, np.random.Generator], tuple[Array, Array]]:
    """Return a function that changes one of the two views and leaves the other as it is, as in Figure 5."""

    def views(images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        how = {"strength": config.strength, "min_area": config.min_area, "names": config.views}
        return two_views(images, rng, config.size, **how)[0], to_float(images)

    return views


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


def scores(model: ms.SimCLR, known: Dataset, new: Dataset, names: Sequence[str] = ("h", "z")) -> dict[str, float]:
    """Judge h and z on test images: kNN and linear probe, in per cent; and h on the last quarter of the known ones."""
    pairs = dict(zip(("h", "z"), zip(ms.embed(model, known.images), ms.embed(model, new.images))))
    found = {}
    for name in names:
        bank, query = pairs[name]
        found[f"{name} kNN"] = ms.knn_accuracy(bank, known.labels, query, new.labels, k=min(20, len(bank)))
        found[f"{name} linear"] = ms.linear_probe(bank, known.labels, query, new.labels)
    (h, _), y, rest = pairs["h"], known.labels, len(known.labels) * 3 // 4
    found["validation"] = ms.linear_probe(h[:rest], y[:rest], h[rest:], y[rest:])  # what settings are chosen by
    return {name: round(100 * float(score), 2) for name, score in found.items()}


def kept(model: ms.SimCLR, known: Dataset, new: Dataset, question: str) -> dict[str, float]:
    """Judge what a linear probe on h, and on z, can tell of what was done to an image (Table 3), in per cent."""
    change = CHANGES[question]
    (bank, answers), (query, truth) = (change(data.images, np.random.default_rng(0)) for data in (known, new))
    pairs = zip(("h", "z"), ms.embed(model, bank), ms.embed(model, query))
    return {f"{name} linear": round(100 * ms.linear_probe(a, answers, b, truth), 2) for name, a, b in pairs}


def _rotated(images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    turns = rng.integers(0, 4, len(images))
    return np.stack([np.rot90(image, k) for image, k in zip(images, turns)]), turns


def _half(change: Callable[[Array, np.random.Generator], Array]) -> Callable[[Array, np.random.Generator], Any]:
    def changed(images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        yes = rng.integers(0, 2, len(images))  # each image is changed with probability 1/2
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
    sets = tuple(
        some(source, split, count, base["size"])
        for split, count in (("train", images), ("test", max(1, images * TEST_IMAGES // IMAGES)))
    )
    head = {"experiment": name, "data": shown(source), "images": images, "base": base}
    seen = seen_by(*sets)
    record = stored(path, head, seen)
    done = [Run(run["label"], run["settings"], run["seed"]) for run in record["runs"]]
    experiment = replace(EXPERIMENTS[name], seeds=seeds or EXPERIMENTS[name].seeds)
    for run in experiment.runs(record["runs"]):
        if run in done:
            continue
        print(f"{name}: {run.label}, seed {run.seed} …", end=" ", flush=True)
        record["runs"].append(elsewhere(run, path, head | seen) or performed(run, base, sets))
        write(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"{record['runs'][-1]['seconds']:.0f} s", flush=True)
    return list(record["runs"])


def some(source: str, split: str, count: int, size: int) -> Dataset:
    """Load `count` images of a split, as `first` chooses them, and say so in one line if there are fewer."""
    data = first(ms.load_dataset(source, split, size=size), count)
    if len(data) < count:
        print(f"{shown(source)}, {split}: {count:,} images were asked for, and there are {len(data):,}", flush=True)
    return data


def seen_by(known: Dataset, new: Dataset) -> dict[str, Any]:
    """Return what a record tells of its images: how many there are of each kind, and their fingerprints."""
    prints = {"training": fingerprint(known.images), "test": fingerprint(new.images)}
    return {"training images": len(known), "test images": len(new), "fingerprints": prints}


def alike(record: dict[str, Any], seen: dict[str, Any]) -> bool:
    """Return False if a record was made with other images; an older one has no fingerprints, and is believed."""
    return bool(record.get("fingerprints", seen["fingerprints"]) == seen["fingerprints"])


def elsewhere(run: Run, path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a run of the same images, settings and seed that another experiment has made, or nothing.

    `record` has what `stored` compares: the head and the images.
    """
    if run.settings.get("task", "").startswith("keeps"):  # it is asked another question
        return {}
    for file in sorted(path.parent.glob("*.json")):
        other = json.loads(file.read_text())
        same = all(other.get(key) == record[key] for key in ("data", "images", "base")) and alike(other, record)
        for made in other["runs"] if same else ():
            if made["settings"] == run.settings and made["seed"] == run.seed and file != path:
                return {**made, "label": run.label, "from": other["experiment"]}
    return {}


class RecordError(ValueError):
    """A record that cannot be used: one line that names its file."""


def stored(path: Path, head: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """Return the record at this path, or an empty one. Raises: RecordError if it has other settings or images."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return {**head, **seen, "runs": []}
    record: dict[str, Any] = json.loads(path.read_text())
    if {key: record.get(key) for key in head} != head:
        raise RecordError(f"{path}: its runs were made with other settings; move it away to begin anew")
    if not alike(record, seen):
        raise RecordError(f"{path}: its runs saw other images of the same name; move it away to begin anew")
    return record


def first(data: Dataset, count: int) -> Dataset:
    """Return `count` images of a data set, as many of each class as possible, in an order of their own."""
    order = np.random.default_rng(0).permutation(len(data.images))
    turn = np.zeros(len(order), int)  # the rank of an image within its class, in that order
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
    shown = {label: own for label, own in experiment.reported(runs).items() if own}
    columns = dict.fromkeys(key for own in shown.values() for key in scored(own[0]))
    if any(len(experiment.tried(label)) > 1 for label in shown):
        columns["chosen"] = None
    head = ["", *columns, "seeds", *(["the paper"] if experiment.paper else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, own in shown.items():
        cells = [written(experiment, own, column, runs) for column in columns]
        beside = [str(experiment.paper.get(label, ""))] if experiment.paper else []
        lines.append("| " + " | ".join([label, *cells, str(len(own)), *beside]) + " |")
    return "\n".join(lines)


def scored(run: dict[str, Any]) -> dict[str, float]:
    """Return the scores of h and z in a run; but none of z if no head was trained, though older records have one."""
    kinds = ("h ",) if run["settings"].get("task") in HEADLESS else ("h ", "z ")
    return {key: score for key, score in run.items() if key.startswith(kinds)}


def written(experiment: Experiment, own: list[dict[str, Any]], column: str, runs: list[dict[str, Any]]) -> str:
    """Write a cell: the mean and spread of a score, or the settings that were chosen among several."""
    if column != "chosen":
        return spread([scored(run)[column] for run in own if column in scored(run)])
    settings, tried = own[0]["settings"], experiment.tried(own[0]["label"])
    if len(tried) == 1:
        return ""
    known = [run["settings"] for run in runs if run["label"] == own[0]["label"] and run["seed"] == 0]
    count = sum(one in known for one in tried)
    named = ", ".join(f"{name} {settings[name]:g}" for name in ("temperature", "lr") if name in settings)
    return named + (f" ({count} of {len(tried)} tried)" if count < len(tried) else "")


def spread(values: list[float]) -> str:
    """Write the mean, and the standard deviation if there are several."""
    if not values:
        return "–"
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def draw(name: str, runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the figure of an experiment; needs matplotlib, the extra `plot`."""
    matrix(runs, path) if name == "pairs" else figure(EXPERIMENTS[name], runs, path)


MARKS = {"h linear": ("GREEN", "o"), "h kNN": ("BLUE", "s"), "z linear": ("GREY", "^")}  # score -> colour, shape


def figure(experiment: Experiment, runs: list[dict[str, Any]], path: Path) -> None:
    """Draw each score as a row of points: every seed, and a stroke at their mean; the paper's number at the edge."""
    sys.path.insert(0, str(RESULTS.parents[1] / "figures"))
    import style  # sets the style of all figures

    rows = {label: own for label, own in experiment.reported(runs).items() if own}
    drawing, axes = style.plt.subplots(figsize=(7.5, 1.1 + 0.36 * len(rows)), layout="constrained")
    for k, (column, (colour, shape)) in enumerate(MARKS.items()):
        how = {"color": getattr(style, colour), "label": column}
        for y, own in enumerate(rows.values()):
            if values := [scored(run)[column] for run in own if column in scored(run)]:
                place = y + 0.22 * (k - 1)
                axes.plot(values, [place] * len(values), shape, color=how["color"], markersize=4, alpha=0.55)
                axes.plot([statistics.fmean(values)], [place], "|", markersize=11, markeredgewidth=2, **how)
                how.pop("label", None)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for y, label in enumerate(rows):
        if label in experiment.paper:
            axes.text(1.01, y, f"paper: {experiment.paper[label]}", transform=axes.get_yaxis_transform(),
                      fontsize=8, color=style.SOFT, va="center")  # fmt: skip
    axes.set_xlabel("right answers on test images, per cent")
    axes.set_title(experiment.question, loc="left")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(MARKS), fontsize=8)
    drawing.savefig(path, metadata={"Software": None})
    style.plt.close(drawing)


def matrix(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the linear probe of every pair of changes as a square, as in the paper's Figure 5."""
    sys.path.insert(0, str(RESULTS.parents[1] / "figures"))
    import style

    values = np.full((len(CHANGES_OF_FIGURE_5),) * 2, np.nan)
    for i, j in itertools.product(range(len(values)), repeat=2):
        label = " + ".join(dict.fromkeys(CHANGES_OF_FIGURE_5[k] for k in sorted((i, j))))
        if own := [run["h linear"] for run in runs if run["label"] == label]:
            values[i, j] = statistics.fmean(own)
    drawing, axes = style.plt.subplots(figsize=(5.6, 4.6), layout="constrained")
    axes.imshow(values, cmap="Greens", vmin=np.nanmin(values) - 15)
    for (i, j), value in np.ndenumerate(values):
        dark = value > np.nanmin(values) + 0.6 * np.ptp(values[~np.isnan(values)])
        axes.text(j, i, "" if np.isnan(value) else f"{value:.0f}", ha="center", va="center",
                  color="white" if dark else style.INK)  # fmt: skip
    axes.set_xticks(range(len(values)), CHANGES_OF_FIGURE_5, rotation=35, ha="right")
    axes.set_yticks(range(len(values)), CHANGES_OF_FIGURE_5)
    axes.set_title("linear probe on h, per cent, by the two changes", loc="left")
    axes.spines[:].set_visible(False)
    drawing.savefig(path, metadata={"Software": None})
    style.plt.close(drawing)


def lengths(batch: int = 64) -> dict[str, float]:
    """Return the length of the first gradient of each objective and rival on a batch of doodles: why rates differ."""
    data = first(ms.load_dataset("doodles", "train", size=BASE["size"]), batch)
    tasks: dict[str, Settings] = {f"nt_xent, τ = {t:g}": {"temperature": t} for t in (0.1, 1.0)}
    tasks |= {name: {"objective": name, "temperature": 0.1} for name in LOSSES[1:]}
    tasks |= {name: {"task": name} for name in RIVALS}
    found = {}
    for label, changed in tasks.items():
        task = changed.pop("task", "")
        config = ms.Config(**BASE | DOODLES | changed)
        rng = np.random.default_rng(1)
        views = two_views(data.images, rng, config.size, config.strength, min_area=config.min_area)
        if task:
            model: Any = RIVALS[task](config, data.images, data.labels)
            loss = model.loss(np.concatenate(views), np.tile(np.arange(batch), 2), rng)
        else:
            model = build_model(config)
            loss = model.loss(*views, config.temperature)[0]
        loss.backward()
        found[label] = float(np.sqrt(sum(np.square(p.grad).sum() for p in model.parameters())))
    return found


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--data", default="doodles", help="folder or zip of labelled images (default: doodles)")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help=f"seeds of each run (default: {SEEDS})")
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help=f"training images (default: {IMAGES})")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--lengths", action="store_true", help="measure the first gradient of each task, and leave")
    parser.add_argument("--list", action="store_true", help="list the experiments and leave")
    parser.add_argument("--show", action="store_true", help="write table and figure of what is there; run nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - EXPERIMENTS.keys():
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    if not (options.names or options.list or options.lengths):
        parser.error("name an experiment, or give --list or --lengths")
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {options.seeds}")
    for label, length in lengths().items() if options.lengths else ():
        print(f"{label:24} {length:8.2f}")
    for name in options.names if not options.list else EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        if options.list:
            tried = sum(len(experiment.tried(label)) for label in experiment.settings)
            count = tried + len(experiment.settings) * (experiment.seeds - 1) + (6 if experiment.repeated else 0)
            print(f"{name:12} {count:3} runs  {experiment.question}")
            continue
        path = options.out / f"{name}-{shown(options.data)}.json"
        if options.show and not path.exists():
            return refused(f"there is no record {path}")
        try:
            runs = (
                json.loads(path.read_text())["runs"]
                if options.show
                else conduct(name, options.data, options.seeds, path, options.images)
            )
        except (RecordError, DataError) as error:
            return refused(str(error))
        print(f"\n{experiment.question} ({experiment.source or 'not in the paper'})\n\n{table(experiment, runs)}\n")
        if runs:
            draw(name, runs, path.with_suffix(".png"))
    return 0


def refused(line: str) -> int:
    """Print why nothing can be done, and return the exit code of it."""
    print(line, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
