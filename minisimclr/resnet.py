"""Residual networks (He et al. 2016): ResNet-18 to 152, and a small one for CPUs.

Names and shapes of the parameters are torchvision's, so its weights can be loaded. An encoder takes images (N,H,W,3)
and returns h (N,features), the mean over the last feature maps. Inside the network, these are (H,W,N,C).
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import numpy as np

from . import ops
from .backend import array_module
from .engine.autograd import Tensor
from .module import Module
from .nn import METHOD, BatchNorm2d, Conv2d, Linear, Sequential, in_dtype, method_of
from .values import by_default, check_pixels, generator, one_of, plain_array, whole

STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "small": (3, 2)}  # kernel and stride of the first convolution


Generator: TypeAlias = "np.random.Generator"
Convolution: TypeAlias = "partial[Conv2d]"
Norm: TypeAlias = "partial[BatchNorm2d]"


def _makers(rng: Generator, method: str, product_dtype: Any, ranks: Any) -> tuple[Convolution, Norm]:
    """Return two constructors, of convolutions and of batch norms, with the settings that all layers share."""
    conv = partial(Conv2d, method=method_of("conv", method), product_dtype=product_dtype, rng=rng)
    return conv, partial(BatchNorm2d, method=method_of("norm", method), ranks=ranks)  # only the sizes are left to give


class BasicBlock(Module):
    """Two 3×3 convolutions and a shortcut past them:  x -> relu(shortcut(x) + f(x)).

    The shortcut passes the gradient on past f, however small the gradient through f has become.

    Shapes: x (H,W,N,in_dim) -> (H/stride,W/stride,N,dim)
    """

    expansion = 1  # channels of the output, per channel inside

    def __init__(self, in_dim: int, dim: int, stride: int, conv: Convolution, norm: Norm) -> None:
        self.conv1 = conv(in_dim, dim, 3, stride=stride, padding=1)  # padding 1: a 3×3 kernel keeps the size of the map
        self.bn1 = norm(dim)
        self.conv2 = conv(dim, dim, 3, padding=1)
        self.bn2 = norm(dim)
        # The shortcut has no ReLU of its own: the block's last ReLU follows the sum.
        if stride != 1 or in_dim != dim:  # only then do x and f(x) differ in shape
            self.downsample = _projection(conv, norm, in_dim, dim, stride)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        y = self.bn1(self.conv1(x), train, relu=True)  # (H/stride,W/stride,N,dim)
        # The sum and the last ReLU are left to batch norm, which does them in its own pass over memory.
        return self.bn2(self.conv2(y), train, shortcut=_shortcut(self, x, train), relu=True)  # the shape of y


class Bottleneck(Module):
    """Three convolutions (1×1 to few channels, 3×3 with the stride, 1×1 to four times as many) and a shortcut.

    Shapes: x (H,W,N,in_dim) -> (H/stride,W/stride,N,4·dim)
    """

    expansion = 4  # channels of the output, per channel inside

    def __init__(self, in_dim: int, dim: int, stride: int, conv: Convolution, norm: Norm) -> None:
        out_dim = dim * self.expansion
        self.conv1 = conv(in_dim, dim, 1)  # fewer channels, so that the 3×3 is cheap
        self.bn1 = norm(dim)
        self.conv2 = conv(dim, dim, 3, stride=stride, padding=1)  # in He et al. conv1 has the stride, and skips pixels
        self.bn2 = norm(dim)
        self.conv3 = conv(dim, out_dim, 1)  # all channels again, for the sum with the shortcut
        self.bn3 = norm(out_dim)
        if stride != 1 or in_dim != out_dim:  # the first block of each stage
            self.downsample = _projection(conv, norm, in_dim, out_dim, stride)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        y = self.bn1(self.conv1(x), train, relu=True)  # (H,W,N,dim)
        y = self.bn2(self.conv2(y), train, relu=True)  # (H/stride,W/stride,N,dim)
        return self.bn3(self.conv3(y), train, shortcut=_shortcut(self, x, train), relu=True)  # (…,4·dim)


def _projection(conv: Convolution, norm: Norm, in_dim: int, out_dim: int, stride: int) -> Sequential:
    """Make the shortcut of a block that changes the shape: a strided 1×1 convolution."""
    return Sequential(conv(in_dim, out_dim, 1, stride=stride), norm(out_dim))  # (H/stride,W/stride,N,out_dim)


def _shortcut(block: Any, x: Tensor, train: bool) -> Tensor:
    return block.downsample(x, train) if hasattr(block, "downsample") else x  # the shape of f(x)


class ResNet(Module):
    """A stem, stages of blocks and the mean over the map; with num_classes a linear classifier follows.

    block          BasicBlock or Bottleneck
    depths         blocks per stage; every stage but the first halves the map and doubles the channels
    base           channels of the stem and of the first stage (64 in the paper)
    width          multiplies all channels (1, 2, 4 in SimCLR)
    stem           "imagenet": 7×7 stride 2, then max-pool, for images of 96 pixels and more;
                   "cifar": 3×3 stride 1, for images of 32 (SimCLR, appendix B.9);
                   "small": 3×3 stride 2, for 32 pixels on a CPU
    num_classes    None for an encoder, which returns h (N,features); a number for logits (N,num_classes)
    method         the form in which each operation runs, as in Config
    product_dtype  the dtype of the convolutions, if it is not that of the weights
    rng            draws the initial weights (default: a generator seeded with 0)

    Shapes: images (N,H,W,3) -> (N,features) or (N,num_classes)
    Raises: ValueError for an unknown stem or method; in a call, ValueError for images of another shape and
            TypeError for images that are not float.

    >>> import numpy as np, minisimclr as ms
    >>> encoder = ms.resnet_small(base=8)
    >>> encoder(np.zeros((2, 32, 32, 3), np.float32)).shape, encoder.features
    ((2, 32), 32)
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
        method: str = METHOD,
        product_dtype: Any = None,
        ranks: Any = None,  # the processes that share each batch, for batch norm (collective.py)
        rng: Generator | None = None,
    ) -> None:
        rng = generator(rng, seed=0)  # the same weights each time, unless the caller wants others
        stem = one_of("stem", stem, tuple(STEMS))
        self.stem, self.pool, self.stages = stem, method_of("pool", method), len(depths)
        conv, norm = _makers(rng, method, product_dtype, ranks)
        # Channels that the next block takes, and channels inside it.
        in_dim = dim = whole("base", base, 1) * whole("width", width, 1)
        kernel, stride = STEMS[stem]
        self.conv1 = conv(3, dim, kernel, stride=stride, padding=kernel // 2)  # 3: red, green, blue
        self.bn1 = norm(dim)
        # Where a map is halved its channels are doubled, so that a block takes about as long in every stage.
        for stage, depth in enumerate(depths):
            blocks = []
            for k in range(depth):
                stride = 2 if stage > 0 and k == 0 else 1  # only the first block of a stage shrinks the map
                blocks.append(block(in_dim, dim, stride, conv, norm))
                in_dim = dim * block.expansion  # the next block takes what this one gives
            setattr(self, f"layer{stage + 1}", Sequential(*blocks))  # "layer1" …: torchvision's names
            dim *= 2
        self.features = in_dim  # dimensions of h
        if num_classes is not None:
            outputs = whole("num_classes", num_classes, 1)
            self.fc = Linear(in_dim, outputs, rng=rng)  # logits are never rounded to half precision

    def __call__(self, images: Any, train: bool = False) -> Tensor:
        """Compute h (N,features), or logits (N,num_classes), of float images (N,H,W,3) in [0,1], array or Tensor."""
        x = _pixels_first(images, self.conv1.weight.dtype)  # (H,W,N,3)
        x = self.bn1(self.conv1(x), train, relu=True)  # (H/s,W/s,N,base·width)
        if self.stem == "imagenet":  # large images are shrunk early: their first maps cost most
            x = ops.max_pool2d(x, kernel=3, stride=2, padding=1, method=self.pool)  # (H/4,W/4,N,base·width)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x, train)  # from layer2 on: half the side, twice the channels
        h = in_dtype(x, self.conv1.weight.dtype).mean(axis=(0, 1))  # (N,features); the mean is never in half precision
        return self.fc(h) if hasattr(self, "fc") else h  # (N,num_classes) or (N,features)


@by_default
def _pixels_first(images: Any, dtype: Any) -> Tensor:
    """Turn images (N,H,W,3) into the layout inside the network, (H,W,N,3), in the dtype of the weights."""
    check_pixels(images)  # bytes up to 255 would train, and badly: batch norm hides the mistake
    if isinstance(images, Tensor):  # the caller may want the gradient with respect to the pixels
        return in_dtype(images.transpose(1, 2, 0, 3), dtype)  # (H,W,N,3)
    xp, images = array_module(images), plain_array(images, "the encoder")
    # The copy is contiguous, so that the pixels which a tap of the kernel reads form one matrix.
    return Tensor(xp.ascontiguousarray(images.transpose(1, 2, 0, 3)).astype(dtype, copy=False))  # (H,W,N,3)


def resnet18(**options: Any) -> ResNet:
    """Make a ResNet-18: 11,176,512 parameters without classifier; h has 512·width features.

    The options are those of ResNet: width, stem, num_classes, method … (With the CIFAR stem: 11,168,832 parameters.)

    >>> resnet18(base=8, stem="cifar").features
    64
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), **options)


def resnet34(**options: Any) -> ResNet:
    """Make a ResNet-34: 3 + 4 + 6 + 3 basic blocks; h has 512·width features. The options are those of ResNet.

    >>> resnet34(base=4).features
    32
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), **options)


