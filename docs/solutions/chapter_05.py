"""Solutions of chapter 5: the derivative by the temperature, and what forgetting one role of an embedding costs."""

from __future__ import annotations

from typing import Any

import numpy as np


def probabilities(z: Any, temperature: float) -> tuple[Any, Any, Any]:
    """Return P (2N,2N), the cosines C (2N,2N) and the positives (2N,) of stacked views z (2N,D)."""
    n = len(z)
    u = z / np.linalg.norm(z, axis=1, keepdims=True)  # (5.2)
    cosine = u @ u.T  # (5.3)
    logits = cosine / temperature
    np.fill_diagonal(logits, -np.inf)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True), cosine, (np.arange(n) + n // 2) % n  # (5.7)


def temperature_gradient(za: Any, zb: Any, temperature: float) -> float:
    """∂L/∂τ: how much the loss would change if the temperature were learned.

    ℓᵢ = log Σ exp(c_ik/τ) − c_ip/τ. Each logit c/τ changes by −c/τ² for each unit of τ, so the derivative is −1/τ²
    times what a row expects of its cosines, Σ P_ij c_ij, less the cosine of its positive. While the positive is more
    similar than the average choice, the derivative is positive: a lower temperature lowers the loss. A network that
    may learn its τ must be held from making it 0.
    """
    p, cosine, positive = probabilities(np.concatenate([za, zb]), temperature)
    expected = (p * cosine).sum(axis=1)  # (2N,)
    return float((cosine[np.arange(len(p)), positive] - expected).mean() / temperature**2)


def gradient_of_one_role(za: Any, zb: Any, temperature: float) -> Any:
    """dz (2N,D) without Gᵀ in (5.10): each embedding is an anchor, and never a choice of another one."""
    z = np.concatenate([za, zb])
    p, _, positive = probabilities(z, temperature)
    g = p.copy()
    g[np.arange(len(z)), positive] -= 1
    g /= len(z) * temperature  # (5.9)
    length = np.linalg.norm(z, axis=1, keepdims=True)
    u = z / length
    du = g @ u
    return (du - u * (u * du).sum(axis=1, keepdims=True)) / length  # (5.11)
