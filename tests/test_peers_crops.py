"""Crops of photos beside torchvision's: the same file, the same box, and at most one level of 255 between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisimclr as ms
from minisimclr.training.photos import photo_views
from minisimclr.views.parameters import CROP_ASPECT, draw_parameters

pytest.importorskip("torch", reason="needs PyTorch: pip install torch torchvision")

pytestmark = [pytest.mark.peers, pytest.mark.host]


def photo(path: Path, height: int, width: int) -> None:
    """A picture with edges and noise."""
    rng = np.random.default_rng(height)
    blocks = rng.integers(0, 226, (height // 20 + 1, width // 20 + 1, 3)).repeat(20, 0).repeat(20, 1)[:height, :width]
    Image.fromarray((blocks + rng.integers(0, 30, (height, width, 3))).astype(np.uint8)).save(path)


@pytest.mark.parametrize("cache_side", [-1, 0])
def test_a_view_is_the_crop_that_torchvision_makes_of_the_same_file(tmp_path: Path, cache_side: int) -> None:
    from test_peers_ops import import_torchvision

    import_torchvision()
    from torchvision import transforms

    for k, (height, width) in enumerate([(300, 400), (400, 300), (180, 210), (500, 120)]):
        photo(tmp_path / f"{k}.png", height, width)
    config = ms.Config(size=128, batch=4, strength=0.0, cache_side=cache_side)  # all are kept as they are: 4·128 ≥ 500
    data: Any = ms.load_dataset(tmp_path, size=128, cache_side=cache_side)
    chosen = np.arange(4)
    for seed in range(5):
        views = photo_views(config, data, None, slice(None), chosen, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        for view in views:
            p = draw_parameters(rng, 4, *data.sizes.T, 0.0)
            for k in chosen:
                theirs = transforms.RandomResizedCrop(128, ratio=CROP_ASPECT)
                theirs.get_params = lambda *_, k=k, p=p: (p.top[k], p.left[k], p.height[k], p.width[k])
                expected = np.asarray(theirs(Image.open(tmp_path / f"{k}.png")), float)
                levels = np.rint(255 * view[k])
                assert abs(levels - expected[:, :: -1 if p.flip[k] else 1]).max() <= 1