def resnet50(**options: Any) -> ResNet:
    """Make a ResNet-50, the paper's encoder: h has 2048·width features. The options are those of ResNet.

    >>> resnet50(base=4, width=2).features
    256
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), **options)


def resnet101(**options: Any) -> ResNet:
    """Make a ResNet-101: 3 + 4 + 23 + 3 bottlenecks; h has 2048·width features. The options are those of ResNet.

    >>> resnet101(base=4).features
    128
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), **options)


def resnet152(**options: Any) -> ResNet:
    """Make a ResNet-152: 3 + 8 + 36 + 3 bottlenecks; h has 2048·width features. The options are those of ResNet.

    >>> resnet152(base=4).features
    128
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), **options)


def resnet_small(**options: Any) -> ResNet:
    """Make a network for 32×32 images on a CPU: three stages of one block on 16×16, 8×8 and 4×4 maps.

    The options are those of ResNet; base is 32 and the stem "small" unless they say otherwise.

    >>> resnet_small().features
    128
    """
    return ResNet(BasicBlock, (1, 1, 1), **{"base": 32, "stem": "small", **options})


# By the name that Config.encoder and --encoder take.
ENCODERS = {"small": resnet_small} | {f.__name__: f for f in (resnet18, resnet34, resnet50, resnet101, resnet152)}
