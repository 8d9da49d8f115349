"""The functions a ResNet is made of, each with its derivative right below its value."""

from .basic import (
    add,
    concatenate,
    divide,
    exp,
    getitem,
    log,
    matmul,
    max,
    maximum,
    mean,
    multiply,
    negative,
    power,
    relu,
    reshape,
    subtract,
    sum,
    transpose,
)
from .cast import cast
from .conv import conv2d, max_pool2d
from .loss import cross_entropy
from .norm import batch_norm, l2_normalize, moments

__all__ = [
    "add", "batch_norm", "cast", "concatenate", "conv2d", "cross_entropy", "divide", "exp", "getitem", "l2_normalize",
    "log", "matmul", "max", "max_pool2d", "maximum", "mean", "moments", "multiply", "negative", "power", "relu",
    "reshape", "subtract", "sum", "transpose",
]
