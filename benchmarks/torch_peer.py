"""The network of a step in PyTorch, as torchvision writes a ResNet, with the weights of one of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def conv(layer: Any) -> Any:
    kernel, _, in_dim, out_dim = layer.weight.shape
    return nn.Conv2d(in_dim, out_dim, kernel, layer.stride, layer.padding, bias=False)


class Block(nn.Module):  # type: ignore[misc]
    def __init__(self, block: Any) -> None:
        super().__init__()
        for k in (1, 2, 3):
            if hasattr(block, f"conv{k}"):
                setattr(self, f"conv{k}", conv(getattr(block, f"conv{k}")))
                setattr(self, f"bn{k}", nn.BatchNorm2d(len(getattr(block, f"bn{k}").weight)))
                self.last = k
        self.downsample = None
        if hasattr(block, "downsample"):
            first, second = vars(block.downsample).values()
            self.downsample = nn.Sequential(conv(first), nn.BatchNorm2d(len(second.weight)))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = x
        for k in range(1, self.last + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            if k < self.last:
                y = self.relu(y)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Encoder(nn.Module):  # type: ignore[misc]
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(encoder.conv1), nn.BatchNorm2d(len(encoder.bn1.weight))
        self.relu, self.pool = nn.ReLU(inplace=True), encoder.stem == "imagenet"
        self.stages = encoder.stages
        for k in range(1, self.stages + 1):
            stage = getattr(encoder, f"layer{k}")
            setattr(self, f"layer{k}", nn.Sequential(*(Block(block) for block in vars(stage).values())))

    def forward(self, x: Any) -> Any:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.pool:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for k in range(1, self.stages + 1):
            x = getattr(self, f"layer{k}")(x)
        return x.mean(dim=(2, 3))


class Network(nn.Module):  # type: ignore[misc]
    def __init__(self, own: Any) -> None:
        super().__init__()
        self.encoder, self.head, self.layers = Encoder(own.encoder), nn.Module(), own.head.layers
        for k in range(1, self.layers + 1):
            in_dim, out_dim = getattr(own.head, f"linear{k}").weight.shape
            setattr(self.head, f"linear{k}", nn.Linear(in_dim, out_dim, bias=False))
            setattr(self.head, f"bn{k}", nn.BatchNorm1d(out_dim))
        getattr(self.head, f"bn{self.layers}").bias.requires_grad_(False)  # no shift there

    def forward(self, images: Any) -> Any:
        x = self.encoder(images)
        for k in range(1, self.layers + 1):
            x = getattr(self.head, f"bn{k}")(getattr(self.head, f"linear{k}")(x))
            x = nn.functional.relu(x) if k < self.layers else x
        return x


def torch_network(own: Any) -> Any:
    """Return the same network in PyTorch, with the same weights."""
    net = Network(own).train()
    state = {name: torch.from_numpy(array) for name, array in own.state_dict().items()}
    left, unknown = net.load_state_dict(state, strict=False)
    assert not unknown, unknown
    assert all(name.endswith("num_batches_tracked") or name == f"head.bn{own.head.layers}.bias" for name in left), left
    return net
