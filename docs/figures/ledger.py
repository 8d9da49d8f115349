"""Draw the memory ledger of a training step, for chapter 6, beside this file (needs matplotlib: the extra `plot`).

    python docs/figures/ledger.py

What each operation keeps for the backward pass: `ms.saved_bytes` of the small encoder with 256 views, in the plain form
and in the default one.
"""

from __future__ import annotations

import numpy as np
import style
from matplotlib import pyplot as plt

import minisimclr as ms

VIEWS, SEED, SHOWN = 256, 0, 6  # the views of 128 images; the number of operations that have a bar of their own


def ledger(method: str) -> dict[str, float]:
    """MiB that each operation keeps, the largest first; the small ones as one."""
    rng = np.random.default_rng(SEED)
    encoder = ms.resnet_small(rng=rng, method=method)
    head = ms.ProjectionHead(encoder.features, encoder.features, 128, rng=rng, method=method)
    views = rng.random((VIEWS, 32, 32, 3), np.float32)
    loss, _, _ = ms.SimCLR(encoder, head, method=method).loss(views[: VIEWS // 2], views[VIEWS // 2 :])
    kept = sorted(((size / 2**20, name) for name, size in ms.saved_bytes(loss).items()), reverse=True)
    rest = sum(size for size, _ in kept[SHOWN:])
    return {name: size for size, name in kept[:SHOWN]} | ({"the others": rest} if rest else {})


def main() -> None:
    style.curves()
    ledgers = {"plain forms": ledger("plain"), "default forms": ledger("auto")}
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.9), sharex=True)
    for ax, (title, kept), colour in zip(axes, ledgers.items(), (style.BLUE, style.GREEN)):
        bars = ax.barh(list(kept), list(kept.values()), color=colour, height=0.66)
        ax.bar_label(bars, [f"{size:.1f}" for size in kept.values()], padding=3, color=style.INK, fontsize=9)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set(title=f"{title}: {sum(kept.values()):.0f} MiB", xlabel="MiB kept for the backward pass")
        ax.margins(x=0.12)
    figure.savefig(style.HERE / "ledger.png")


if __name__ == "__main__":
    main()
