"""Representations of images: the outputs of the frozen encoder and of the head."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..backend import device_of, to_device, to_numpy
from ..data import marked, taken
from ..engine.autograd import no_grad
from ..module import Module
from ..processor import blocks, keep_freed_memory
from ..simclr import SimCLR
from ..values import instance, whole
from ..views import to_float

Matrix: TypeAlias = NDArray[Any]  # on the host; its shape is written where it is used


def embed(model: SimCLR, images: Any, *, batch: int = 500) -> tuple[Matrix, Matrix]:
    """Compute representations h and embeddings z of images, `batch` at a time.

    Evaluation uses h. The head is trained to forget all that tells two views of an image apart; h still has it.

    >>> import minisimclr as ms
    >>> rng = np.random.default_rng(0)
    >>> encoder = ms.resnet_small(stem="small", rng=rng)
    >>> model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 64, 16, rng=rng))
    >>> h, z = embed(model, np.zeros((3, 32, 32, 3), np.uint8))
    >>> h.shape, z.shape
    ((3, 128), (3, 16))

    Shapes: images uint8 (N,H,W,3), or a data set -> h (N,features), z (N,out_dim), float32; all are on the host
    Raises: TypeError if the images are not uint8; ValueError for a wrong shape.
    Source: §4.2 of the paper: h is better than z by more than 10 percentage points of accuracy.
    """
    # The images are an array, or photos, which are decoded one block at a time.
    count = whole("the number of images", len(images := taken(images)), 1)
    instance("model", model, Module)
    keep_freed_memory()  # each block of images reuses the memory of the block before
    device = device_of(model.parameters()[0].data)
    hs, zs = [], []  # blocks of h and z, on the host, because a GPU may not have room for all of them
    with no_grad():  # nothing here is differentiated, and a graph would keep every activation
        for part in blocks(count, whole("batch", batch, 1)):
            # With train=False the running statistics normalize, so an image's h does not depend on its batch.
            h, z = model(to_float(to_device(images[part], device)), train=False)  # (batch,features), (batch,out_dim)
            hs.append(to_numpy(h.data))
            zs.append(to_numpy(z.data))
    # Rows of photos that could not be decoded become NaN.
    return marked(images, np.concatenate(hs)), marked(images, np.concatenate(zs))  # (N,features), (N,out_dim)
