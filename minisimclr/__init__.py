"""SimCLR from scratch, in NumPy and CuPy."""

from . import ops
from .autograd import Tensor, no_grad, primitive, saved_bytes

__all__ = ["Tensor", "no_grad", "ops", "primitive", "saved_bytes"]
