"""The functions that a ResNet is made of, each with its derivative right below its value.

To add an operation, import it here: `__all__` is collected from the imports.
"""

# ruff: noqa: F401 (a name that is imported here is thereby public)

from . import operators as _operators  # attaches x + y, x @ y, x[index] … to Tensor
from .basic import add, divide, exp, log, matmul, max, maximum, mean, multiply, negative, power, relu, subtract, sum
from .conv import conv2d
from .loss import cross_entropy
from .norm import batch_norm, l2_normalize, moments
from .pool import max_pool2d
from .shapes import cast, concatenate, getitem, reshape, transpose

# The modules are names of this package, too; `callable` leaves them out.
__all__ = sorted(name for name, thing in vars().items() if callable(thing) and not name.startswith("_"))
