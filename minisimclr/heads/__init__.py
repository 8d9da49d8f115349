"""Projection heads by name, and h from a layer of the head.

    none         z is h
    linear       one layer: h → z
    mlp2         the paper's: h → as many hidden units → z, with ReLU between
    mlp3         that of Google's later code: one hidden layer more
    auto         `head_layers` layers: what SimCLR has here if nobody says otherwise

After each linear layer follows batch norm, the last without shift, as in Google's code. With "-text" behind its name a
head has biases and no norm, as the paper's text has it.
"""

from __future__ import annotations

from typing import Any

from ..backend import array_module
from ..engine.autograd import Tensor
from ..module import Module
from ..resnet import BasicBlock, Bottleneck
from ..simclr import ProjectionHead, SimCLR
from ..values import one_of, whole

NAMED = {"linear": 1, "mlp2": 2, "mlp3": 3}  # layers of each
HEADS = ("auto", "none", *NAMED, *(f"{name}-text" for name in NAMED))


class NoHead(Module):
    """The head that does nothing: z is h, in the dtype of h."""

    layers = 0

    def __call__(self, h: Tensor, train: bool = False) -> Tensor:
        return h  # (N,features)


def named(name: str, in_dim: int, out_dim: int, layers: int = 2, **how: Any) -> Module:
    """Make a head by name; `layers` is for "auto", and `how` are further options of ProjectionHead.

    >>> [named(name, 64, 16).layers for name in ("none", "linear", "mlp2", "mlp3", "auto")]
    [0, 1, 2, 3, 2]

    Shapes: the head takes h (N,in_dim) and gives z (N,out_dim); with "none" z is h
    Raises: ValueError for a name that is not in HEADS.
    """
    if one_of("head", name, HEADS) == "none":
        return NoHead()
    plain, text = name.removesuffix("-text"), name.endswith("-text")
    return ProjectionHead(in_dim, in_dim, out_dim, NAMED.get(plain, layers), batch_norm=not text, **how)


# ── h from a layer of the head ────────────────────────────────────────────────────────────────────


class _Below(Module):
    """The encoder and the first layers of the head, as an encoder."""

    def __init__(self, model: SimCLR, layer: int) -> None:
        self.encoder, self.layer = model.encoder, layer
        self.head: Any = model.head

    def __call__(self, images: Any, train: bool = False) -> Any:
        h = self.encoder(images, train)  # (N,features)
        return self.head(h, train, range(1, self.layer + 1))  # (N,hidden_dim); the ReLU of the last is included


class _Above(Module):
    """The layers of a head that come after one of them, as a head."""

    def __init__(self, head: ProjectionHead, layer: int) -> None:
        self.head, self.layer, self.layers = head, layer, head.layers - layer

    def __call__(self, h: Tensor, train: bool = False) -> Tensor:
        return self.head(h, train, range(self.layer + 1, self.head.layers + 1))  # (N,out_dim)


def h_from(model: SimCLR, layer: int) -> SimCLR:
    """Return the same network with the output of one of the head's layers as h; 0 is the encoder's h, as always.

    Weights are shared, not copied. `ms.embed(h_from(model, 1), images)` gives the features that SimCLRv2 fine-tunes
    from. The output of the last layer is z itself.

    >>> import numpy as np, minisimclr as ms
    >>> encoder = ms.resnet_small(base=8)
    >>> model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 24, 16, layers=3))
    >>> [h_from(model, layer)(np.zeros((2, 32, 32, 3), np.float32))[0].shape for layer in (0, 1, 3)]
    [(2, 32), (2, 24), (2, 16)]

    Raises: ValueError for a layer that the head does not have; TypeError for a head that is none of ours.
    """
    if whole("layer", layer, 0) == 0:
        return model
    head = model.head
    if not isinstance(head, (ProjectionHead, NoHead)):
        raise TypeError(f"h_from needs a ProjectionHead, not a {type(head).__name__}")
    whole("layer", layer, 0, head.layers)
    assert isinstance(head, ProjectionHead)
    above: Any = _Above(head, layer) if layer < head.layers else NoHead()
    below: Any = _Below(model, layer)
    return SimCLR(below, above, objective=model.objective)


# ── First weights ─────────────────────────────────────────────────────────────────────────────────


def zero_last_scales(encoder: Module) -> None:
    """Set the last scale of each residual block to 0, as Google's code does: at first a block is its shortcut alone."""
    for _, block in encoder.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            last.weight.data = array_module(last.weight.data).zeros_like(last.weight.data)
