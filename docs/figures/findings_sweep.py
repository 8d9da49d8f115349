"""Pre-train the demo's small encoder with one thing changed at a time: the head, the colours, the crop, the batch.

    MINISIMCLR_THREADS=1 python docs/figures/findings_sweep.py      # all runs, about 16 minutes of CPU time
    python docs/figures/findings_sweep.py --table                   # the table of what is stored

Runs that are in the JSON already are not repeated. Each is evaluated once, after its last epoch.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import minisimclr as ms
from minisimclr.cli.demo import DEMO
from minisimclr.processor import blas_at_one_thread

RESULTS = Path(__file__).resolve().parent.parent / "results" / "findings" / "sweep.json"
EPOCHS, SEEDS = 5, (0, 1)
CHANGES: dict[str, dict[str, Any]] = {
    "as the demo": {},
    "head of one layer (linear)": {"head_layers": 1},
    "no colour jitter": {"strength": 0.0},
    "no crop": {"min_area": 1.0},
    "head of three layers": {"head_layers": 3},
    "batch 32": {"batch": 32},
    "batch 512": {"batch": 512},
}


def run(change: dict[str, Any], seed: int) -> dict[str, Any]:
    """Accuracies of h and z on the test split after EPOCHS epochs, in percent."""
    started = time.process_time()
    config = dataclasses.replace(DEMO, seed=seed, epochs=EPOCHS, **change)
    train, test = (ms.load_dataset(config.data, split, size=config.size) for split in ("train", "test"))
    trained = ms.pretrain(config, train.images)
    kept = {name: (a, b) for name, a, b in zip("hz", trained.embed(train.images), trained.embed(test.images))}
    accuracies = {
        f"{measure}_{name}": 100 * function(a, train.labels, b, test.labels)
        for name, (a, b) in kept.items()
        for measure, function in (("knn", ms.knn_accuracy), ("linear", ms.linear_probe))
    }
    top1 = 100 * statistics.mean(line["top1"] for line in trained.history[-20:])
    return {"seed": seed, **accuracies, "top1": top1, "cpu_seconds": round(time.process_time() - started, 1)}


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation over seeds if there are some."""
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table(runs: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds of what is stored, a row for each change, in Markdown."""
    lines = ["| changed | kNN, h | linear, h | linear, z | top-1, training | seeds |", "|---|---|---|---|---|---|"]
    for name in CHANGES:
        if own := [row for row in runs if row["changed"] == name]:
            cells = " | ".join(spread([row[key] for row in own]) for key in ("knn_h", "linear_h", "linear_z", "top1"))
            lines.append(f"| {name} | {cells} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    runs = stored["runs"]
    done = {(row["changed"], row["seed"]) for row in runs}
    wanted = [(name, seed) for seed in SEEDS for name in CHANGES if (name, seed) not in done]
    for name, seed in [] if "--table" in sys.argv else wanted:
        with blas_at_one_thread():
            runs.append({"changed": name, **CHANGES[name], **run(CHANGES[name], seed)})
        print(runs[-1], flush=True)
        settings = dataclasses.replace(DEMO, epochs=EPOCHS).as_dict()
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
