"""The sections of a run's page with numbers: curves, accuracies, settings."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..training import stored
from ..training.checkpoint import CheckpointError
from ..training.config import Config
from ..training.run import Metrics
from . import svg
from .findings import Findings, is_number
from .markup import Material, table, text

LARGEST_TABLE = 24  # number of classes of which each pair has a cell of the confusion
PAIRS = 10  # number of pairs of classes that are named as most often confused
LAST = 20  # number of steps over which the numbers of the end are averaged


# ── The head of the page ──────────────────────────────────────────────────────────────────────────


def name_of(findings: Findings) -> str:
    """Return the name of the run, safe to stand in HTML: that of its folder."""
    folder = findings.run.folder
    return text(folder.resolve().name) if folder else "A run"


def headline(findings: Findings) -> str:
    """Return the name of the run and what it was, in a sentence."""
    run, config = findings.run, findings.run.config
    data = text(Path(config.data).name or config.data)
    return (
        f'<h1>{name_of(findings)}</h1><p class="lead">SimCLR on <b>{data}</b>: {text(config.encoder)} encoder, '
        f"{run.steps:,} steps, N = {config.batch}, τ = {config.temperature:g}, seed {config.seed}</p>"
    )


def tiles(findings: Findings) -> str:
    """Return the numbers that one wants first."""
    found, history = [], findings.history
    if history:
        loss, top1 = (float(np.mean([line[name] for line in history[-LAST:]])) for name in ("loss", "top1"))
        found.append((f"{loss:.2f}", f"loss; chance is {history[-1]['chance']:.2f}"))
        found.append((f"{100 * top1:.0f} %", "contrastive top-1"))
    if findings.labelled:
        right = float((findings.voted == findings.test.labels).mean())
        chance = 100 / len(findings.test.class_names)
        found.append((f"{100 * right:.1f} %", f"kNN on h, k = {findings.k}; chance is {chance:.1f} %"))
    for score in findings.scores:
        if score.name == "SimCLR, h" and score.probe:
            found.append((f"{100 * next(iter(score.probe.values())):.1f} %", "linear probe on h"))
    if (seconds := cost(findings.record, findings.run.config)) is not None:
        found.append((duration(seconds), "of training"))
    return "".join(f'<div class="tile"><b>{number}</b><span>{label}</span></div>' for number, label in found)


def cost(record: list[Metrics], config: Config) -> float | None:
    """Return the seconds that the recorded steps took; None if the record does not say."""
    rates = [line.get("images_per_second") for line in record]
    known = [config.batch / rate for rate in rates if is_number(rate) and rate > 0]  # type: ignore[operator]
    return sum(known) if known else None


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(59.7), duration(3725)
    ('1 min 0 s', '1 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ── Curves ────────────────────────────────────────────────────────────────────────────────────────

CURVES = {  # what metrics.jsonl may hold: the title, and True for shares
    "loss": ("Loss", False),
    "top1": ("Contrastive top-1", True),
    "knn": ("kNN accuracy over time", True),
    "alignment": ("Alignment", False),
    "uniformity": ("Uniformity", False),
    "rank": ("Effective rank", False),
    "spread": ("Spread", False),
    "lr": ("Learning rate", False),
    "images_per_second": ("Speed, images per second", False),
}


def training(material: Material) -> str:
    """Return the curves of all that was recorded."""
    if not material.findings.history:
        return material.section("training", "Training", "<p>metrics.jsonl holds nothing to draw.</p>")
    figures = []
    for key, (title, percent) in CURVES.items():
        lines = [line for line in material.findings.record if is_number(line.get(key))]
        if key in ("loss", "top1"):
            lines = material.findings.history
        if not lines:
            continue
        drawn = svg.curve(
            title,
            [line["step"] + 1 for line in lines],
            [line[key] for line in lines],
            levels=levels(material.findings) if key == "loss" else (),
            percent=percent,
            exact=key == "lr",
        )
        figures.append(f"<figure><h3>{title}</h3>{drawn}{material.meaning(key)}</figure>")
    advice = dict.fromkeys(text(line["advice"], 200) for line in material.findings.record if "advice" in line)
    said = "".join(f'<p class="advice">The monitor advised: {words}.</p>' for words in advice)
    return material.section("training", "Training", f'{said}<div class="pair">{"".join(figures)}</div>')


def levels(findings: Findings) -> list[svg.Level]:
    """Return the two lines between which the loss belongs, (9.1): chance, and the floor that nothing goes below."""
    n, temperature = findings.run.config.batch, findings.run.config.temperature
    chance = float(findings.history[-1]["chance"])
    if findings.run.config.objective != "nt_xent":  # the others have other floors, or none
        return [svg.Level(chance, f"chance, {chance:.2f}")]
    exponent = -(1 + 1 / (n - 1)) / temperature  # of a negative, against the positive, if all are equally far away
    floor = math.log1p((2 * n - 2) * math.exp(exponent))
    return [svg.Level(chance, f"chance, log(2N − 1) = {chance:.2f}"), svg.Level(floor, f"floor, {floor:.2f}")]


# ── Right and wrong ───────────────────────────────────────────────────────────────────────────────


def accuracy(material: Material) -> str:
    """Return the table of `minisimclr evaluate`."""
    scores = material.findings.scores
    if not scores:
        content = "<p>The table is missing: <code>minisimclr evaluate</code> measures it.</p>"
        return material.section("accuracy", "Accuracy", content, "accuracy")
    splits = list(scores[0].knn)
    head = ["percent", *(f"{text(split)}, {kind}" for split in splits for kind in ("kNN", "linear"))]
    rows = [
        [text(score.name), *(f"{100 * kind[split]:.1f}" for split in splits for kind in (score.knn, score.probe))]
        for score in scores
    ]
    return material.section("accuracy", "Accuracy", table(rows, head, "numbers"), "accuracy")


def confusion(material: Material) -> str:
    """Return the pairs of classes that are confused, and a table of all pairs if there are not too many."""
    findings = material.findings
    names = [material.class_name(label) for label in range(len(findings.test.class_names))]
    count = np.zeros((len(names), len(names)), np.int64)  # (K,K): true class, class that the neighbours vote for
    np.add.at(count, (findings.test.labels, findings.voted), 1)
    totals, wrong = count.sum(axis=1), count - np.diag(np.diag(count))
    pairs = [divmod(int(k), len(names)) for k in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
    lines = [
        f"<li>{names[true]} → {names[voted]}: {wrong[true, voted]:,} of {totals[true]:,}</li>"
        for true, voted in pairs
        if wrong[true, voted]
    ]
    content = f'<h3>Most often confused</h3><ul class="columns">{"".join(lines) or "<li>none</li>"}</ul>'
    if len(names) <= LARGEST_TABLE:
        share = count / np.maximum(totals, 1)[:, None]
        rows = [[name, *(_heat(share[k, j], k == j) for j in range(len(names)))] for k, name in enumerate(names)]
        content = table(rows, ["", *(f"<span>{name}</span>" for name in names)], "confusion") + content
    return material.section("confusion", "Confusion", content, "confusion")


def _heat(share: float, right: bool) -> str:
    number = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td class="{"right" if right else "off"}" style="--p:{share:.2f}">{number}</td>'


# ── Settings and environment ──────────────────────────────────────────────────────────────────────


def settings(material: Material) -> str:
    """Return how the run was made: its settings, where, and at which cost."""
    run, rows = material.findings.run, []
    for item in dataclasses.fields(Config):
        value = getattr(run.config, item.name)
        said = text(f"{value:g}" if isinstance(value, float) else value)
        rows.append([item.name, f"<b>{said}</b>" if value != item.default else said, text(item.metadata["help"], 400)])
    facts = [["parameters", f"{sum(p.data.size for p in run.model.parameters()):,}"], ["steps", f"{run.steps:,}"]]
    if run.images:
        facts.append(["images", text(run.images)])
    if (seconds := cost(material.findings.record, run.config)) is not None:
        facts.append(["training", duration(seconds)])
    facts += [[text(name), text(value)] for name, value in environment(run.folder).items()]
    content = (
        f'<div class="pair made"><div><h3>Environment and cost</h3>{material.meaning("environment")}{table(facts)}'
        f"</div><div><h3>Configuration</h3>{material.meaning('settings')}{table(rows, kind='settings')}</div></div>"
    )
    return material.section("settings", "How it was made", content)


def environment(folder: Path | None) -> dict[str, Any]:
    """Return the environment that the checkpoint names; nothing without one."""
    try:
        return stored.read_text(folder / "checkpoint.npz").environment if folder else {}
    except CheckpointError:
        return {}
