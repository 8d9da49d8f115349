"""Solutions of chapter 2: cumulative sums and log-softmax, each with its vjp."""

from __future__ import annotations

from typing import Any

import numpy as np

import minisimclr as ms


@ms.primitive
def cumsum(xp: Any, x: Any) -> Any:
    """Cumulative sums along the last axis.

    δL = Σᵢ gᵢ Σ_{j≤i} δxⱼ = Σⱼ (Σ_{i≥j} gᵢ) δxⱼ: the sums run from the other end.
    """
    return xp.cumsum(x, axis=-1), lambda g: xp.cumsum(g[..., ::-1], axis=-1)[..., ::-1]


@ms.primitive
def log_softmax(xp: Any, s: Any) -> Any:
    """s − log Σ eˢ along the rows (N,K).

    δyₖ = δsₖ − Σₗ Pₗ δsₗ, so δL = Σₖ (gₖ − Pₖ Σₗ gₗ) δsₖ, and P is e to the power of the output.
    """
    shifted = s - s.max(axis=1, keepdims=True)  # (N,K)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    return y, lambda g: g - xp.exp(y) * g.sum(axis=1, keepdims=True)


def cross_entropy(logits: ms.Tensor, labels: Any) -> ms.Tensor:
    """Mean of −log softmax(logits)[label]. With g = −Y/N the vjp above is (P − Y)/N, which is (2.10)."""
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()
