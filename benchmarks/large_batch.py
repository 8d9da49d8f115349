"""Memory and time of a step in chunks (gradient caching), measured from outside and beside the ordinary step.

    python benchmarks/large_batch.py                          # about ten minutes on two quiet cores
    python benchmarks/large_batch.py --cases small            # one minute
    python benchmarks/large_batch.py --json out.json

peak    most resident memory of a process that runs `minisimclr pretrain` with a batch of 4,096 doodles for one step, as
        the operating system counts it when the process has ended: Python, data set, views and optimizer included
ratio   time of a step in chunks over that of an ordinary step, at a batch that fits both ways. The two take turns in
        one process, so that a slow minute slows both; of each the least CPU time of several rounds is taken, summed
        over threads, because wall time on a busy machine is that of the others' work
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.simclr import SimCLR
from minisimclr.training.config import Config, build_model, build_optimizer
from minisimclr.training.large_batch import loss_by_chunks

BATCH = 4096  # images of the step whose memory is measured: the paper's batch
CASES = {  # images in a chunk; images of the batch at which times are compared; GiB that the peak may take
    "small": {"chunk": 128, "both": 512, "limit": 4},
    "resnet18": {"chunk": 64, "both": 128, "limit": 8},
}


def peak_of_a_step(encoder: str, batch: int, chunk: int) -> dict[str, float]:
    """Run one step of `pretrain` in a process of its own: its peak of resident memory, CPU and wall time."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"encoder": encoder, "batch": batch, "chunk": chunk, "epochs": 1}
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "minisimclr", "pretrain", "--out", str(Path(folder) / "run"), *options]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        wall = time.perf_counter() - started
    return {"peak": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime, "wall": wall}  # bytes, s, s


def times_of_both(encoder: str, batch: int, chunk: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of ordinary steps and of steps in chunks, which take turns."""
    config = Config(encoder=encoder, batch=batch)
    model = build_model(config)
    optimizer = build_optimizer(config, model)
    a, b = np.random.default_rng(0).random((2, batch, 32, 32, 3), np.float32)
    times: dict[str, list[float]] = {"whole": [], "chunks": []}
    with processor.blas_at_one_thread():
        for _ in range(rounds):
            for kind, seconds in times.items():
                started = time.process_time()
                optimizer.backward(loss_of(kind, model, a, b, chunk))
                optimizer.step(0.0)
                optimizer.zero_grad()
                seconds.append(time.process_time() - started)
    return times | {"ratio": min(times["chunks"]) / min(times["whole"])}


def loss_of(kind: str, model: SimCLR, a: Any, b: Any, chunk: int) -> Any:
    return model.loss(a, b)[0] if kind == "whole" else loss_by_chunks(model, a, b, chunk=chunk)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=BATCH, help="images of the step whose memory is measured")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each kind whose times are compared")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    processor.keep_freed_memory()  # as `pretrain` does
    rows = []
    for name in options.cases:
        case = CASES[name]
        memory = peak_of_a_step(name, options.batch, case["chunk"])
        print(
            f"{name}: {options.batch:,} images in chunks of {case['chunk']}: peak {memory['peak'] / 2**30:.2f} GiB "
            f"(at most {case['limit']}), {memory['cpu']:.0f} s of CPU",
            flush=True,
        )
        times = times_of_both(name, case["both"], case["chunk"], options.rounds)
        print(f"{name}: {case['both']} images, in chunks over ordinary: {times['ratio']:.2f} times the CPU time")
        rows.append({"name": name, "batch": options.batch, **case, **memory, **times})
    if options.json:
        found = {"device": arena.device(), "commit": arena.commit(), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
