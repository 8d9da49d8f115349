"""The functions a ResNet is made of, each with its derivative right below its value."""

from . import operators as _operators  # noqa: F401, attaches them to Tensor
from .basic import add, divide, exp, log, matmul, max, maximum, mean, multiply, negative, power, relu, subtract, sum
from .conv import conv2d
from .loss import cross_entropy
from .norm import batch_norm, l2_normalize, moments
from .pool import max_pool2d
from .shapes import cast, concatenate, getitem, reshape, transpose

__all__ = [
    "add",
    "batch_norm",
    "cast",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "divide",
    "exp",
    "getitem",
    "l2_normalize",
    "log",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "moments",
    "multiply",
    "negative",
    "power",
    "relu",
    "reshape",
    "subtract",
    "sum",
    "transpose",
]
