"""Accuracy after training with Winograd's convolution, beside that of the sum of products.

    python benchmarks/conv_accuracy.py --seeds 5 --json out.json     # about five minutes a seed on one core

Winograd rounds more (docs/03_convolution.md), so the demo is trained with both, from the same weights on the same
views, for several seeds. The two runs of a seed soon differ in every bit, as any two orders of summation would
make them; what counts is whether their accuracies differ by more than the seeds do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

from minisimclr import processor
from minisimclr.cli.demo import DEMO
from minisimclr.data import Dataset, load_dataset
from minisimclr.evaluation.embed import embed
from minisimclr.evaluation.knn import knn_accuracy
from minisimclr.evaluation.probe import fit_linear_probe
from minisimclr.training.train import pretrain

MEASURES = ("kNN, test", "kNN, unseen style", "linear, test", "linear, unseen style")


def accuracies(method: str, seed: int, splits: dict[str, Dataset]) -> dict[str, float]:
    """Percent correct on h after one run of the demo."""
    run = pretrain(dataclasses.replace(DEMO, method=f"conv={method}", seed=seed), splits["train"].images)
    h = {name: embed(run.model, split.images)[0] for name, split in splits.items()}
    probe = fit_linear_probe(h["train"], splits["train"].labels)
    tests = [(h[name], splits[name].labels) for name in ("test", "unseen")]
    knn = [knn_accuracy(h["train"], splits["train"].labels, *test, 20, 0.1) for test in tests]
    return {name: 100 * value for name, value in zip(MEASURES, knn + [probe.accuracy(*test) for test in tests])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    splits = {name: load_dataset(DEMO.data, name) for name in ("train", "test", "unseen")}
    found: dict[str, list[dict[str, float]]] = {"slabs": [], "winograd": []}
    for seed in range(options.seeds):
        for method, results in found.items():
            results.append(accuracies(method, seed, splits))
            print(f"seed {seed} {method:8} " + "  ".join(f"{k} {v:5.1f}" for k, v in results[-1].items()), flush=True)

    print(f"\n{'':22}{'slabs':>16}{'winograd':>16}{'difference, seed by seed':>28}")
    for name in MEASURES:
        slabs, winograd = ([result[name] for result in results] for results in found.values())
        differences = [b - a for a, b in zip(slabs, winograd)]
        print(f"{name:22}{_spread(slabs):>16}{_spread(winograd):>16}{_spread(differences):>28}")
    if options.json:
        about: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "blas": processor.blas_kernels(),
            "config": DEMO.as_dict(),
        }
        options.json.write_text(json.dumps({**about, "percent": found}, indent=1) + "\n")


def _spread(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
