"""Solutions of chapter 6: a receptive field measured by the engine, and a model without a head."""

from __future__ import annotations

from typing import Any

import numpy as np

import minisimclr as ms
from minisimclr.nn import Module


def measured_field(encoder: ms.ResNet, side: int) -> int:
    """The number of rows of a side×side image on which the middle pixel of the last map depends.

    train=False, because in training every pixel is normalized by a mean over all of them, and so depends on them.
    """
    rng = np.random.default_rng(0)
    image = ms.Tensor(rng.random((side, side, 1, 3)), requires_grad=True)  # (H,W,N,3)
    encoder = encoder.astype(np.float64)
    x = encoder.bn1(encoder.conv1(image), train=False, relu=True)
    for stage in range(encoder.stages):
        x = getattr(encoder, f"layer{stage + 1}")(x, train=False)
    one_pixel = np.zeros(x.shape)
    one_pixel[x.shape[0] // 2, x.shape[1] // 2] = 1
    x.backward(one_pixel)
    assert image.grad is not None
    return int(np.count_nonzero(np.abs(image.grad).sum(axis=(1, 2, 3))))


class NoHead(Module):
    """A head without layers: z = h."""

    def __call__(self, h: ms.Tensor, train: bool = False) -> ms.Tensor:
        return h


def probe_of(head: Module, images: Any, labels: Any, steps: int = 200, batch: int = 64) -> float:
    """Train the small encoder with this head, and return the accuracy of a linear probe on h, on the second half."""
    rng = np.random.default_rng(0)
    model = ms.SimCLR(ms.resnet_small(rng=np.random.default_rng(1)), head)  # type: ignore[arg-type]
    optimizer = ms.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        chosen = rng.choice(len(images), batch, replace=False)
        a, b = ms.two_views(images[chosen], rng, min_area=0.3)
        loss, _, _ = model.loss(a, b, temperature=0.2)
        loss.backward()
        optimizer.step(ms.warmup_cosine(step, steps, steps // 10, peak=0.1))
        optimizer.zero_grad()
    h, _ = ms.embed(model, images)
    half = len(images) // 2
    return ms.linear_probe(h[:half], labels[:half], h[half:], labels[half:])
