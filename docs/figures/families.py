"""Train the small encoder by one task of each family, for chapter 0: turned images, two views, hidden parts.

    MINISIMCLR_THREADS=1 python docs/figures/families.py       # all runs, about six minutes of CPU time
    python docs/figures/families.py --table                    # the table of what is stored

Everything but the task is the same: the encoder, 64 images a step in two views each, the optimizer, the number of
steps. Runs that are in the JSON already are not repeated.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from findings_sweep import spread

import minisimclr as ms
from minisimclr import ops
from minisimclr.nn import Linear
from minisimclr.processor import blas_at_one_thread

RESULTS = Path(__file__).resolve().parent.parent / "results" / "families" / "sweep.json"
STEPS, BATCH, PEAK, SEEDS = 200, 64, 0.1, (0, 1, 2)
SIDE, PATCH, HIDDEN = 32, 8, 0.5  # of an image and of a patch, pixels; the share of patches that is hidden
QUESTIONS = {"thing": "which of 16 things", "turn": "which of 4 turns", "red": "which quarter by redness"}

Task = Callable[[Any, Any, np.random.Generator], Any]  # views a, views b, random numbers -> the loss


# ── A task of each family: the loss of a batch, and the layer that is trained beside the encoder ──


def context_based(encoder: Any, rng: np.random.Generator) -> tuple[Task, list[Any]]:
    """Turn each view by 0, 90, 180 or 270 degrees, and ask by how much (Gidaris et al. 2018)."""
    classifier = Linear(encoder.features, 4, rng=rng)

    def loss(a: Any, b: Any, rng: np.random.Generator) -> Any:
        images, turns = np.concatenate([a, b]), rng.integers(0, 4, 2 * len(a))
        return ops.cross_entropy(classifier(encoder(turned(images, turns), train=True)), labels=turns)

    return loss, classifier.parameters()


def contrastive(encoder: Any, rng: np.random.Generator) -> tuple[Task, list[Any]]:
    """Ask which view shows the same image: SimCLR."""
    model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    return lambda a, b, _: model.loss(a, b, temperature=0.2)[0], model.head.parameters()


def masked(encoder: Any, rng: np.random.Generator) -> tuple[Task, list[Any]]:
    """Hide half of the patches of each view, and ask for their pixels."""
    decoder = Linear(encoder.features, SIDE * SIDE * 3, rng=rng)

    def loss(a: Any, b: Any, rng: np.random.Generator) -> Any:
        images = np.concatenate([a, b])  # (2N,32,32,3)
        hidden = rng.random((len(images), SIDE // PATCH, SIDE // PATCH, 1)) < HIDDEN
        hidden = hidden.repeat(PATCH, axis=1).repeat(PATCH, axis=2)  # (2N,32,32,1)
        guess = decoder(encoder(np.where(hidden, np.float32(0.5), images), train=True))
        missed = (guess - images.reshape(len(images), -1)) * (hidden * np.ones(3, np.float32)).reshape(len(images), -1)
        return (missed * missed).mean()

    return loss, decoder.parameters()


FAMILIES = {"context-based: by how much was it turned?": context_based,
            "contrastive: SimCLR": contrastive,
            "masked: what is below the grey?": masked}  # fmt: skip


def turned(images: Any, turns: Any) -> Any:
    """Turn each image by its number of right angles: (N,S,S,…), (N,) -> (N,S,S,…)."""
    return np.stack([np.rot90(image, turn) for image, turn in zip(images, turns)])


# ── Training, and what can be read from h afterwards ──────────────────────────────────────────────


def trained(family: Any, images: Any, seed: int) -> Any:
    """The encoder after STEPS steps of a task; without a task as it was drawn."""
    encoder = ms.resnet_small(rng=np.random.default_rng([seed, 0]))
    if family is None:
        return encoder
    loss_of, others = family(encoder, np.random.default_rng([seed, 1]))
    optimizer = ms.SGD([*encoder.parameters(), *others], lr=PEAK, weight_decay=1e-4)
    rng, own = np.random.default_rng([seed, 2]), np.random.default_rng([seed, 3])
    for step in range(STEPS):
        chosen = rng.choice(len(images), BATCH, replace=False)
        a, b = ms.two_views(images[chosen], rng, min_area=0.3)  # all families see the same views
        loss_of(a, b, own).backward()
        optimizer.step(ms.warmup_cosine(step, STEPS, STEPS // 20, PEAK))
        optimizer.zero_grad()
    return encoder


def answers(encoder: Any, train: ms.Dataset, test: ms.Dataset) -> dict[str, float]:
    """The accuracy of linear classifiers on h, in percent: what it knows of an image."""
    model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128))
    rng, found, parts = np.random.default_rng(0), {}, (train, test)
    h = [ms.embed(model, part.images)[0] for part in parts]
    red = [part.images[..., 0].mean(axis=(1, 2)) - part.images[..., 2].mean(axis=(1, 2)) for part in parts]
    edges = np.quantile(red[0], [0.25, 0.5, 0.75])
    turns = [rng.integers(0, 4, len(part)) for part in parts]
    of_turned = [ms.embed(model, turned(part.images, turn))[0] for part, turn in zip(parts, turns)]
    for name, features, labels in (
        ("thing", h, [part.labels for part in parts]),
        ("turn", of_turned, turns),
        ("red", h, [np.searchsorted(edges, part).astype(np.int64) for part in red]),
    ):
        found[name] = 100 * ms.linear_probe(features[0], labels[0], features[1], labels[1])
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of what is stored, a row for each family, in Markdown."""
    lines = [f"| task | {' | '.join(QUESTIONS.values())} | seeds |", "|---|---|---|---|---|"]
    for name in ("untrained", *FAMILIES):
        if own := [row for row in runs if row["task"] == name]:
            cells = " | ".join(spread([row[key] for row in own]) for key in QUESTIONS)
            lines.append(f"| {name} | {cells} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(row["task"], row["seed"]) for row in runs}
    train, test = (ms.load_dataset("doodles", split) for split in ("train", "test"))
    for seed in SEEDS:
        for name, family in {"untrained": None, **FAMILIES}.items():
            if "--table" in sys.argv or (name, seed) in done:
                continue
            with blas_at_one_thread():
                runs.append({"task": name, "seed": seed, **answers(trained(family, train.images, seed), train, test)})
            print(runs[-1], flush=True)
            settings = {"steps": STEPS, "batch": BATCH, "peak": PEAK, "patch": PATCH, "hidden": HIDDEN}
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
