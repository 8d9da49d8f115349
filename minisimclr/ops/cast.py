"""From one floating-point dtype to another: where a network goes to half precision, and where it comes back."""

from __future__ import annotations

from typing import Any

from ..autograd import Vjp, primitive
from ..backend import Array


@primitive
def cast(xp: Any, x: Array, *, dtype: Any) -> tuple[Array, Vjp]:
    """x, rounded to another floating-point dtype.

    Shapes: x (…) -> (…)
    VJP:    dx = g, in the dtype of x
    """
    if xp.dtype(dtype).kind in "iub":
        raise TypeError(f"cast takes a floating-point dtype, not {xp.dtype(dtype)}: rounding has no gradient")
    before = x.dtype  # the vjp keeps the dtype, not x
    return x.astype(dtype), lambda g: g.astype(before)
