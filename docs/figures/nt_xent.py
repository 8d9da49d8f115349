"""Draw the figures of chapter 5, each from a seed, beside this file (needs matplotlib: the extra `plot`).

python docs/figures/nt_xent.py                      # all of them
python docs/figures/nt_xent.py numerics differences # some
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import style
from matplotlib import pyplot as plt
from style import FAINT, HERE, INK

from minisimclr.ntxent import nt_xent_value_and_grad

RESULTS = HERE.parent.parent / "benchmarks" / "results" / "ntxent.json"
OURS, TWO, THREE, FOUR, FIVE, SIX = style.GREEN, style.RED, style.BLUE, style.AMBER, style.PURPLE, style.GREY

style.curves()


def views(n: int, d: int, noise: float, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng([seed, n])
    a = rng.standard_normal((n, d))
    return a, a + noise * rng.standard_normal((n, d))


# ── The matrices of one batch ─────────────────────────────────────────────────────────────────────


def matrices() -> None:
    """C, P, G and G + Gᵀ of six images, in the order of the derivation."""
    n, temperature = 6, 0.5
    a, b = views(n, 8, noise=0.9, seed=4)
    u = np.concatenate([a, b])
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    c = u @ u.T
    e = np.exp(c / temperature)
    np.fill_diagonal(e, 0)
    p = e / e.sum(1, keepdims=True)
    y = np.roll(np.eye(2 * n), n, axis=1)
    g = (p - y) / (2 * n * temperature)
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.15))
    both = g + g.T
    shown = [
        ("C, the cosines", c, "PuOr_r", 1),
        ("P, rows sum to 1", p, "Greens", p.max()),
        ("G = (P − Y)/2Nτ", g, "RdBu_r", abs(g).max()),
        ("G + Gᵀ, felt by U", both, "RdBu_r", abs(both).max()),
    ]
    for ax, (title, matrix, colours, top) in zip(axes, shown):
        ax.imshow(matrix, cmap=colours, vmin=0 if colours == "Greens" else -top, vmax=top)
        ax.set_title(title)
        ax.grid(False)
        ax.set_xticks([n / 2 - 0.5, 1.5 * n - 0.5], ["views a", "views b"])
        ax.set_yticks([n / 2 - 0.5, 1.5 * n - 0.5], ["views a", "views b"], rotation=90, va="center")
        ax.tick_params(length=0)
        for line in (ax.axhline, ax.axvline):
            line(n - 0.5, color="white", linewidth=2)
    save(figure, "ntxent_matrices")


# ── Numerics ──────────────────────────────────────────────────────────────────────────────────────


def formulas(a: Any, b: Any, temperature: float) -> dict[str, tuple[float, Any]]:
    """Loss and gradient by four formulas that are equal on paper, each in the dtype of its inputs."""
    n = len(a)
    i, p = np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n)
    z = np.concatenate([a, b])
    length = np.linalg.norm(z, axis=1, keepdims=True)
    u = z / length
    logits = u @ u.T / u.dtype.type(temperature)
    logits[i, i] = -np.inf
    top = logits.max(1, keepdims=True)
    e, plain = np.exp(logits - top), np.exp(logits)
    softmax = e / e.sum(1, keepdims=True)
    positive = softmax[i, p]

    def gradient(weight: Any) -> Any:
        """From (P − Y), or what a formula has in its place, to z."""
        du = (weight + weight.T) @ u / u.dtype.type(2 * n * temperature)
        return (du - u * (u * du).sum(1, keepdims=True)) / length

    difference = softmax.copy()
    difference[i, p] -= 1
    saturated = difference * (positive / (positive + u.dtype.type(1e-8)))[:, None]
    loss, *ours = nt_xent_value_and_grad(a, b, temperature, "exact")
    return {
        "−log(p + 1e-8)": (float(-np.log(positive + u.dtype.type(1e-8)).mean()), gradient(saturated)),
        "−log(e$^s$ / Σ e$^s$)": (float(-np.log(plain[i, p] / plain.sum(1)).mean()), gradient(difference)),
        "logsumexp(s) − s": (float((np.log(e.sum(1)) + top[:, 0] - logits[i, p]).mean()), gradient(difference)),
        "log1p(Σ e$^m$), here": (loss, np.concatenate(ours)),
    }


def numerics() -> None:
    """Errors of the four formulas in float32, τ = 0.05, views that nearly agree; the worst of twelve batches."""
    sizes = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    errors: dict[str, list[list[float]]] = {}
    for n in sizes:
        worst: dict[str, list[float]] = {}
        for seed in range(12 if n <= 128 else 3):
            a, b = (x.astype(np.float32) for x in views(n, 128, noise=0.1, seed=seed))
            exact, *gradients = nt_xent_value_and_grad(a.astype(np.float64), b.astype(np.float64), 0.05, "exact")
            dz = np.concatenate(gradients)
            for name, (loss, got) in formulas(a, b, 0.05).items():
                now = [abs(loss - exact) / exact, float(np.linalg.norm(got - dz) / np.linalg.norm(dz))]
                worst[name] = [max(pair) for pair in zip(worst.get(name, [0, 0]), now)]
        for name, pair in worst.items():
            errors.setdefault(name, []).append(pair)
        print(f"N = {n:5}: " + "   ".join(f"{name}: loss {x:.0e}, gradient {y:.0e}" for name, (x, y) in worst.items()))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True)
    for ax, column, title in zip(axes, (0, 1), ("relative error of the loss", "relative error of the gradient")):
        for (name, pairs), colour, dashes in zip(errors.items(), (FOUR, TWO, THREE, OURS), ("-", "-", "--", "-")):
            if column == 1 and colour in (FOUR, THREE):
                continue  # their gradient is softmax − one-hot as well: the same line
            values = [max(pair[column], 1e-8) for pair in pairs]
            ax.loglog(sizes, values, dashes, color=colour, marker="o", markersize=3.5, label=name)
        ax.set(title=title, xlabel="images N", ylim=(1e-8, 5))
        ax.set_xticks([2, 8, 32, 128, 512], ["2", "8", "32", "128", "512"])
        ax.minorticks_off()
        ax.axhline(6e-8, color=SIX, linewidth=1, linestyle=":")
    axes[0].text(2, 7.5e-8, "rounding of one float32 operation", fontsize=8, color=SIX)
    axes[0].legend(loc="upper right", fontsize=9, bbox_to_anchor=(1, 0.62))
    axes[1].text(10, 0.2, "softmax − one-hot: the other three", color=TWO, fontsize=9)
    axes[1].text(10, 5e-6, "1 − P as the sum of the negatives: here", color=OURS, fontsize=9)
    save(figure, "ntxent_numerics")


# ── Temperature ───────────────────────────────────────────────────────────────────────────────────


def temperature() -> None:
    """Which negatives push: the softmax over 510 negatives of one anchor; and the paper's Table 5."""
    cosines = np.sort(np.random.default_rng(5).normal(0, 0.25, 510).clip(-1, 1))[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(1.5, 1))
    for tau, colour in ((0.05, TWO), (0.1, OURS), (0.5, THREE), (1.0, FIVE)):
        share = np.exp(cosines / tau)
        share /= share.sum()
        left.plot(np.arange(1, 511), 100 * share.cumsum(), color=colour, label=f"τ = {tau:g}")
        print(f"τ = {tau:<4} the hardest 5 of 510 negatives make {100 * share[:5].sum():5.1f} % of the push")
    left.set(xscale="log", xlim=(1, 510), ylim=(0, 102), xlabel="negatives counted, hardest first",
             title="share of the push, from the hardest negative on (%)")  # fmt: skip
    left.set_xticks([1, 5, 20, 100, 510], ["1", "5", "20", "100", "510"])
    left.minorticks_off()
    left.legend(loc="lower right")
    taus, top_1 = [0.05, 0.1, 0.5, 1], [59.7, 64.4, 60.7, 58.0]
    right.semilogx(taus, top_1, color=FAINT, marker="o", markersize=8, markerfacecolor=INK, markeredgecolor="white")
    right.plot(0.1, 64.4, "o", color=OURS, markersize=10)
    for tau, value in zip(taus, top_1):
        beside = {0.05: (-10, 8), 1: (4, 9)}.get(tau, (0, 9))
        right.annotate(f"{value}", (tau, value), xytext=beside, textcoords="offset points", ha="center")
    right.axvline(0.07, color=TWO, linewidth=1.2, linestyle=":")
    right.text(0.066, 57.2, "0.07: MoCo's,\nnot in any grid\nof this paper", color=TWO, fontsize=8, ha="right")
    right.set(title="paper, Table 5: ImageNet top-1 (%)", xlabel="τ, with normalized embeddings")
    right.set(xlim=(0.025, 1.4), ylim=(56.5, 66))
    right.set_xticks(taus, ["0.05", "0.1", "0.5", "1"])
    right.minorticks_off()
    save(figure, "ntxent_temperature")


