"""Time, memory and error of a convolution, forward and backward.

    python benchmarks/conv.py                # the 3×3 convolutions of a ResNet-18 on 128 views of 32×32
    python benchmarks/conv.py --cases "stem 7x7, 224" --threads 1
    python benchmarks/conv.py --json out.json --plot out.png

The contestants live in processes of their own and take turns (arena.py), and all of them keep the memory of freed
arrays for the next call, as our training step does. Shown are the median of the time and its quartiles; the speed as
a multiple of the first peer's; the time as a multiple of what the multiply–adds of nine products would take at this
machine's best rate of the matrix product (Winograd needs fewer: it can pass below 1); the memory that a call holds
beyond its inputs; GFLOP/s of the nine products; and the largest relative error of value and gradients against float64.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.ops.conv import conv2d
from minisimclr.processor import keep_freed_memory


def case(side: int, views: int, channels: int, out: int, kernel: int = 3, stride: int = 1) -> arena.Case:
    return {"side": side, "views": views, "channels": channels, "out": out, "kernel": kernel, "stride": stride}


CASES = {
    "64 ch, 32x32": case(32, 128, 64, 64),
    "128 ch, 16x16": case(16, 128, 128, 128),
    "256 ch, 8x8": case(8, 128, 256, 256),
    "512 ch, 4x4": case(4, 128, 512, 512),
    "stem 3x3": case(32, 128, 3, 64),
    "64 to 128, stride 2": case(32, 128, 64, 128, stride=2),
    "256 to 512, stride 2": case(8, 128, 256, 512, stride=2),
    "1x1, 64 to 128, stride 2": case(32, 128, 64, 128, kernel=1, stride=2),
    "32 ch, 16x16, 512 views": case(16, 512, 32, 32),
    "128 ch, 4x4, 512 views": case(4, 512, 128, 128),
    "64 ch, 56x56, 8 views": case(56, 8, 64, 64),
    "512 ch, 7x7, 8 views": case(7, 8, 512, 512),
    "1x1, 256 to 64, 56x56, 8 views": case(56, 8, 256, 64, kernel=1),
    "stem 7x7, 224, 8 views": case(224, 8, 3, 64, kernel=7, stride=2),
}
DEFAULT = ["64 ch, 32x32", "128 ch, 16x16", "256 ch, 8x8", "512 ch, 4x4", "stem 3x3", "64 to 128, stride 2"]


def inputs(case: arena.Case) -> tuple[Any, Any, Any]:
    """x (H,W,N,C) as a ReLU leaves it, w (K,K,C,D), and the gradient that arrives (H',W',N,D)."""
    rng = np.random.default_rng(0)
    side, views, kernel = case["side"], case["views"], case["kernel"]
    out = (side - 1) // case["stride"] + 1
    x = np.maximum(rng.standard_normal((side, side, views, case["channels"]), np.float32), 0)
    w = rng.standard_normal((kernel, kernel, case["channels"], case["out"]), np.float32) / kernel
    return x, w, rng.standard_normal((out, out, views, case["out"]), np.float32)


def geometry(case: arena.Case) -> dict[str, int]:
    return {"stride": case["stride"], "padding": case["kernel"] // 2}


def exact(case: arena.Case) -> dict[str, Any]:
    x, w, g = (a.astype(np.float64) for a in inputs(case))
    return dict(zip(("y", "dx", "dw"), forward_and_backward(x, w, g, case, "slabs")))


def forward_and_backward(x: Any, w: Any, g: Any, case: arena.Case, method: str) -> tuple[Any, ...]:
    y, vjp = conv2d.__wrapped__(np, x, w, method=method, **geometry(case))  # type: ignore[attr-defined]
    return y, *(gradient() if callable(gradient) else gradient for gradient in vjp(g))


def ours(method: str) -> arena.Prepare:
    def prepare(case: arena.Case) -> Any:
        keep_freed_memory()
        x, w, g = inputs(case)

        def run() -> Any:
            with processor.blas_at_one_thread():
                return forward_and_backward(x, w, g, case, method)

        return run, lambda result: dict(zip(("y", "dx", "dw"), result))

    return prepare


def torch_conv(channels_last: bool) -> arena.Prepare:
    def prepare(case: arena.Case) -> Any:
        import torch

        keep_freed_memory()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, w, g = (
            torch.from_numpy(a.transpose(axes).copy()).contiguous(memory_format=layout)
            for a, axes in zip(inputs(case), [(2, 3, 0, 1), (3, 2, 0, 1), (2, 3, 0, 1)])
        )
        x.requires_grad_()
        w.requires_grad_()

        def run() -> Any:
            y = torch.nn.functional.conv2d(x, w, **geometry(case))
            return y.detach(), *torch.autograd.grad(y, (x, w), g)

        def answer(result: Any) -> dict[str, Any]:
            y, dx, dw = (a.numpy() for a in result)
            return {"y": y.transpose(2, 3, 0, 1), "dx": dx.transpose(2, 3, 0, 1), "dw": dw.transpose(2, 3, 1, 0)}

        return run, answer

    return prepare


def multiply_adds(case: arena.Case) -> float:
    """Multiply–adds of forward, dx and dw; taps that read outside the map count too."""
    out = (case["side"] - 1) // case["stride"] + 1
    return 3.0 * out**2 * case["views"] * case["kernel"] ** 2 * case["channels"] * case["out"]


if __name__ == "__main__":
    arena.main(
        "conv", __doc__ or "", {name: ours(name) for name in ("slabs", "winograd", "auto", "plain")},
        {"torch channels-last": ("torch", torch_conv(True)), "torch contiguous": ("torch", torch_conv(False))},
        CASES, default=DEFAULT, defaults=["torch channels-last", "torch contiguous"],
        floor=lambda case, best: multiply_adds(case) / best["gemm"], exact=exact,
        unit="GFLOP/s", per_run=lambda case: 2e-9 * multiply_adds(case),
    )  # fmt: skip
