"""Solutions of chapter 8: how a kernel before batch norm slows itself down, and two more schedules."""

from __future__ import annotations

import math

import minisimclr as ms


def proportions(steps: int, lr: float) -> list[float]:
    """|step| / |w| of each step of gradient descent, for a kernel of length 1 and a gradient of length 1 there.

    By (4.9) the gradient of a kernel of length r has length 1/r and stands at right angles to it. So a step turns r
    into √(r² + (lr/r)²) by Pythagoras, and r² grows by lr²/r² each time: r⁴ by about 2·lr². The proportion lr/r² then
    falls like 1/√(2t), whatever lr was: after a while the rate that was chosen is forgotten.
    """
    found, r = [], 1.0
    for _ in range(steps):
        step = lr / r
        found.append(step / r)
        r = math.hypot(r, step)
    return found


def warmup_linear(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Up a straight line, and down another."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * max(0.0, (total_steps - step) / (total_steps - warmup_steps))


def restarts(step: int, total_steps: int, warmup_steps: int, peak: float, times: int = 3) -> float:
    """A warm-up, and then `times` cosines of equal length, one after the other."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    length = (total_steps - warmup_steps) / times
    within = (step - warmup_steps) % length if step < total_steps else length
    return ms.warmup_cosine(round(1e6 * within / length), 1_000_000, 0, peak)