# ── How it is checked ─────────────────────────────────────────────────────────────────────────────


def differences() -> None:
    """Central differences against the gradient by hand, for every step from 1 to 1e-12."""
    steps = 10.0 ** np.arange(-12, 0.01, 0.25)
    figure, ax = plt.subplots(figsize=(7.2, 3.9))
    a, b = views(16, 8, noise=0.5, seed=6)
    direction = np.random.default_rng(7).standard_normal((2, *a.shape))
    direction /= np.linalg.norm(direction)
    for dtype, colour, label in ((np.float32, FOUR, "loss in float32"), (np.float64, THREE, "loss in float64")):
        found = []
        _, da, db = nt_xent_value_and_grad(a, b, 0.1)
        slope = float((da * direction[0]).sum() + (db * direction[1]).sum())

        def loss_at(t: float, dtype: Any = dtype) -> float:
            moved = (z + t * v for z, v in zip((a, b), direction))
            return nt_xent_value_and_grad(*(z.astype(dtype) for z in moved), 0.1)[0]

        for h in steps:
            found.append(max(abs((loss_at(h) - loss_at(-h)) / (2 * h) / slope - 1), 1e-13))
        ax.loglog(steps, found, color=colour, label=label)
        print(f"{label}: best {min(found):.1e} at step {steps[int(np.argmin(found))]:.1e}")
    ax.text(3e-2, 2e-6, "∝ h²: the loss\nis not a line", color=SIX, fontsize=9)
    ax.text(3e-11, 3e-8, "∝ 1/h: rounding\nof the loss", color=SIX, fontsize=9, ha="center")
    ax.text(1e-11, 2, "loss in float32", color=FOUR)
    ax.text(1e-11, 2e-4, "loss in float64", color=THREE)
    ax.set(xlabel="step h", title="relative error of (L(z + hv) − L(z − hv)) / 2h against ⟨∇L, v⟩", ylim=(1e-12, 30))
    save(figure, "ntxent_differences")


