"""Time and memory of a whole SimCLR step: forward, NT-Xent, backward, SGD with momentum.

    python benchmarks/train_step.py                      # ResNet-18 with the CIFAR stem, 128 views of 32×32
    python benchmarks/train_step.py --peers --threads 1  # torch.compile too; on one core
    python benchmarks/train_step.py --cases "small, 512 views" "ResNet-50, 8 views of 224"
    python benchmarks/train_step.py --json out.json --plot out.png

All start from the same weights and views; `loss`, that of the first step, shows that they compute the same. The
contestants live in processes of their own and take turns (arena.py). The time is also given as a multiple of what
the multiply–adds of all convolutions as plain products would take at this machine's best rate of the matrix
product, together with eight passes over all feature maps at its rate of copying.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.processor import keep_freed_memory
from minisimclr.training.config import Config, build_model
from minisimclr.training.optim import SGD

CASES: dict[str, arena.Case] = {
    "ResNet-18, 128 views": {"encoder": "resnet18", "views": 128, "size": 32},
    "small, 512 views": {"encoder": "small", "views": 512, "size": 32},
    "ResNet-50, 8 views of 224": {"encoder": "resnet50", "views": 8, "size": 224},
    "ResNet-18, 32 views": {"encoder": "resnet18", "views": 32, "size": 32},
    "ResNet-18, 64 views": {"encoder": "resnet18", "views": 64, "size": 32},
    "ResNet-18, 256 views": {"encoder": "resnet18", "views": 256, "size": 32},
}
LR, MOMENTUM, DECAY, TEMPERATURE = 0.05, 0.9, 1e-4, 0.1


def model_of(case: arena.Case, method: str = "conv=slabs") -> Any:
    return build_model(Config(encoder=case["encoder"], size=case["size"], method=method))


def views(case: arena.Case) -> tuple[Any, Any]:
    """Two blurry random images a pair, which differ by a little noise."""
    rng = np.random.default_rng(0)
    n, size = case["views"] // 2, case["size"]
    a = rng.random((n, 8, 8, 3), np.float32).repeat(size // 8, 1).repeat(size // 8, 2)
    return a, np.clip(a + 0.1 * rng.standard_normal(a.shape, np.float32), 0, 1)


# ── The contestants ───────────────────────────────────────────────────────────────────────────────


def ours(method: str) -> arena.Prepare:
    def prepare(case: arena.Case) -> Any:
        keep_freed_memory()  # as `pretrain` does
        model = model_of(case, method)
        optimizer = SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
        a, b = views(case)

        def run() -> float:
            with processor.blas_at_one_thread():
                loss, _, _ = model.loss(a, b, TEMPERATURE)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                return loss.item()

        return run, lambda loss: {"loss": loss}

    return prepare


def torch_step(channels_last: bool = False, compiled: bool = False, kept: bool = False) -> arena.Prepare:
    """kept: the memory of freed arrays is kept for the next step, as in ours; PyTorch by itself does not keep it."""

    def prepare(case: arena.Case) -> Any:
        import torch
        from torch_peer import torch_network  # here, because torch may be missing

        if kept:
            keep_freed_memory()
        own = model_of(case)
        net = torch_network(own)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
        images = torch.from_numpy(np.concatenate(views(case)).transpose(0, 3, 1, 2).copy())
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)

        def loss_of(images: Any) -> Any:
            u = torch.nn.functional.normalize(net(images), dim=1)
            logits = (u @ u.T / TEMPERATURE).masked_fill(torch.eye(len(u), dtype=torch.bool), float("-inf"))
            partner = (torch.arange(len(u)) + len(u) // 2) % len(u)
            return torch.nn.functional.cross_entropy(logits, partner)

        if compiled:
            torch._dynamo.reset()  # one batch size, as in training; else the next case is compiled for any size
        step = torch.compile(loss_of, dynamic=False) if compiled else loss_of

        def run() -> float:
            loss = step(images)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.item())

        return run, lambda loss: {"loss": loss}

    return prepare


# ── The floor ─────────────────────────────────────────────────────────────────────────────────────


def work(case: arena.Case) -> dict[str, float]:
    """Multiply–adds of a step, three products per convolution, and bytes of eight passes over its output.

    The passes are those of convolution and batch norm, forward and backward; chapter 13 of the book counts them.
    """
    from minisimclr.nn import Conv2d

    found = {"products": 0.0, "bytes": 0.0}
    call = Conv2d.__call__

    def counted(layer: Any, *inputs: Any, **settings: Any) -> Any:
        y = call(layer, *inputs, **settings)
        found["products"] += 3.0 * y.data.size * layer.weight.data.size / layer.weight.shape[-1] * case["views"] / 2
        found["bytes"] += 8.0 * y.data.nbytes * case["views"] / 2
        return y

    with mock.patch.object(Conv2d, "__call__", counted):
        model_of(case).encoder(views({**case, "views": 4})[0])
    return found


def floor(case: arena.Case, best: dict[str, float]) -> float:
    """Seconds that a step takes at least, at the best rates of the machine."""
    found = work(case)
    return found["products"] / best["gemm"] + found["bytes"] / best["copy"]


if __name__ == "__main__":
    arena.main(
        "train_step", __doc__ or "",
        {"slabs": ours("conv=slabs"), "winograd": ours("conv=winograd"), "auto": ours("conv=auto"),
         "plain": ours("plain")},
        {
            "torch channels-last": ("torch", torch_step(channels_last=True)),
            "torch contiguous": ("torch", torch_step()),
            "torch c.-l., memory kept": ("torch", torch_step(channels_last=True, kept=True)),
            "torch.compile": ("torch", torch_step(channels_last=True, compiled=True)),
            "torch.compile, memory kept": ("torch", torch_step(channels_last=True, compiled=True, kept=True)),
        },
        CASES, default=["ResNet-18, 128 views"], defaults=["torch channels-last", "torch contiguous"],
        floor=floor, unit="views/s", per_run=lambda case: float(case["views"]), seconds=45,
    )  # fmt: skip
