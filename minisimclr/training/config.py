"""Every setting of a run, with its unit and its range, and what is built from it.

The command line's options, the stored config.json and the checkpoint are all made of this one class.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..nn import Conv2d, Linear
from ..resnet import ENCODERS, STEMS
from ..simclr import ProjectionHead, SimCLR
from .optim import LARS, SGD, Optimizer
from .precision import PRECISIONS, half_dtype

METHODS = ("auto", "direct", "winograd")

WEIGHTS, ORDER, VIEWS = 1, 2, 3  # what random numbers are for: the first weights, an epoch's order, a step's views


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> Any:
    """A field of Config: default, help text and the values that are allowed (least ≤ x ≤ most, x > above)."""
    return field(default=default, metadata={"help": help, "choices": choices, "range": (least, most, above)})


@dataclass(frozen=True)
class Config:
    """One run of SimCLR. Defaults: 32×32 images and a small encoder, on a CPU."""

    data: str = _setting("doodles", 'folder or zip laid out as [split/]class/image, or "doodles", the embedded set')
    size: int = _setting(32, "side of the images in pixels", least=8, most=1024)
    encoder: str = _setting("small", "the network that gives the representation h", choices=tuple(ENCODERS))
    width: int = _setting(1, "multiplier of the encoder's channels", least=1, most=16)
    stem: str = _setting(
        "auto",
        "first layers of the encoder; auto: small for the small encoder, else cifar below "
        "96 pixels and imagenet from there on",
        choices=("auto", *STEMS),
    )
    head_layers: int = _setting(2, "layers of the projection head", least=1, most=8)
    head_dim: int = _setting(128, "dimensions of the embedding z", least=2, most=65536)
    batch: int = _setting(256, "images per step; the network sees twice as many views", least=2, most=1 << 20)
    epochs: int = _setting(20, "passes over the images", least=1, most=1_000_000)
    temperature: float = _setting(
        0.1, "τ of the NT-Xent loss; small values weigh the hardest negatives more", above=0, most=1e6
    )
    optimizer: str = _setting(
        "sgd", "how weights are updated; lars is for batches of 1,024 and more", choices=("sgd", "lars")
    )
    lr: float = _setting(
        0.3, "peak learning rate per 256 images of the batch: the peak is lr·batch/256", above=0, most=1e6
    )
    momentum: float = _setting(0.9, "of the optimiser", least=0, most=0.9999)
    weight_decay: float = _setting(1e-4, "pull of the weights towards 0", least=0, most=1e3)
    warmup: float = _setting(0.05, "fraction of the steps in which the learning rate rises", least=0, most=1)
    conv: str = _setting(
        "direct",
        "how 3×3 convolutions are computed: direct, the readable way; winograd, which is "
        "faster and rounds more; auto: winograd where it is faster",
        choices=METHODS,
    )
    strength: float = _setting(
        0.5, "strength of the colour jitter; the paper: 1 on ImageNet, 0.5 on CIFAR-10", least=0, most=2.5
    )
    min_area: float = _setting(
        0.08, "smallest random crop, as a fraction of the image; small things want more", above=0, most=1
    )
    blur: bool = _setting(False, "blur half of the views (ImageNet; not for 32-pixel images)")
    seed: int = _setting(0, "of all random numbers: weights, order of the images, views", least=0, most=2**63 - 1)
    device: str = _setting("cpu", "where to compute", choices=("cpu", "cuda"))
    precision: str = _setting(
        "float32",
        "of activations and products; weights, statistics and loss are float32 in any; tf32 and bfloat16 need a GPU",
        choices=PRECISIONS,
    )

    def __post_init__(self) -> None:
        """Raises ValueError, in one line that names the setting, for a value that makes no sense."""
        for item in dataclasses.fields(self):
            name, value, kind = item.name, getattr(self, item.name), type(item.default)
            whole = kind is float and type(value) is int  # 1 is a fine temperature
            if type(value) is not kind and not whole:
                raise ValueError(f"{name} must be of type {kind.__name__}, not {value!r}")
            choices, (least, most, above) = item.metadata["choices"], item.metadata["range"]
            if choices and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; not {value!r}")
            if kind in (int, float) and not (least <= value <= most and value > above):
                bounds = f"above {above:g}" if above > -math.inf else f"{least:,g} or more"
                raise ValueError(f"{name} must be {bounds} and at most {most:,g}, not {value}")
            if whole:
                object.__setattr__(self, name, float(value))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Config:
        """A Config from stored settings. Raises ValueError for names that this version does not know."""
        unknown = settings.keys() - {item.name for item in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}")
        return cls(**settings)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_evaluate(self, device: str) -> Config:
        """The same model, to be computed in float32 on a device, wherever and in whatever it was trained."""
        return dataclasses.replace(self, device=device, precision="float32")

    def rng(self, purpose: int, index: int) -> np.random.Generator:
        """The generator for one purpose: of epoch `index` (ORDER), of step `index` (VIEWS).

        Nothing random is carried from step to step, so a resumed run draws what the uninterrupted one would have
        drawn, bit for bit, and what one step draws does not depend on who prepares it.
        """
        return np.random.default_rng([self.seed, purpose, index])


def build_model(config: Config) -> SimCLR:
    """The untrained network of a configuration, on the host: the same weights for the same seed.

    Raises RuntimeError if the device does not have the precision.
    """
    half = config.precision in ("bfloat16", "float16")
    product_dtype = half_dtype(config.precision, config.device) if half else None
    rng = config.rng(WEIGHTS, 0)
    stem = config.stem
    if stem == "auto":
        stem = "small" if config.encoder == "small" else "cifar" if config.size < 96 else "imagenet"
    encoder = ENCODERS[config.encoder](width=config.width, stem=stem, rng=rng)
    head = ProjectionHead(encoder.features, encoder.features, config.head_dim, config.head_layers, rng=rng)
    model = SimCLR(encoder, head)
    for _, module in model.modules():
        if isinstance(module, Conv2d):
            module.method = "slabs" if config.conv == "direct" else config.conv
        if isinstance(module, (Conv2d, Linear)):
            module.product_dtype = product_dtype
    return model


def build_optimizer(config: Config, model: SimCLR) -> Optimizer:
    kind = {"sgd": SGD, "lars": LARS}[config.optimizer]
    return kind(model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
