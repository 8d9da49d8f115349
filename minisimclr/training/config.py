"""Every setting of a run, with its unit and its range, and what is built from it.

The command line's options, the stored config.json and the checkpoint are all made of this one class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import heads, objectives
from ..data import Reading
from ..heads import HEADS
from ..nn import METHOD, METHODS
from ..objectives import OBJECTIVES
from ..resnet import ENCODERS, STEMS
from ..simclr import SimCLR
from ..values import check_method, checked, method_of_conv, setting
from ..views import recipe_of
from .optim import LARS, SGD, Optimizer

# The purposes of random numbers: the first weights, the order of the images in an epoch, the views of a step. Numbers
# drawn for different purposes are independent, although all of them come from one seed.
WEIGHTS, ORDER, VIEWS = 1, 2, 3  # arbitrary numbers; with others no stored run could be repeated

# The choices are spelled out here, so that one can read the settings without precision.py; a test compares them.
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """The settings of one run of SimCLR. Defaults: 32×32 images and a small encoder, on a CPU.

    Raises: ValueError, in one line that names the setting, for a value that makes no sense.

    >>> config = Config(batch=128, temperature=0.2)
    >>> config.lr * config.batch / 256  # the peak of the learning rate
    0.15
    >>> Config(temperature=0)
    Traceback (most recent call last):
    ValueError: temperature must be above 0 and at most 1e+06, not 0
    """

    # The images and the network.
    data: str = setting("doodles", 'folder or zip laid out as [split/]class/image, or "doodles", the embedded set')
    reading: str = setting("", "how the names in the data are read, as data/reading.py writes it", metavar="PAIRS")
    size: int = setting(32, "side of the images in pixels", least=8, most=1024)
    encoder: str = setting("small", "network that computes the representation h", choices=tuple(ENCODERS))
    width: int = setting(1, "multiplier of the encoder's channels", least=1, most=16)
    stem: str = setting(
        "auto",
        "first layers of the encoder; auto: small for the small encoder, else cifar below "
        "96 pixels and imagenet from there on",
        choices=("auto", *STEMS),
    )
    init: str = setting("", "file of encoder weights to begin with, as export writes it, in place of random ones")
    zero_init: bool = setting(False, "begin each residual block as its shortcut alone, its last scale at 0")
    head: str = setting("auto", "projection head; auto: head_layers layers, with batch norm", choices=HEADS)
    head_layers: int = setting(2, "layers of the projection head, if head is auto", least=1, most=8)
    head_dim: int = setting(128, "dimensions of the embedding z", least=2, most=65536)

    # The training.
    batch: int = setting(256, "images per step; the network sees twice as many views", least=2, most=1 << 20)
    chunk: int = setting(0, "images in the network at a time, if all do not fit; 0: all", least=0, most=1 << 20)
    epochs: int = setting(20, "passes over the images", least=1, most=1_000_000)
    temperature: float = setting(  # 0.1 is the best of the four that the paper tried on ImageNet, Table 5
        0.1, "temperature τ of the NT-Xent loss; small values weigh the hardest negatives more", above=0, most=1e6
    )
    objective: str = setting("nt_xent", "objective; those beside NT-Xent are for comparison", choices=OBJECTIVES)
    margin: float = setting(0.4, "margin of the triplets, which have no temperature", least=0, most=2)
    optimizer: str = setting(  # the paper takes LARS, for batches of 4,096
        "sgd", "optimizer of the weights; lars is for batches of 1,024 and more", choices=("sgd", "lars")
    )
    lr: float = setting(  # 0.3 is the paper's, §2.3
        0.3, "peak learning rate per 256 images of the batch: the peak is lr·batch/256", above=0, most=1e6
    )
    momentum: float = setting(0.9, "momentum of the optimizer", least=0, most=0.9999)
    weight_decay: float = setting(1e-4, "pull of the weights towards 0", least=0, most=1e3)
    warmup: float = setting(0.05, "fraction of the steps in which the learning rate rises", least=0, most=1)
    # Of the processes that share a batch (collective.py). Local ones save messages, and train another network.
    batch_norm: str = setting("whole", "statistics: of the whole batch, or of each rank's", choices=("whole", "local"))

    # The two views. What is not here, such as the probability of a flip, is the paper's: views/parameters.py.
    strength: float = setting(
        0.5, "strength of the colour jitter; the paper: 1 on ImageNet, 0.5 on CIFAR-10", least=0, most=2.5
    )
    min_area: float = setting(
        0.08, "smallest random crop, as a fraction of the image; small things want more", above=0, most=1
    )
    blur: bool = setting(False, "blur half of the views (ImageNet; not for 32-pixel images)")
    cache_side: int = setting(-1, "shorter side of photos; -1: 4·size, 0: all pixels, -2: squares", least=-2, most=8192)
    views: str = setting("auto", "changes of a view in order, as in crop,flip,colour,cutout:0.5", metavar="NAMES")

    # The computation. A resumed run may change all but the seed; its last bits are then others.
    seed: int = setting(0, "seed of all random numbers: weights, order of the images, views", least=0, most=2**63 - 1)
    device: str = setting("cpu", "device that computes", choices=("cpu", "cuda"))
    precision: str = setting(
        "float32",
        "precision of activations and products; weights, statistics and loss are float32 in any; "
        "tf32 and bfloat16 need a GPU",
        choices=PRECISIONS,
    )
    method: str = setting(
        METHOD,
        "form of each operation: plain, the forms to read; auto, the fastest; or some by name, as in "
        "conv=winograd,ntxent=exact; winograd spreads a NaN or the rounding of an outlier over a tile of 4x4 pixels",
        metavar="NAMES",
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = checked(item, getattr(self, item.name))
            # The class is frozen, because a run is known by its settings. This is the one way past that.
            object.__setattr__(self, item.name, value)
        chunks = -(-self.batch // self.chunk) if self.chunk else 1  # rounded up
        if chunks > 1 and self.batch // chunks < 2:  # the smallest chunk has batch // chunks images
            raise ValueError(f"chunk must be 0, or leave 2 images in each chunk: not {self.chunk} of {self.batch}")
        Reading.from_text(self.reading)
        recipe_of(self.views)
        check_method(self.method, METHODS)  # its values are no list of choices: they are written as pairs

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Config:
        """Make a Config of stored settings, also of those that an older version stored.

        Raises: ValueError for names that this version does not know, and for values that it refuses.
        """
        settings = {name: value for name, value in settings.items() if name != "run"}  # "run" marks the folder as ours
        if "conv" in settings and "method" not in settings:
            settings["method"] = method_of_conv(settings.pop("conv"))  # stored before version 0.2
        unknown = settings.keys() - {item.name for item in dataclasses.fields(cls)}
        if unknown:  # from a newer version, or misspelled: neither may be passed over
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}")
        return cls(**settings)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name: what config.json and a checkpoint hold."""
        return dataclasses.asdict(self)  # numbers, strings and booleans only, so JSON can hold it

    def to_evaluate(self, device: str) -> Config:
        """Return a copy of this configuration for evaluation: float32 on `device`, whatever the training used."""
        # So runs that were trained in different precisions can be compared.
        return dataclasses.replace(self, device=device, precision="float32")

    def rng(self, purpose: int, index: int) -> np.random.Generator:
        """Return the generator for one purpose: for epoch number `index` (ORDER), for step number `index` (VIEWS).

        Nothing random is carried from step to step, so a resumed run draws what the uninterrupted one would have
        drawn, bit for bit, and what one step draws does not depend on the process that prepares it.
        """
        # NumPy hashes the three numbers, so the draws of neighbouring seeds and steps are unrelated.
        return np.random.default_rng([self.seed, purpose, index])


