"""SimCLR itself: an encoder f, a projection head g, and Algorithm 1 of the paper.

    two views of each image  ──f──>  representation h  ──g──>  embedding z  ──>  NT-Xent

The loss acts on z. Afterwards h is used and g thrown away, because z learns to drop whatever the augmentations
change, colour and orientation included (paper §4.2).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from . import ops
from .backend import Array, array_module
from .engine.autograd import Tensor
from .module import Module
from .nn import METHOD, BatchNorm2d, Linear, in_dtype, method_of
from .ntxent import nt_xent
from .resnet import ResNet
from .values import generator, instance, truth, whole


class ProjectionHead(Module):
    """The map g from h to z: linear layers with ReLU between them.

    layers         1 is a linear head, 2 the paper's, 3 that of Google's later code
    batch_norm     True, as in Google's code: each linear layer has no bias and is followed by batch norm, the last
                   one without shift (it would move all z alike). False, as in the paper's text: biases, no norm
    rng            draws the initial weights (default: a generator seeded with 1)
    method         the form in which each operation runs, as in Config
    product_dtype  the dtype of the matrix products, if it is not that of the weights

    Shapes: h (N,in_dim) -> z (N,out_dim)
    Raises: ValueError if there is no layer, or for an unknown method; in a call, for h of another size.

    >>> import numpy as np, minisimclr as ms
    >>> head = ms.ProjectionHead(512, 512, 128)
    >>> head(ms.Tensor(np.ones((4, 512), np.float32))).shape
    (4, 128)
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        layers: int = 2,
        batch_norm: bool = True,
        rng: np.random.Generator | None = None,
        *,
        method: str = METHOD,
        product_dtype: Any = None,
        ranks: Any = None,  # the processes that share each batch, for batch norm (collective.py)
    ) -> None:
        layers, batch_norm = whole("layers", layers, 1), truth("batch_norm", batch_norm)
        rng = generator(rng, seed=1)  # not 0: a ResNet's first weights would come again
        norm = method_of("norm", method)
        # Dimensions between the layers: of h, of the hidden layers, and of z.
        dims = [whole("a width", dim, 1) for dim in (in_dim, *[hidden_dim] * (layers - 1), out_dim)]
        self.layers = layers
        for k in range(1, layers + 1):
            # Batch norm subtracts the mean of each channel, and a bias with it. So a layer has one or the other.
            linear = Linear(dims[k - 1], dims[k], bias=not batch_norm, product_dtype=product_dtype, rng=rng)
            setattr(self, f"linear{k}", linear)  # "linear1" …: the names in a checkpoint
            if batch_norm:  # as in Google's code; the paper's text does not mention it
                setattr(self, f"bn{k}", BatchNorm2d(dims[k], shift=k < layers, method=norm, ranks=ranks))

    def __call__(self, h: Tensor, train: bool = False, layers: range | None = None) -> Tensor:
        x = h  # (N,in_dim)
        for k in range(1, self.layers + 1) if layers is None else layers:  # by default all
            x = getattr(self, f"linear{k}")(x)  # (N,hidden_dim), at last (N,out_dim)
            if hasattr(self, f"bn{k}"):
                x = getattr(self, f"bn{k}")(x, train)  # the same shape
            if k < self.layers:  # none after the last: z needs both signs, because the loss compares directions
                x = ops.relu(x)
        return in_dtype(x, h.dtype)  # the loss is never computed in half precision


class SimCLR(Module):
    """An encoder and a projection head; model(images) returns both h and z.

    method  the form in which the loss runs, as in Config: "plain", "auto", "ntxent=exact" …
            (the encoder and the head got theirs when they were made)
    objective  a function of za, zb and the temperature that takes the place of NT-Xent (objectives/)

    Raises: ValueError for an unknown method.

    >>> import numpy as np, minisimclr as ms
    >>> encoder = ms.resnet_small(base=8)
    >>> model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 32, 16))
    >>> h, z = model(np.zeros((4, 32, 32, 3), np.float32))
    >>> h.shape, z.shape
    ((4, 32), (4, 16))
    >>> model.head
    ProjectionHead                              1,616 parameters
      linear1: Linear   weight (32,32)          1,024
      bn1: BatchNorm2d  weight (32), bias (32)     64
      linear2: Linear   weight (32,16)            512
      bn2: BatchNorm2d  weight (16)                16
    """

    def __init__(self, encoder: ResNet, head: ProjectionHead, *, method: str = METHOD, objective: Any = None) -> None:
        # f and g of the paper; any other function would never be trained
        self.encoder, self.head = instance("encoder", encoder, Module), instance("head", head, Module)
        self.method = method_of("ntxent", method)  # the loss is all that this module computes itself
        # Of the objectives NT-Xent alone has several forms.
        self.objective = partial(nt_xent, method=self.method) if objective in (None, nt_xent) else objective

    def __call__(self, images: Any, train: bool = False) -> tuple[Tensor, Tensor]:
        """Compute h (N,features) and z (N,out_dim) of float images (N,H,W,3) in [0,1]."""
        h = self.encoder(images, train)  # (N,features)
        return h, self.head(h, train)  # (N,out_dim)

    def loss(self, views_a: Array, views_b: Array, temperature: float = 0.1) -> tuple[Tensor, Array, Array]:
        """Compute the loss of one batch, Algorithm 1: the loss, z of the views a, z of the views b.

        Both views go through the network in ONE batch of 2N: batch norm must see them together. If they went through
        it one after the other, the gradient would be another one (its cosine with this one is 0.19 to 0.92: chapter 4).

        Shapes: views_a, views_b float (N,H,W,3) -> scalar, (N,out_dim), (N,out_dim)
        """
        n = len(views_a)  # N images, so 2N anchors with one positive and 2N − 2 negatives each
        _, z = self(array_module(views_a).concatenate([views_a, views_b]), train=True)  # (2N,out_dim)
        loss = self.objective(z[:n], z[n:], temperature)  # a scalar
        return loss, z.data[:n], z.data[n:]  # z as arrays, for the metrics: no gradient flows back from those
