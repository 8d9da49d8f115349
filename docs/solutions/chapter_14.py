"""Solutions of chapter 14: accumulation where it is exact, and the gradient cut at h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import minisimclr as ms


def accumulated(gradient_of_mean: Callable[[Any], Any], rows: Any, parts: list[slice]) -> Any:
    """The gradient of a mean over rows, from the gradients of the means over parts of them.

    A part counts by its share of the rows: only with parts of equal size is that the plain mean of the gradients.
    """
    return sum(len(rows[part]) / len(rows) * gradient_of_mean(rows[part]) for part in parts)


def gradient_cut_at_h(model: ms.SimCLR, a: Any, b: Any, parts: list[slice], temperature: float, train: bool) -> None:
    """Add the gradient of NT-Xent to the parameters: the encoder runs part by part, the head once on all rows.

    So the head's batch norm sees the whole batch, and only the encoder's sees a part of it.
    """

    def encode(part: slice) -> ms.Tensor:
        return model.encoder(np.concatenate([a[part], b[part]]), train)

    with ms.no_grad():
        halves = [np.split(encode(part).data, 2) for part in parts]
    h = ms.Tensor(np.concatenate([half[k] for k in (0, 1) for half in halves]), requires_grad=True)  # (2N,features)
    z, n = model.head(h, train), len(a)
    ms.nt_xent(z[:n], z[n:], temperature).backward()  # trains the head, and leaves ∂L/∂h in h.grad
    assert h.grad is not None
    for part in parts:
        encode(part).backward(np.concatenate([h.grad[:n][part], h.grad[n:][part]]))
