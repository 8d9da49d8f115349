"""Representations of images: what the frozen encoder makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import device_of, to_device, to_numpy
from ..engine.autograd import no_grad
from ..processor import blocks, keep_freed_memory
from ..simclr import SimCLR
from ..views import to_float

Matrix = np.ndarray[Any, Any]


def embed(model: SimCLR, images: Matrix, *, batch: int = 500) -> tuple[Matrix, Matrix]:
    """Representations h (N,features) and embeddings z (N,out_dim), float32, of uint8 images (N,H,W,3).

    Images come from the host and the answers return to it; in between they are where the model is.
    """
    keep_freed_memory()  # each part of the images takes the arrays of the part before
    device = device_of(model.parameters()[0].data)
    hs, zs = [], []
    with no_grad():
        for part in blocks(len(images), batch):
            h, z = model(to_float(to_device(images[part], device)), train=False)
            hs.append(to_numpy(h.data))
            zs.append(to_numpy(z.data))
    return np.concatenate(hs), np.concatenate(zs)
