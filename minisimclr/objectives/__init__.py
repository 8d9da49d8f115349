"""Objectives beside NT-Xent, and the choice by name.

NT-Xent comes first: it is SimCLR's loss, the default, and has a folder of its own. The others are here to be compared
with it: those of the paper's Table 4, the decoupled loss, and SupCon. Each is the mean over 2N anchors of two terms,
one that pulls an anchor to its positive and one that pushes it from its negatives. Each is a function of the cosines,
with its derivative by hand right below it.

    nt_xent                NT-Xent                                  −log softmax of the positive
    decoupled              NT-Xent without the positive in its denominator (Yeh et al. 2021)
    nt_logistic            a logistic classifier of pairs, positive or negative
    triplet                a hinge: the positive is nearer than a negative by a margin
    …_semi_hard            the same with one negative an anchor: the nearest that is farther than the positive

SupCon needs the classes of the images, so pre-training does not offer it: `supcon(z, labels=…)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from ..collective import Ranks
from ..engine.autograd import Tensor
from ..ntxent import nt_xent, shared
from ..values import one_of
from .dcl import decoupled
from .hinge import triplet
from .logistic import nt_logistic
from .supervised import supcon

__all__ = ["OBJECTIVES", "chance", "decoupled", "named", "nt_logistic", "nt_xent", "supcon", "triplet"]

Objective: TypeAlias = Callable[..., Tensor]  # za (N,D), zb (N,D), temperature -> scalar

OBJECTIVES = ("nt_xent", "decoupled", "nt_logistic", "nt_logistic_semi_hard", "triplet", "triplet_semi_hard")


def named(name: str, *, margin: float = 0.4, ranks: Ranks | None = None) -> Objective:
    """Return an objective as a function of za, zb and the temperature. For NT-Xent a model chooses the form itself.

    margin  of the triplets, which have no temperature: they take it and do not use it
    ranks   the processes that share each batch; NT-Xent alone is computed among several

    >>> import numpy as np
    >>> round(named("decoupled")(np.eye(2), np.eye(2), 0.5).item(), 4)  # −2 + log(2·e⁰)
    -1.3069

    Raises: ValueError for a name that is not in OBJECTIVES, and for any but NT-Xent with several ranks.
    """
    name = one_of("objective", name, OBJECTIVES)
    if ranks is not None and ranks.size > 1:
        if name != "nt_xent":
            raise ValueError(f"objective {name} needs one process: leave out --distributed, or use nt_xent")
        return partial(shared.nt_xent, ranks=ranks)
    kind, semi_hard = name.removesuffix("_semi_hard"), name.endswith("_semi_hard")
    forms: dict[str, Objective] = {
        "nt_xent": nt_xent,
        "decoupled": decoupled,
        "nt_logistic": partial(nt_logistic, semi_hard=semi_hard),
        "triplet": _without_temperature(partial(triplet, margin=margin, semi_hard=semi_hard)),
    }
    return forms[kind]


def _without_temperature(objective: Objective) -> Objective:
    return lambda za, zb, temperature: objective(za, zb)


def chance(name: str, count: int, margin: float = 0.4) -> float:
    """Return the objective of `count` images whose embeddings tell nothing: every cosine is 0.

    >>> round(chance("nt_xent", 128), 3), round(chance("nt_logistic", 128), 3), chance("triplet", 128)
    (5.541, 1.386, 0.4)
    """
    if name.startswith("triplet"):
        return margin
    if name.startswith("nt_logistic"):
        return 2 * math.log(2)  # a pair is positive or negative: one bit each
    return math.log(2 * count - 1 - (name == "decoupled"))
