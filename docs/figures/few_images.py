"""Print the table of chapter 9 on few images: 200 steps on 200 doodles, and on all 5,000.

python docs/figures/few_images.py        (about three minutes on two cores)
"""

from __future__ import annotations

from typing import Any

import numpy as np

import minisimclr as ms

STEPS, BATCH, TEMPERATURE, PEAK = 200, 128, 0.2, 0.1


def trained(images: Any) -> tuple[ms.SimCLR, float]:
    """A small model after STEPS steps, and the mean top-1 of the last twenty."""
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(rng=np.random.default_rng(1))
    model = ms.SimCLR(encoder, ms.ProjectionHead(128, 128, 128, rng=np.random.default_rng(2)))
    optimizer = ms.SGD(model.parameters(), lr=PEAK, weight_decay=1e-4)
    found = []
    for step in range(STEPS):
        chosen = rng.choice(len(images), BATCH, replace=False)
        a, b = ms.two_views(images[chosen], rng, min_area=0.3)
        loss, za, zb = model.loss(a, b, TEMPERATURE)
        loss.backward()
        optimizer.step(ms.warmup_cosine(step, STEPS, 15, PEAK))
        optimizer.zero_grad()
        found.append(float(ms.contrastive_accuracy(za, zb)))
    return model, float(np.mean(found[-20:]))


def top1_of_new(model: ms.SimCLR, images: Any) -> float:
    """The mean top-1 of four batches of images that were not trained on, with running statistics."""
    rng = np.random.default_rng(9)
    found = []
    for k in range(4):
        views = ms.two_views(images[k * BATCH : (k + 1) * BATCH], rng, min_area=0.3)
        za, zb = (ms.embed(model, (v * 255).astype(np.uint8))[1] for v in views)
        found.append(float(ms.contrastive_accuracy(za, zb)))
    return float(np.mean(found))


def main() -> None:
    train, test = (ms.load_dataset("doodles", split) for split in ("train", "test"))
    for count in (200, 5000):
        model, seen = trained(train.images[:count])
        h, h_test = (ms.embed(model, data.images)[0] for data in (train, test))
        scores = [score(h, train.labels, h_test, test.labels) for score in (ms.knn_accuracy, ms.linear_probe)]
        print(count, *(f"{100 * share:.1f}" for share in (seen, top1_of_new(model, test.images), *scores)))


if __name__ == "__main__":
    main()
