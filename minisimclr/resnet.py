"""Residual networks (He et al. 2016), version "B": ResNet-18/34/50/101/152, and a small one for CPUs.

Names and shapes of the parameters are torchvision's, so its weights can be loaded. An encoder takes
images (N,H,W,3) and answers with the representation h (N,features): the mean over the last feature
maps. Inside, feature maps are (H,W,N,C).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ops
from .backend import array_module
from .engine.autograd import Tensor
from .nn import BatchNorm2d, Conv2d, Linear, Module, Sequential, in_dtype

STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "small": (3, 2)}  # kernel and stride of the first convolution


class BasicBlock(Module):
    """Two 3×3 convolutions and a shortcut around them:  x (H,W,N,C) -> relu(x' + f(x)) (H/stride,W/stride,N,dim)."""

    expansion = 1  # channels out per channel inside

    def __init__(self, in_dim: int, dim: int, stride: int, rng: np.random.Generator) -> None:
        self.conv1 = Conv2d(in_dim, dim, 3, stride=stride, padding=1, rng=rng)
        self.bn1 = BatchNorm2d(dim)
        self.conv2 = Conv2d(dim, dim, 3, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(dim)
        if stride != 1 or in_dim != dim:
            self.downsample = _projection(in_dim, dim, stride, rng)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        y = self.bn1(self.conv1(x), train, relu=True)
        return self.bn2(self.conv2(y), train, shortcut=_shortcut(self, x, train), relu=True)


class Bottleneck(Module):
    """1×1 down, 3×3 (which carries the stride), 1×1 up to four times the channels, and a shortcut around them."""

    expansion = 4

    def __init__(self, in_dim: int, dim: int, stride: int, rng: np.random.Generator) -> None:
        out_dim = dim * self.expansion
        self.conv1 = Conv2d(in_dim, dim, 1, rng=rng)
        self.bn1 = BatchNorm2d(dim)
        self.conv2 = Conv2d(dim, dim, 3, stride=stride, padding=1, rng=rng)
        self.bn2 = BatchNorm2d(dim)
        self.conv3 = Conv2d(dim, out_dim, 1, rng=rng)
        self.bn3 = BatchNorm2d(out_dim)
        if stride != 1 or in_dim != out_dim:
            self.downsample = _projection(in_dim, out_dim, stride, rng)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        y = self.bn1(self.conv1(x), train, relu=True)
        y = self.bn2(self.conv2(y), train, relu=True)
        return self.bn3(self.conv3(y), train, shortcut=_shortcut(self, x, train), relu=True)


def _projection(in_dim: int, out_dim: int, stride: int, rng: np.random.Generator) -> Sequential:
    """Shortcut of a block that changes the shape: a strided 1×1 convolution."""
    return Sequential(Conv2d(in_dim, out_dim, 1, stride=stride, rng=rng), BatchNorm2d(out_dim))


def _shortcut(block: Any, x: Tensor, train: bool) -> Tensor:
    return block.downsample(x, train) if hasattr(block, "downsample") else x


class ResNet(Module):
    """Stem, stages of blocks, mean over the map; with num_classes a linear classifier on top.

    block        BasicBlock or Bottleneck
    depths       blocks per stage; every stage but the first halves the map and doubles the channels
    base         channels of the stem and of the first stage (64 in the paper)
    width        multiplies all channels (1, 2, 4 in SimCLR)
    stem         "imagenet": 7×7 stride 2, then max-pool, for images of 96 pixels and more;
                 "cifar": 3×3 stride 1, for images of 32 (SimCLR, appendix B.9);
                 "small": 3×3 stride 2, for 32 pixels on a CPU
    num_classes  None for an encoder: the answer is h (N,features); a number: logits (N,num_classes)
    rng          draws the initial weights (default: a generator seeded with 0)
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        base: int = 64,
        width: int = 1,
        stem: str = "imagenet",
        num_classes: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        rng = np.random.default_rng(0) if rng is None else rng
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}; not {stem!r}")
        self.stem = stem
        dim = base * width
        kernel, stride = STEMS[stem]
        self.conv1 = Conv2d(3, dim, kernel, stride=stride, padding=kernel // 2, rng=rng)
        self.bn1 = BatchNorm2d(dim)
        in_dim = dim
        for stage, depth in enumerate(depths):
            blocks: list[Module] = []
            for k in range(depth):
                blocks.append(block(in_dim, dim, 2 if stage > 0 and k == 0 else 1, rng))
                in_dim = dim * block.expansion
            setattr(self, f"layer{stage + 1}", Sequential(*blocks))
            dim *= 2
        self.stages = len(depths)
        self.features = in_dim
        if num_classes is not None:
            self.fc = Linear(in_dim, num_classes, rng=rng)

    def __call__(self, images: Any, train: bool = False) -> Tensor:
        """Images, float (N,H,W,3) in [0,1], array or Tensor -> h (N,features), or logits (N,num_classes)."""
        x = _pixels_first(images, self.conv1.weight.dtype)  # (H,W,N,3)
        x = self.bn1(self.conv1(x), train, relu=True)  # (H/s,W/s,N,base)
        if self.stem == "imagenet":
            x = ops.max_pool2d(x, kernel=3, stride=2, padding=1)  # (H/4,W/4,N,base)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x, train)  # half the side, twice the channels
        h = in_dtype(x, self.conv1.weight.dtype).mean(axis=(0, 1))  # (N,features)
        return self.fc(h) if hasattr(self, "fc") else h


def _pixels_first(images: Any, dtype: Any) -> Tensor:
    """(N,H,W,3) -> (H,W,N,3), the layout inside the network, in the dtype of the weights."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"the encoder takes images of shape (N,H,W,3), not {images.shape}")
    if images.dtype.kind != "f":
        raise TypeError(f"the encoder takes float images in [0,1], not {images.dtype}; see minisimclr.to_float")
    if isinstance(images, Tensor):
        return images.transpose(1, 2, 0, 3)
    xp = array_module(images)
    return Tensor(xp.ascontiguousarray(images.transpose(1, 2, 0, 3)).astype(dtype, copy=False))


def resnet18(**options: Any) -> ResNet:
    """11,176,512 parameters without classifier (11,168,832 with the CIFAR stem); h has 512·width features."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Any) -> ResNet:
    """Basic blocks, 3 + 4 + 6 + 3 of them; h has 512·width features."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Any) -> ResNet:
    """The paper's encoder: h has 2048·width features."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def resnet101(**options: Any) -> ResNet:
    """Bottlenecks, 3 + 4 + 23 + 3 of them; h has 2048·width features."""
    return ResNet(Bottleneck, (3, 4, 23, 3), **options)


def resnet152(**options: Any) -> ResNet:
    """Bottlenecks, 3 + 8 + 36 + 3 of them; h has 2048·width features."""
    return ResNet(Bottleneck, (3, 8, 36, 3), **options)


def resnet_small(**options: Any) -> ResNet:
    """For 32×32 images on a CPU: three stages of one block on 16×16, 8×8 and 4×4 maps."""
    return ResNet(BasicBlock, (1, 1, 1), **{"base": 32, "stem": "small", **options})


ENCODERS = {
    "small": resnet_small,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}
