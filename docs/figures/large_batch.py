"""Print the tables of chapter 14: how far gradients by parts are from the gradient of the whole batch.

python docs/figures/large_batch.py        (about a minute on two cores)

The small encoder, 256 doodles, τ = 0.1, seed 0; with random weights, and after 100 steps of 128 images. Each number is
the cosine between two gradients, over all parameters. `--images N --steps N` measure another case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

import minisimclr as ms
from minisimclr.data.doodles import draw_doodles
from minisimclr.training.large_batch import even_parts, loss_by_chunks, statistics_kept

TEMPERATURE, MIN_AREA = 0.1, 0.3  # of the demo


def gradient(model: ms.SimCLR, losses: list[Callable[[], Any]]) -> Any:
    """The mean gradient of some losses, as one row; neither gradients nor running statistics are left changed."""
    with statistics_kept(model):
        for loss in losses:
            loss().backward()
    row = np.concatenate([p.grad.ravel() for p in model.parameters()]) / len(losses)
    model.zero_grad()
    return row.astype(float)


def cosine(x: Any, y: Any) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def one_graph(model: ms.SimCLR, a: Any, b: Any, train: bool) -> Callable[[], Any]:
    def loss() -> Any:
        _, z = model(np.concatenate([a, b]), train)
        return ms.nt_xent(z[: len(a)], z[len(a) :], TEMPERATURE)

    return loss


def by_chunks(model: ms.SimCLR, a: Any, b: Any, chunk: int) -> Callable[[], Any]:
    return lambda: loss_by_chunks(model, a, b, TEMPERATURE, chunk=chunk)[0]


def train(model: ms.SimCLR, images: Any, steps: int) -> None:
    """Train the model a little, so that it is no longer random."""
    rng = np.random.default_rng(1)
    optimizer = ms.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    for step in range(steps):
        chosen = rng.choice(len(images), min(128, len(images)), replace=False)
        loss, _, _ = model.loss(*ms.two_views(images[chosen], rng, min_area=MIN_AREA), TEMPERATURE)
        loss.backward()
        optimizer.step(ms.warmup_cosine(step, steps, steps // 10, 0.1))
        optimizer.zero_grad()


def compare(model: ms.SimCLR, images: Any) -> None:
    """Print a line for each size of the parts."""
    count = len(images)
    a, b = ms.two_views(images, np.random.default_rng(2), min_area=MIN_AREA)  # float32 (N,32,32,3) each
    other = ms.two_views(images, np.random.default_rng(3), min_area=MIN_AREA)
    running, batch = (gradient(model, [one_graph(model, a, b, train)]) for train in (False, True))
    print(f"other views of the same images: {cosine(batch, gradient(model, [one_graph(model, *other, True)])):.2f}")
    print("images in a part | added up, running statistics | added up, of the batch | in chunks, of the batch")
    for size in (count // 2, count // 4, count // 8, count // 16, count // 64):
        parts = even_parts(count, size)
        added = [gradient(model, [one_graph(model, a[p], b[p], train) for p in parts]) for train in (False, True)]
        cached = gradient(model, [by_chunks(model, a, b, size)])
        row = cosine(added[0], running), cosine(added[1], batch), cosine(cached, batch)
        print(f"{size} | " + " | ".join(f"{value:.2f}" for value in row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    images, _, _ = draw_doodles(options.images, seed=0)
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(rng=rng)
    model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng))
    with ms.no_grad():  # running statistics that mean something
        for _ in range(20):
            model.loss(*ms.two_views(images[:128], rng, min_area=MIN_AREA), TEMPERATURE)
    print("random weights")
    compare(model, images)
    train(model, images, options.steps)
    print(f"after {options.steps} steps")
    compare(model, images)


if __name__ == "__main__":
    main()