def build_model(config: Config, product_dtype: Any = None, ranks: Any = None) -> SimCLR:
    """Build the untrained network of a configuration, on the host: the same weights for the same seed.

    product_dtype  the dtype of convolutions and matrix products, if it is not float32 (precision.py chooses it)
    """
    # ranks: the processes that share each batch, if there are others (collective.py)
    norm_ranks = ranks if config.batch_norm == "whole" else None
    how = {"method": config.method, "product_dtype": product_dtype, "rng": config.rng(WEIGHTS, 0), "ranks": norm_ranks}
    stem = config.stem
    if stem == "auto":  # a stride that suits large images would leave nothing of small ones
        stem = "small" if config.encoder == "small" else "cifar" if config.size < 96 else "imagenet"
    # One generator draws the weights of f, then those of g: the other order would give other weights.
    encoder = ENCODERS[config.encoder](width=config.width, stem=stem, **how)
    head: Any = heads.named(config.head, encoder.features, config.head_dim, config.head_layers, **how)
    objective = objectives.named(config.objective, margin=config.margin, ranks=ranks)
    model = SimCLR(encoder, head, method=config.method, objective=objective)
    if config.zero_init:
        heads.zero_last_scales(model.encoder)
    return model


def build_optimizer(config: Config, model: SimCLR, loss_scale: Any = None) -> Optimizer:
    """Build the optimizer of a configuration, with a momentum buffer on the device of each parameter."""
    kind = {"sgd": SGD, "lars": LARS}[config.optimizer]
    settings = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    # The rate given here is never used in training: the schedule gives each step its own.
    return kind(model.parameters(), config.lr, **settings, loss_scale=loss_scale)
