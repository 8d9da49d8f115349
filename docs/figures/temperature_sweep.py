"""Pre-train the demo's small encoder at five temperatures, and see what its representation is worth.

    MINISIMCLR_THREADS=1 python docs/figures/temperature_sweep.py      # all runs, about 16 minutes of CPU time
    python docs/figures/temperature_sweep.py --table                   # the table of what is stored

The gradient of NT-Xent carries a factor 1/τ, so at one learning rate a large τ also means small steps, and the two
would be confused. Each temperature is therefore run at two peak rates: the demo's, the same for all, and one that
grows with τ, which keeps the steps alike. Runs that are in the JSON already are not repeated.
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
from minisimclr.evaluation.embed import embed
from minisimclr.evaluation.knn import knn_accuracy
from minisimclr.evaluation.probe import fit_linear_probe
from minisimclr.processor import blas_at_one_thread

RESULTS = Path(__file__).resolve().parent.parent / "results" / "temperature" / "sweep.json"
TEMPERATURES, SEEDS, EPOCHS = (0.05, 0.1, 0.2, 0.5, 1.0), (0, 1), 5


def rates(temperature: float) -> list[float]:
    """The peak learning rates per 256 images: the demo's, and the one that keeps lr/τ as in the demo."""
    return sorted({DEMO.lr, round(DEMO.lr * temperature / DEMO.temperature, 6)})


def run(temperature: float, lr: float, seed: int) -> dict[str, Any]:
    """Accuracies of h on the test split after EPOCHS epochs, in percent; the last epoch, evaluated once."""
    started = time.process_time()
    config = dataclasses.replace(DEMO, temperature=temperature, lr=lr, seed=seed, epochs=EPOCHS, method="conv=winograd")
    train, test = (ms.load_dataset(config.data, split, size=config.size) for split in ("train", "test"))
    trained = ms.pretrain(config, train.images)
    h, test_h = (embed(trained.model, data.images)[0] for data in (train, test))
    return {
        "temperature": temperature,
        "lr": lr,
        "seed": seed,
        "knn": 100 * knn_accuracy(h, train.labels, test_h, test.labels),
        "linear": 100 * fit_linear_probe(h, train.labels).accuracy(test_h, test.labels),
        "top1": 100 * statistics.mean(line["top1"] for line in trained.history[-20:]),
        "loss": statistics.mean(line["loss"] for line in trained.history[-20:]),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, a row for each temperature and rate, in Markdown."""
    lines = [
        "| τ | peak lr | kNN, h | linear, h | anchors that find their positive, training | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for temperature in TEMPERATURES:
        for lr in rates(temperature):
            own = [row for row in runs if (row["temperature"], row["lr"]) == (temperature, lr)]
            if own:
                cells = " | ".join(spread([row[key] for row in own]) for key in ("knn", "linear", "top1"))
                lines.append(f"| {temperature:g} | {lr:g} | {cells} | {len(own)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    runs = stored["runs"]
    done = {(row["temperature"], row["lr"], row["seed"]) for row in runs}
    wanted = [(t, lr, seed) for seed in SEEDS for t in TEMPERATURES for lr in rates(t)]
    for t, lr, seed in [] if "--table" in sys.argv else wanted:
        if (t, lr, seed) in done:
            continue
        with blas_at_one_thread():
            runs.append(run(t, lr, seed))
        print(runs[-1], flush=True)
        settings = dataclasses.asdict(dataclasses.replace(DEMO, epochs=EPOCHS, method="conv=winograd"))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
