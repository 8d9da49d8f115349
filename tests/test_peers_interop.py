"""Encoders that PyTorch loads, and torchvision's that are loaded here: the outputs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_peers_ops import import_torchvision

import minisimclr as ms
from minisimclr.interop import torch_lines

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch torchvision")
pytestmark = [pytest.mark.peers, pytest.mark.host]


def outputs(ours: ms.ResNet, theirs: Any) -> tuple[Any, Any]:
    """h of a few images in float64, of both."""
    images = np.random.default_rng(0).random((3, 40, 40, 3))
    with torch.no_grad():
        h = theirs.double().eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
    return ours.astype(np.float64)(images).data, h.numpy()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {}),
        ("resnet34", {"stem": "cifar"}),
        ("resnet18", {"base": 16}),
        ("resnet50", {"base": 8, "stem": "small"}),
        ("resnet_small", {}),
        ("resnet_small", {"base": 64, "stem": "imagenet"}),
    ],
)
def test_the_lines_that_export_shows_give_the_same_h(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    import_torchvision()
    encoder = getattr(ms, name)(**options)
    for key, array in (state := encoder.state_dict()).items():  # statistics that are not those of a fresh network
        if "running" in key:
            state[key] = np.random.default_rng(len(key)).uniform(0.5, 2, array.shape)
    encoder.load_state_dict(state)
    ms.save_torchvision(encoder, tmp_path / "encoder.safetensors")
    names: dict[str, Any] = {}
    exec(torch_lines(encoder, tmp_path / "encoder.safetensors"), names)  # load_state_dict is strict by default
    ours, theirs = outputs(encoder, names["net"])
    assert np.abs(ours - theirs).max() <= 1e-8 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_network_is_loaded_and_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torchvision = import_torchvision()
    theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.train()(torch.rand(4, 3, 40, 40))
    save_file(theirs.state_dict(), tmp_path / "e.safetensors")
    ours, logits = outputs(ms.load_torchvision(tmp_path / "e.safetensors", classifier=True), theirs)
    assert np.abs(ours - logits).max() <= 1e-8 * np.abs(logits).max()
    theirs.fc = torch.nn.Identity()
    ours, h = outputs(ms.load_torchvision(tmp_path / "e.safetensors"), theirs)
    assert np.abs(ours - h).max() <= 1e-8 * np.abs(h).max()