# ── The benchmark ─────────────────────────────────────────────────────────────────────────────────


def benchmark() -> None:
    """Time and memory against N, from the benchmark's own JSON."""
    result = json.loads(RESULTS.read_text())
    colours = {"tiled, E kept": OURS, "tiled, E recomputed": "#5cb88f", "exact": FIVE, "NumPy textbook": FOUR,
               "torch eager": TWO, "torch.compile": "#e8919c", "lightly": "#8c564b", "jax.jit": THREE,
               "pytorch-metric-learning": SIX, "optax": "#8fb1d8"}  # fmt: skip
    rows = [row for row in result["rows"] if "median" in row]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3))
    for name, colour in colours.items():
        own = [row for row in rows if row["name"].replace("reference", "exact") == name]  # its name in older results
        ours = name.startswith("tiled")
        for ax, values in zip(axes, ([1e3 * r["median"] for r in own], [max(r["memory"], 2**16) / 2**20 for r in own])):
            ax.loglog(
                [r["n"] for r in own],
                values,
                color=colour,
                marker="o",
                markersize=5 if ours else 3.5,
                linewidth=2.6 if ours else 1.3,
                zorder=3 if ours else 2,
                label=name,
            )
    sizes = sorted({row["n"] for row in rows})
    floor = [1e3 * next(row["floor"] for row in rows if row["n"] == n) for n in sizes]
    axes[0].loglog(sizes, floor, ":", color=INK, label="floor")
    for ax, title in zip(axes, ("time of loss and gradient, ms", "extra memory, MiB")):
        ax.set(title=title, xlabel="images N")
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    save(figure, "ntxent_benchmark")


def save(figure: Any, name: str) -> None:
    figure.savefig(HERE / f"{name}.png", metadata={"Software": None})
    plt.close(figure)
    print(f"{name}.png")


FIGURES: dict[str, Callable[[], None]] = {
    function.__name__: function for function in (matrices, numerics, temperature, differences, benchmark)
}

if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        FIGURES[name]()
