"""Crops from the files against crops from shrunken squares: doodles of 256 pixels as JPEG files, kNN over three seeds.

    python benchmarks/crops.py                      # six runs of about a minute on two cores; stops and goes on
    python benchmarks/crops.py --images 400 --epochs 2 --seeds 1   # a look at it

Both kinds of run differ in `cache_side` alone: −2 cuts the crops from squares of `size` pixels, as version 0.1 did; −1
keeps the files at a shorter side of 4·size. The order of the images, the crops in parts of the image, and the colours
are the same. What is done already is found in the folder, and is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import minisimclr as ms

KINDS = {"shrunken squares": -2, "files at 4·size": -1}
SIDE = 256  # of the drawings, pixels


def drawn(folder: Path, counts: dict[str, int]) -> None:
    """Draw the files, class by class, unless they are there."""
    for split, count in counts.items():
        place = folder / split
        if (place / "done").exists():
            continue
        data = ms.load_dataset("doodles", split, size=SIDE, limit=count)
        for k in range(len(data)):
            kind = place / data.class_names[data.labels[k]]
            kind.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[k]).save(kind / f"{k:05}.jpg", quality=92)
        (place / "done").write_text("")


def score(config: ms.Config, folder: Path) -> float:
    """Train a run, or go on with it, and return the accuracy of kNN on h."""
    finished = folder / "score.json"
    if finished.exists():
        return float(json.loads(finished.read_text())["knn"])
    run = ms.pretrain(config, folder=folder, resume=(folder / "checkpoint.npz").exists())
    # Both kinds are evaluated on the same squares.
    train, test = (ms.load_dataset(config.data, split, size=config.size, cache_side=-2) for split in ("train", "test"))
    found = [ms.embed(run.model, data)[0] for data in (train, test)]
    knn = ms.knn_accuracy(found[0], train.labels, found[1], test.labels)
    finished.write_text(json.dumps({"knn": float(knn), "steps": run.steps}))
    return float(knn)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000, help="training images (default: 2000)")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each run (default: 12)")
    parser.add_argument("--size", type=int, default=32, help="side of the views, pixels (default: 32)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("runs/crops"), help="files and runs (default: runs/crops)")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    data = options.folder / f"doodles-{options.images}"
    drawn(data, {"train": options.images, "test": options.images // 4})
    plain = ms.Config(
        data=str(data), size=options.size, batch=128, epochs=options.epochs, lr=0.2, temperature=0.2, min_area=0.08
    )
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(options.seeds):
        for kind, side in KINDS.items():
            config = dataclasses.replace(plain, seed=seed, cache_side=side)
            name = f"{options.images}-{options.size}-{options.epochs}-{seed}{side}"
            scores[kind].append(score(config, options.folder / name))
            print(f"seed {seed}, {kind}: kNN {100 * scores[kind][-1]:.1f} %", flush=True)
    for kind, found in scores.items():
        print(f"{kind:18} {100 * np.mean(found):5.1f} % (from {100 * min(found):.1f} to {100 * max(found):.1f})")
    if options.json:
        settings = {name: value for name, value in plain.as_dict().items() if name not in ("data", "seed")}
        options.json.write_text(json.dumps({"settings": settings, "images": options.images, "knn": scores}, indent=1))


if __name__ == "__main__":
    main()
