"""Displays of a run, a data set and a model: in a line of text, and in a notebook.

It is given to the classes from here, at the end of this file, so that they can be read without it. A notebook calls
`_repr_html_`. Whatever comes from a file is escaped; a picture is part of the text, and nothing is loaded.
"""

from __future__ import annotations

import base64
import html
import math
from typing import Any

import numpy as np

from .data import Dataset, taken
from .module import Module
from .training.run import Run

IMAGES = 32  # number of images of a data set that a notebook shows
POINTS = 400  # number of points of a curve, which is 600 pixels wide
LISTED = 5  # number of classes that are named in a line


# ── A data set ────────────────────────────────────────────────────────────────────────────────────


def dataset_text(data: Dataset) -> str:
    """Say in a line what a data set holds.

    >>> import minisimclr as ms
    >>> ms.load_dataset("doodles", "test", limit=20)
    Dataset(20 images of 32×32, 16 classes: apple, balloon, butterfly, car, cat …)
    """
    if type(data) is not Dataset:
        return repr(data)
    n, high, wide = data.images.shape[:3]
    known = ", ".join(map(str, data.class_names[:LISTED])) + (" …" if len(data.class_names) > LISTED else "")
    kinds = len(data.class_names)
    return f"Dataset({n:,} images of {high}×{wide}, {kinds} class{'es' * (kinds != 1)}: {known})"


def dataset_html(data: Dataset) -> str:
    """Show some images of a data set, evenly spread, and how many there are of each class."""
    from .report.sheet import grid  # Pillow: what shows no picture need not load it

    chosen = np.linspace(0, len(data) - 1, min(IMAGES, len(data))).astype(int) if len(data) else np.empty(0, int)
    counts = np.bincount(data.labels[data.labels >= 0], minlength=len(data.class_names))
    most = ", ".join(f"{html.escape(str(name))} {count:,}" for name, count in zip(data.class_names[:50], counts))
    picture = base64.b64encode(grid(np.asarray(taken(data)[chosen]))).decode() if len(data) else ""
    shown = f'<img alt="{len(chosen)} of the images" src="data:image/png;base64,{picture}">' if picture else ""
    return f"<div><p>{html.escape(dataset_text(data))}</p>{shown}<p><small>{most}</small></p></div>"


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────


def run_text(run: Run) -> str:
    """Say in a line how far a run is, what it trains, and where it is kept.

    >>> import minisimclr as ms
    >>> from minisimclr.training.config import build_model
    >>> ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
    Run(0 steps done, small encoder, data doodles, batch 256, temperature 0.1, seed 0, not kept in a folder)
    """
    c = run.config
    place = f"in {run.folder}" if run.folder is not None else "not kept in a folder"
    return (
        f"Run({run.steps:,} step{'s' * (run.steps != 1)} done, {c.encoder} encoder, data {c.data}, batch {c.batch}, "
        f"temperature {c.temperature:g}, seed {c.seed}, {place})"
    )


def run_html(run: Run) -> str:
    """Show the loss of a run beside its chance level."""
    numbers = [(line.get("step"), line.get("loss"), line.get("chance")) for line in run.history]
    points = [p for p in numbers if all(isinstance(v, (int, float)) and math.isfinite(v) for v in p)]  # from a file
    return f"<div><p>{html.escape(run_text(run))}</p>{_curve(points) if len(points) > 1 else ''}</div>"


def _curve(points: list[Any]) -> str:
    """Draw the loss over the steps as SVG, and the chance level as a dashed line; currentColor suits dark pages."""
    wide, high, low, chance = 600, 160, 0.0, float(points[-1][2])
    top = max(chance, *(loss for _, loss, _ in points)) * 1.05 or 1.0
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    pieces = np.array_split(np.array([p[:2] for p in points], float), min(POINTS, len(points)))  # means of neighbours
    place = [
        (wide * (step - first) / (last - first), high * (1 - (loss - low) / top))
        for step, loss in (piece.mean(axis=0) for piece in pieces)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    level = high * (1 - chance / top)
    said = f"loss {points[-1][1]:.3f} after {int(points[-1][0]) + 1:,} steps; the dashed line is chance, {chance:.2f}"
    return (
        f'<svg viewBox="0 0 {wide} {high}" width="{wide}" role="img" aria-label="{said}" '
        f'style="max-width:100%;border-bottom:1px solid">'
        f'<line x1="0" x2="{wide}" y1="{level:.1f}" y2="{level:.1f}" stroke="currentColor" stroke-dasharray="4 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#3f7fdf" stroke-width="2"/></svg><p><small>{said}</small></p>'
    )


# ── A model ───────────────────────────────────────────────────────────────────────────────────────


def module_html(module: Module) -> str:
    """Show the number of parameters, and the tree of layers when it is opened."""
    head, _, rest = repr(module).partition("\n")
    title = html.escape(" ".join(head.split()))
    tree = html.escape(f"{head}\n{rest}" if rest else head)
    return f"<details><summary>{title}</summary><pre>{tree}</pre></details>"


Dataset.__repr__ = dataset_text  # type: ignore[method-assign, assignment]
Run.__repr__ = run_text  # type: ignore[method-assign, assignment]
Dataset._repr_html_ = dataset_html  # type: ignore[attr-defined]
Run._repr_html_ = run_html  # type: ignore[attr-defined]
Module._repr_html_ = module_html  # type: ignore[attr-defined]
