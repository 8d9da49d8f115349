"""Batch norm of a batch that several processes share.

The plain and the fused form know the rows of one process alone, its *rank*. If each normalized by the statistics of its
own share, W processes would train another network than one process does. Two short messages for each layer mend that:

forward    every rank gets the number of rows, the mean and the variance of all ranks, and combines them by (4.10)
backward   the two sums of (4.4) are added up over the ranks, and (4.7) takes them in the place of its own (14.4)

The gradients of scale and shift stay those of the rank: the training loop adds them up with all other gradients.
Messages are in float64: they are short, and a number of rows beyond 2²⁴ would not fit into float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...backend import Array, array_module
from ...collective import Ranks


def moments(xp: Any, mean: Array, variance: Array, count: int, ranks: Ranks | None) -> tuple[Array, Array, int]:
    """Combine the statistics of the ranks' rows into those of all rows; without other ranks, return them as they are.

    Shapes: mean (C,), variance (C,), rows of this rank -> mean (C,), variance (C,), rows of all ranks
    """
    if ranks is None or ranks.size == 1:
        return mean, variance, count
    message = xp.stack([xp.full(mean.shape, count, xp.float64), mean, variance])  # (3,C)
    counts, means, variances = ranks.all_gather(message).swapaxes(0, 1)  # (W,C) each
    total = counts.sum(axis=0)  # (C,), the same number in each channel
    part = counts / total  # (W,C), each rank's part of the rows
    whole = (part * means).sum(axis=0)  # (C,)                                          (4.10)
    # The mean of the variances, plus the variance of the means: nothing large cancels.
    spread = (part * (variances + (means - whole) ** 2)).sum(axis=0)  # (C,)            (4.10)
    return whole.astype(mean.dtype), spread.astype(variance.dtype), int(total[0])


def totals_of(ranks: Ranks | None) -> Callable[[Array, Array, int], tuple[Array, Array, int]]:
    """Return the function that adds up the two sums of (4.4), and the number of rows, over the ranks.

    Shapes: dshift (C,), dscale (C,), rows of this rank -> the same of all ranks; as they are without other ranks
    """

    def totals(dshift: Array, dscale: Array, count: int) -> tuple[Array, Array, int]:
        if ranks is None or ranks.size == 1:
            return dshift, dscale, count
        xp = array_module(dshift)
        message = xp.stack([dshift, dscale, xp.full(dshift.shape, count)]).astype(xp.float64)  # (3,C)
        all_shift, all_scale, rows = ranks.all_reduce(message)  # (C,) each
        return all_shift.astype(dshift.dtype), all_scale.astype(dscale.dtype), int(rows[0])

    return totals
