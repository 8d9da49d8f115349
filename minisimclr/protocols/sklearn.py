"""The encoder of a run as a transformer of scikit-learn: images go in, and h comes out.

scikit-learn knows a transformer by its methods. It is imported only where scikit-learn itself asks for its tags, so
the package can do without it.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..evaluation.embed import embed
from ..training.run import Run, load_run
from ..values import one_of


class SimCLRTransformer:
    """Turn images into representations, as a step of a scikit-learn pipeline.

    run   a Run, or the folder of one, which is loaded when it is needed
    part  "h", or "z"

    There is nothing to fit: the encoder is frozen. `transform` takes uint8 images (N,H,W,3), or their pixels in rows,
    (N,H·W·3), as scikit-learn's own tools hand them on; their sides are then those that the run was trained on.

    Raises: in `fit` and `transform`, not before: ValueError for another part, CheckpointError for a folder without run.

    >>> import minisimclr as ms
    >>> from minisimclr.training.config import build_model
    >>> run = ms.Run(ms.Config(size=16), build_model(ms.Config(size=16)))
    >>> images = np.zeros((5, 16, 16, 3), np.uint8)
    >>> ms.SimCLRTransformer(run).fit(images).transform(images.reshape(5, -1)).shape
    (5, 128)
    """

    _parameters = ("run", "part")

    def __init__(self, run: Run | str | os.PathLike[str], part: str = "h") -> None:
        self.run, self.part = run, part  # as they came: scikit-learn compares them after a clone

    def fit(self, X: Any, y: Any = None) -> Self:
        """Return the transformer: it learns nothing from X."""
        one_of("part", self.part, ("h", "z"))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Compute the representations: uint8 (N,H,W,3) or (N,H·W·3) -> float32 (N,D).

        Raises: TypeError if the images are not uint8; ValueError for rows that are no images of the run's size.
        """
        if not isinstance(self.run, Run):
            self.run = load_run(Path(self.run))
        size, X = self.run.config.size, np.asarray(X)
        if X.ndim == 2:
            if X.shape[1] != size * size * 3:
                raise ValueError(f"rows of {X.shape[1]} numbers are no images of {size}×{size} pixels with 3 colours")
            X = X.reshape(len(X), size, size, 3)
        found = embed(self.run.model, X)
        return found[("h", "z").index(one_of("part", self.part, ("h", "z")))]

    def fit_transform(self, X: Any, y: Any = None) -> NDArray[np.float32]:
        """Compute the representations of the images."""
        return self.fit(X, y).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name: what scikit-learn clones a step by."""
        return {name: getattr(self, name) for name in self._parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name. Raises: ValueError for a name that is none."""
        for name, value in parameters.items():
            setattr(self, one_of("a parameter", name, self._parameters), value)
        return self

    def __repr__(self) -> str:
        run = self.run.folder if isinstance(self.run, Run) else self.run
        return f"SimCLRTransformer({str(run)!r}, part={self.part!r})"

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        sklearn = importlib.import_module("sklearn.utils")  # it is there: it is who asks

        inputs = sklearn.InputTags(two_d_array=True, three_d_array=False)
        return sklearn.Tags(
            estimator_type=None,
            target_tags=sklearn.TargetTags(required=False),
            transformer_tags=sklearn.TransformerTags(),
            input_tags=inputs,
            requires_fit=False,
        )
