"""SimCLR itself: an encoder f, a projection head g, and Algorithm 1 of the paper.

    two views of each image  ──f──>  representation h  ──g──>  embedding z  ──>  NT-Xent

The loss acts on z; what is used afterwards is h, because z learns to drop whatever the augmentations
change, colour and orientation included (paper §4.2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ops
from .backend import Array, array_module
from .engine.autograd import Tensor
from .nn import BatchNorm2d, Linear, Module, in_dtype
from .ntxent import nt_xent
from .resnet import ResNet


class ProjectionHead(Module):
    """The map g from h (N,in_dim) to z (N,out_dim): linear layers with ReLU between them.

    layers      1 is a linear head, 2 the paper's, 3 that of Google's later code
    batch_norm  True, as Google's code: each linear layer has no bias and is followed by batch norm, the last
                one without shift (it would move all z alike). False, as the paper's text: biases, no norm
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 2,
        batch_norm: bool = True,
        rng: np.random.Generator | None = None,
    ) -> None:
        if layers < 1:
            raise ValueError(f"a projection head needs at least one layer, not {layers}")
        rng = np.random.default_rng(1) if rng is None else rng
        dims = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
        self.layers = layers
        for k in range(layers):
            setattr(self, f"linear{k + 1}", Linear(dims[k], dims[k + 1], bias=not batch_norm, rng=rng))
            if batch_norm:
                setattr(self, f"bn{k + 1}", BatchNorm2d(dims[k + 1], shift=k + 1 < layers))

    def __call__(self, h: Tensor, train: bool = False) -> Tensor:
        x = h
        for k in range(1, self.layers + 1):
            x = getattr(self, f"linear{k}")(x)
            if hasattr(self, f"bn{k}"):
                x = getattr(self, f"bn{k}")(x, train)
            if k < self.layers:
                x = ops.relu(x)
        return in_dtype(x, h.dtype)


class SimCLR(Module):
    """An encoder and a head; model(images) answers with both h and z."""

    def __init__(self, encoder: ResNet, head: ProjectionHead) -> None:
        self.encoder, self.head = encoder, head

    def __call__(self, images: Any, train: bool = False) -> tuple[Tensor, Tensor]:
        """Images, float (N,H,W,3) in [0,1] -> representation h (N,features), embedding z (N,out_dim)."""
        h = self.encoder(images, train)
        return h, self.head(h, train)

    def loss(self, views_a: Array, views_b: Array, temperature: float = 0.1) -> tuple[Tensor, Array, Array]:
        """Algorithm 1 for one batch: views a and b of N images, float (N,H,W,3) each -> loss, z of a, z of b.

        Both views go through the network in ONE batch of 2N: batch norm must see them together. Forwarded
        one after the other, the gradient has next to nothing in common with this one (cosine 0.08).
        """
        n = len(views_a)
        _, z = self(array_module(views_a).concatenate([views_a, views_b]), train=True)  # (2N,out_dim)
        return nt_xent(z[:n], z[n:], temperature), z.data[:n], z.data[n:]
