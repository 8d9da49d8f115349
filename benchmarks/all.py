"""Every benchmark of the CPU, one after the other: what benchmarks/README.md and chapter 13 are made of.

    python benchmarks/all.py                    # an hour and more, on a machine that does nothing else
    python benchmarks/all.py --again            # the same in another hour: the tables then show both
    python benchmarks/all.py --list             # the commands, and which results are there
    python benchmarks/all.py ntxent_2 demo      # some of them

Each program writes benchmarks/results/NAME.json (results/again/NAME.json), with device, commit and date. What is there
of this code is not measured again, so that a command that was stopped goes on with the program at which it was. The
peers need `pip install ".[peers]"`; those that are missing are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
AGAIN = "again"  # folder of the results of another hour
QUIET = 0.5  # average number of processes that want a core, of the last minute
PICTURES = {"growth", "step_profile", "ntxent_2", "choose_2"}  # of these a figure is drawn as well

STEPS = ["small, 512 views", "ResNet-18, 128 views", "ResNet-50, 8 views of 224"]
LOSSES = ["auto", "auto, in a run", "tiled, E kept", "tiled, E recomputed", "torch eager", "torch.compile", "lightly",
          "jax.jit"]  # fmt: skip
SLOW_LOSSES = [
    *LOSSES, "exact", "plain", "composed", "NumPy textbook", "pytorch-metric-learning", "optax"
]  # fmt: skip
SIZES = ["16", "32", "64", "128", "256", "512", "1024", "2048", "4096", "8192", "16384"]
ROWS = ["slabs", "auto", "torch channels-last", "torch c.-l., memory kept", "torch.compile, memory kept"]
LAYERS = ["64 ch, 32x32", "128 ch, 16x16", "256 ch, 8x8", "512 ch, 4x4", "32 ch, 16x16, 512 views", "stem 3x3",
          "64 to 128, stride 2"]  # fmt: skip

FILES = ["128 JPEG files of 400x300, 224", "16 JPEG files of 12 megapixels, 224"]
ARRAYS = ["256 images of 32", "256 images of 32, blur", "32 images, 224 of 256"]
MAKERS = ["minisimclr", "minisimclr, 2 processes", "Pillow, 2 processes", "torchvision, Pillow",
          "torchvision v2, tensors"]  # fmt: skip
READERS = ["minisimclr, 1 worker", "minisimclr, 2 workers", "DataLoader, 1 worker", "DataLoader, 2 workers"]

# The name of the result -> the program and its options, the most important first.
COMMANDS: dict[str, list[str]] = {
    "train_step_2": ["train_step", "--threads", "2", "--cases", *STEPS, "--only", *ROWS, "--peers", "--seconds", "40"],
    "ntxent_2": ["ntxent", "--threads", "2", "--peers", "--only", *LOSSES, "--sizes", *SIZES, "--seconds", "20"],
    "choose_2": ["ntxent", "--threads", "2", "--choose", "--seconds", "12"],
    "ntxent_1": ["ntxent", "--threads", "1", "--peers", "--only", *LOSSES, "--sizes", *SIZES, "--seconds", "20"],
    "choose_1": ["ntxent", "--threads", "1", "--choose", "--seconds", "12"],
    "train_step_1": ["train_step", "--threads", "1", "--cases", *STEPS[:2], "--only", *ROWS, "--peers"],
    "growth": ["growth"],
    "step_profile": ["step_profile", "--threads", "2"],
    "conv": ["conv", "--threads", "2", "--peers", "--cases", *LAYERS],
    "augment": ["augment", "--threads", "2", "--peers", "--cases", *ARRAYS, "--only", *MAKERS],
    "photos": ["augment", "--threads", "2", "--peers", "--cases", *FILES, "--only", *READERS],
    "ntxent_peers": ["ntxent", "--threads", "2", "--peers", "--only", *SLOW_LOSSES, "--sizes", "256", "1024"],
    "choose_float64": ["ntxent", "--threads", "2", "--choose", "--dtype", "float64", "--sizes", *SIZES[:-2]],
    "demo": [],
}


def demo(path: Path) -> bool:
    """Time `minisimclr demo` from its start to its end, and store its accuracies with the time; False if it fails."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        started = time.perf_counter()
        command = [sys.executable, "-m", "minisimclr", "demo", "--out", str(out)]
        if subprocess.run(command, env=environment, cwd=folder).returncode:
            return False
        seconds = time.perf_counter() - started
        results = json.loads((out / "results.json").read_text())
    arena.write(str(path), "demo", {"device": arena.device(), "seconds": seconds, "results": results})
    return True


def measure(name: str, path: Path) -> int:
    """Run one benchmark; return True if it ended well."""
    if name == "demo":
        return demo(path)
    program, *options = COMMANDS[name]
    options += ["--json", str(path)]
    if name in PICTURES and importlib.util.find_spec("matplotlib"):
        options += ["--plot", str(path.with_suffix(".png"))]
    return subprocess.run([sys.executable, str(HERE / f"{program}.py"), *options]).returncode == 0


def is_there(path: Path) -> bool:
    """Return True if a whole result of this very code is there; code that has changed since its commit has none."""
    if not path.exists() or arena.commit().endswith("-dirty"):
        return False
    return known(path).get("commit") == arena.commit() and known(path).get("complete", True)


def known(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--again", action="store_true", help="store beside the results of another hour")
    parser.add_argument("--anyway", action="store_true", help="measure on a machine that is busy")
    parser.add_argument("--list", action="store_true", help="print the commands, and leave")
    options = parser.parse_args()
    if unknown := set(options.names) - COMMANDS.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > QUIET and not (options.list or options.anyway):
        parser.error(f"the machine is busy (load {os.getloadavg()[0]:.1f}): wait, or give --anyway")
    folder = RESULTS / AGAIN if options.again else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in options.names or COMMANDS:
        path = folder / f"{name}.json"
        there = "there" if is_there(path) else f"of {known(path)['commit']}" if path.exists() else "missing"
        if options.list:
            print(f"{name:15} {there:20} {shlex.join(COMMANDS[name]) or 'minisimclr demo'}")
        elif there != "there":
            print(f"\n── {name}", flush=True)
            started = time.monotonic()
            failed += not measure(name, path)
            print(f"── {name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
