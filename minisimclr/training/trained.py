"""A trained model in use: images embedded, images like them found, views as in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Array, is_array
from ..evaluation.embed import Matrix, embed
from ..evaluation.knn import nearest
from ..simclr import SimCLR
from ..values import shown, whole
from ..views import two_views
from .config import Config


def views_in_training(config: Config, images: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Array, Array]:
    """Make two views of each image, by the changes with which the run of this configuration was trained.

    Shapes: images uint8 (N,H,W,3) -> two of float32 (N,size,size,3)
    """
    return two_views(images, rng, config.size, config.strength, config.blur, config.min_area, names=config.views)


class Trained:
    """A model that was trained; `Run` is one that also knows its settings, its history and its folder."""

    model: SimCLR

    def embed(self, images: Any, *, batch: int = 500) -> tuple[Matrix, Matrix]:
        """Compute representations h and embeddings z of images, as `embed(run.model, images)` does.

        Shapes: images uint8 (N,H,W,3), or a data set -> h (N,features), z (N,out_dim), float32
        """
        return embed(self.model, images, batch=batch)

    def nearest(self, images: NDArray[np.uint8], among: Array, k: int = 8) -> tuple[Matrix, Matrix]:
        """Find the k of `among` that are most similar to each image, by the cosine of h, nearest first.

        `among` are images, or their h, which need then not be computed for each question.

        >>> import minisimclr as ms
        >>> from minisimclr.training.config import build_model
        >>> run = ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
        >>> images = ms.load_dataset("doodles", size=16, limit=40).images
        >>> indices, similarities = run.nearest(images[:3], among=images, k=2)
        >>> indices[:, 0], similarities.shape
        (array([0, 1, 2]), (3, 2))

        Shapes: images uint8 (N,H,W,3), among uint8 (M,H,W,3) or float (M,features) -> (N,k), (N,k)
        Raises: ValueError for a k outside 1…M, or for an h of another size than the model's.
        """
        k = whole("k", k, 1)
        if not is_array(among) or among.ndim not in (2, 4):
            raise TypeError(f"among must be images (M,H,W,3) or their h (M,features), not {shown(among)}")
        h = self.embed(images)[0]  # (N,features)
        others = self.embed(among)[0] if among.ndim == 4 else among  # (M,features)
        if others.shape[1] != h.shape[1]:
            raise ValueError(f"h of this model have {h.shape[1]} numbers, those of `among` {others.shape[1]}")
        if k > len(others):
            raise ValueError(f"k must lie in 1…{len(others)}, the number of images to choose from, not {k}")
        return nearest(others, h, k)
