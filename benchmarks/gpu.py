"""Everything there is to measure on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py                     # writes gpu.json and prints a table
    python benchmarks/gpu.py --json out.json --minutes 8 --sections NT-Xent convolution

It needs CuPy (pip install cupy-cuda12x or cupy-cuda13x) and what minisimclr itself needs; PyTorch is measured
beside it if it can be imported. Ours with TF32, ours without, PyTorch and torch.compile live in a process each,
because CuPy reads its switch for TF32 once, and take turns; a turn is a row of runs, timed on the device from
event to event.

    median      of all runs of all turns; quartiles, the first and the third
    speed       of PyTorch eager in the same precision as the first of its rows: above 1 is faster than it
    x floor     the median as a multiple of the longer of two times: the multiply–adds at the rate of the matrix
                product in this precision, and reading and writing every input and output once at the rate of a copy,
                both measured in this run (for a whole step their sum, with eight passes over every feature map)
    memory      the most that a run holds beyond its inputs, as the allocator of CuPy or PyTorch reserves it
    host        until the host has handed over one run: if it is about the median, the GPU waits for Python
    off by      difference to our first row, of the loss or of the size of all results together

A row that fails says why and harms no other. The results are written after every case, so a run that is killed
keeps what it had.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
Case = dict[str, Any]
Row = dict[str, Any]


class Contestant(NamedTuple):
    """A library, one of its ways to do the work, and a precision."""

    who: str
    how: str
    precision: str

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.who, self.how, self.precision) if part)

    @property
    def worker(self) -> str:
        if self.who == "torch":
            return "torch.compile" if self.how == "compile" else "torch"
        return "cupy TF32" if self.precision == "TF32" else "cupy"


class Section(NamedTuple):
    share: float  # share of the available time
    contestants: list[Contestant]
    cases: list[Case]
    rounds: int = 3  # number of turns of each contestant, if there is time
    keep: bool = True  # keep prepared arrays between turns; False if all together would fill the memory


def several(who: str, *ways: tuple[str, str]) -> list[Contestant]:
    return [Contestant(who, how, precision) for how, precision in ways]


# ── The measurements ──────────────────────────────────────────────────────────────────────────────


def convolution(name: str, side: int, views: int, channels: int, out: int, kernel: int = 3, stride: int = 1) -> Case:
    return {
        "name": name,
        "side": side,
        "views": views,
        "channels": channels,
        "out": out,
        "kernel": kernel,
        "stride": stride,
    }


def ntxent_ways(methods: list[str]) -> list[tuple[str, str]]:
    """The methods of NT-Xent that run on a GPU, beside PyTorch in the precision that they reach; the exact form in two.

    Three bfloat16 products in the place of one come close to float32.
    """
    ways = [(name, "bfloat16" if name.endswith("bf16") else "float32") for name in methods if name.startswith("cuda")]
    return [*ways, ("exact", "float32"), ("exact", "TF32")]


def sections(smoke: bool, methods: list[str]) -> dict[str, Section]:
    """All sections; with `smoke` in sizes that take no time, to try out the program."""

    def at(full: int, tiny: int) -> int:
        return tiny if smoke else full

    return {
        "ceilings": ceilings(at),
        "NT-Xent": nt_xents(at, methods),
        "convolution": convolutions(at),
        "batch norm": batch_norms(at),
        "views": pairs_of_views(at),
        "step": steps(at),
    }


Sizes = Callable[[int, int], int]  # the size in full, and in a smoke test -> the one that is wanted
SINGLE = [("", "float32"), ("", "TF32")]
HALF = [("", "float16"), ("", "bfloat16")]


def ceilings(at: Sizes) -> Section:
    products = [("product", precision) for precision in ("float32", "TF32", "float16", "bfloat16")]
    case = {"name": "this machine", "side": at(8192, 64), "bytes": at(2**30, 2**12)}
    return Section(0.04, several("minisimclr", *products, ("copy", "float32")), [case], rounds=2)


def nt_xents(at: Sizes, methods: list[str]) -> Section:
    theirs = several("torch", *SINGLE, ("", "bfloat16"), ("compile", "TF32"))
    sizes = dict.fromkeys(at(n, tiny) for n, tiny in ((256, 8), (1024, 16), (4096, 16), (16384, 16), (65536, 16)))
    cases = [{"name": f"N = {n:,}", "N": n, "D": 128} for n in sizes]
    return Section(0.2, several("minisimclr", *ntxent_ways(methods)) + theirs, cases)


def convolutions(at: Sizes) -> Section:
    v, w, c = at(1024, 8), at(256, 8), at(64, 4)  # views of 32 pixels, views of 224, channels
    contestants = several("minisimclr", *SINGLE, *HALF) + several("torch", *SINGLE, *HALF)
    cases = [
        convolution("3×3, 64 ch, 32×32, 1,024 views", at(32, 6), v, c, c),
        convolution("3×3, 128 ch, 16×16", at(16, 4), v, 2 * c, 2 * c),
        convolution("3×3, 256 ch, 8×8", at(8, 4), v, 4 * c, 4 * c),
        convolution("3×3, 512 ch, 4×4", at(4, 2), v, 8 * c, 8 * c),
        convolution("3×3, 64 → 128 ch, 32×32, stride 2", at(32, 6), v, c, 2 * c, stride=2),
        convolution("CIFAR stem, 3×3, 3 → 64 ch, 32×32", at(32, 6), v, 3, c),
        convolution("1×1, 256 → 64 ch, 56×56, 256 views", at(56, 6), w, 4 * c, c, kernel=1),
        convolution("stem, 7×7, 3 → 64 ch, 224×224, stride 2", at(224, 16), w, 3, c, 7, 2),
    ]
    return Section(0.22, contestants, cases)


def batch_norms(at: Sizes) -> Section:
    contestants = several("minisimclr", SINGLE[0]) + several("torch", SINGLE[0], ("compile", "float32"))
    cases = [
        {"name": "and ReLU, 1,048,576 × 64", "rows": at(2**20, 256), "channels": 64},
        {"name": "and ReLU, 65,536 × 256", "rows": at(2**16, 128), "channels": 256},
    ]
    return Section(0.06, contestants, cases)


def pairs_of_views(at: Sizes) -> Section:
    small = {"images": at(512, 4), "side": 32, "size": 32, "strength": 0.5, "blur": False}
    large = {"images": at(128, 2), "side": at(256, 32), "size": at(224, 24), "strength": 1.0, "blur": True}
    cases = [{"name": "two of 512 images of 32", **small}, {"name": "two of 128 images, 224 of 256, blur", **large}]
    return Section(0.06, several("minisimclr", *SINGLE), cases)


def steps(at: Sizes) -> Section:
    ours = several("minisimclr", *SINGLE, ("with views", "TF32"), *HALF)
    theirs = several("torch", *SINGLE, ("", "bfloat16"), ("compile", "TF32"), ("compile", "bfloat16"))
    tiny = at(1, 0) == 0
    cases = [
        {
            "name": "ResNet-18, CIFAR stem, 512 images",
            "encoder": "small" if tiny else "resnet18",
            "views": at(1024, 4),
            "size": at(32, 8),
        },
        {
            "name": "ResNet-50, 224, 128 images",
            "encoder": "small" if tiny else "resnet50",
            "views": at(256, 4),
            "size": at(224, 8),
        },
    ]
    return Section(0.4, ours + theirs, cases, rounds=2, keep=False)


# ── The floor ─────────────────────────────────────────────────────────────────────────────────────


def least(section: str, case: Case, precision: str) -> tuple[float, float]:
    """Floating-point operations, and bytes that must be read and written."""
    size = 2 if precision in ("float16", "bfloat16") else 4
    if section == "ceilings":
        return 2.0 * case["side"] ** 3, 2.0 * case["bytes"]
    if section == "NT-Xent":  # each cosine once, by symmetry; its two parts in du
        n = 2 * case["N"]
        return 3.0 * n * n * case["D"], 2.0 * n * case["D"] * size
    if section == "convolution":
        inside, outside = case["side"], (case["side"] - 1) // case["stride"] + 1
        products = 3.0 * outside**2 * case["views"] * case["kernel"] ** 2 * case["channels"] * case["out"]
        maps = case["views"] * (inside**2 * case["channels"] + outside**2 * case["out"])
        return 2 * products, 2.0 * maps * size
    if section == "batch norm":  # x for mean, variance and value, y; then g and x for the sums and for dx, dx
        return 0.0, 9.0 * case["rows"] * case["channels"] * size
    if section == "views":
        return 0.0, case["images"] * (3.0 * case["side"] ** 2 + 2 * 3 * 4 * case["size"] ** 2)
    import train_step

    never = math.inf
    return (
        2 * train_step.floor(case, {"gemm": 1.0, "copy": never}),
        train_step.floor(case, {"gemm": never, "copy": 1.0}) * size / 4,
    )


def floor(section: str, work: tuple[float, float], precision: str, rates: dict[str, float]) -> float | None:
    """The longer of both times, or for a step, whose layers take turns at either, their sum; None if unknown."""
    flops, size = work
    if section == "ceilings" or "copy" not in rates or (flops and precision not in rates):
        return None
    both = flops / rates[precision] if flops else 0.0, size / rates["copy"]
    return sum(both) if section == "step" else max(both)


# ── Workers ───────────────────────────────────────────────────────────────────────────────────────


def serve(name: str, device: str) -> None:
    """Answer the questions that come in on stdin, one JSON object a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    import gpu_work

    worker = gpu_work.Worker(name, device)
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            reply = {"failed": f"{type(error).__name__}: {text}"[:160]}
        if "failed" in reply:
            worker.release()  # the other contestants need the memory that it filled in vain
        print(json.dumps(reply), file=answers, flush=True)


class Worker:
    """The other end: a process, started when first asked, and again after it died."""

    def __init__(self, name: str, device: str, errors: Any) -> None:
        self.name, self.device, self.errors = name, device, errors
        self.process: subprocess.Popen[str] | None = None

    def ask(self, patience: float, **question: Any) -> dict[str, Any]:
        """The answer; {"failed": why} if there is none in `patience` seconds."""
        if self.process is None:
            environment = os.environ | {"CUPY_TF32": "1" if "TF32" in self.name else "0"}
            command = [sys.executable, __file__, "--serve", self.name, "--device", self.device]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], max(1.0, patience))
            answer = self.process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, answer = [0], ""
        if not answer:
            self.leave()
            return {"failed": "its process died" if ready else f"no answer in {patience:.0f} s"}
        return json.loads(answer)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Free what was prepared."""
        if self.process is not None:
            self.ask(60, forget=True)

    def leave(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


# ── Rounds ────────────────────────────────────────────────────────────────────────────────────────


def measure(
    name: str,
    section: Section,
    case: Case,
    workers: dict[str, Worker],
    seconds: float,
    deadline: float,
    rates: dict[str, float],
) -> list[Row]:
    """One row a contestant: everyone takes turns until the time is up, but one turn at least before the deadline."""
    contestants = [c for c in section.contestants if c.worker in workers]
    rows: list[Row] = [
        {"section": name, "case": case["name"], "name": c.name, "who": c.who, "precision": c.precision, "times": []}
        for c in contestants
    ]
    begin = time.monotonic()
    turn = seconds / len(rows) / section.rounds / 2  # the other half of the time goes into preparing
    asked = {"section": name, "case": case, "seconds": turn, "keep": section.keep}
    for number in range(section.rounds if seconds else 1):
        for c, row in zip(contestants, rows):
            left = deadline - time.monotonic()
            late = number > 0 and seconds - (time.monotonic() - begin) < turn
            if "failed" in row or left < 0 or late:
                continue
            patience = min(left, max(60.0, 2 * seconds))
            reply = workers[c.worker].ask(patience, who=c.who, how=c.how, precision=c.precision, **asked)
            row["times"] += reply.pop("times", [])
            row.update(reply)
    for worker in workers.values():
        worker.forget()
    summarise(name, case, rows, rates)
    return rows


def summarise(section: str, case: Case, rows: list[Row], rates: dict[str, float]) -> None:
    """Median, quartiles, and what follows from all rows together."""
    done = [row for row in rows if row["times"]]
    for row in done:
        row["median"] = statistics.median(row["times"])
        quarters = statistics.quantiles(row["times"], n=4) if len(row["times"]) > 1 else [row["median"]] * 3
        row["quartiles"] = [quarters[0], quarters[2]]
        work = least(section, case, row["precision"])
        row["floor"] = floor(section, work, row["precision"], rates)
        if section == "ceilings":
            copying = ", copy" in row["name"]
            rates["copy" if copying else row["precision"]] = row["rate"] = work[copying] / row["median"]
        if done[0]["check"] and "with views" not in row["name"]:  # rows with views see other images
            row["off by"] = abs(row["check"] / done[0]["check"] - 1)
    if section != "ceilings":
        compare_with_pytorch(done)


def compare_with_pytorch(rows: list[Row]) -> None:
    """The speed of each row: PyTorch eager in the same precision is 1, or in its first if it lacks this one."""
    eager = [row for row in rows if row["who"] == "torch" and "compile" not in row["name"]]
    peers = {row["precision"]: row["median"] for row in reversed(eager)}
    for row in rows if peers else ():
        row["speed"] = peers.get(row["precision"], next(iter(peers.values()))) / row["median"]


# ── The output ────────────────────────────────────────────────────────────────────────────────────


def table(rows: list[Row]) -> str:
    """A case: one line a contestant, times in one unit."""
    longest = max((row["median"] for row in rows if "median" in row), default=1.0)
    scale, unit = (1e6, "µs") if longest < 1e-3 else (1e3, "ms")
    head = f"  {'':34}{'median, ' + unit:>12}{'quartiles':>20}"
    if rows[0]["section"] == "ceilings":
        head += f"{'rate':>18}"
    else:
        head += f"{'speed':>9}{'x floor':>9}{'memory':>11}{'host':>9}{'off by':>9}"
    return "\n".join(["", f"{rows[0]['section']}: {rows[0]['case']}", head, *(table_line(row, scale) for row in rows)])


def table_line(row: Row, scale: float) -> str:
    if "median" not in row:
        return f"  {row['name']:34}  – {row.get('failed', 'no time left')[:80]}"
    low, high = (digits(scale * t) for t in row["quartiles"])
    line = f"  {row['name']:34}{digits(scale * row['median']):>12}{f'{low} – {high}':>20}"
    if row["section"] == "ceilings":
        copying = ", copy" in row["name"]
        line += f"{digits(row['rate'] / (1e9 if copying else 1e12)):>10} {'GB/s' if copying else 'TFLOP/s':7}"
    else:
        ratio = row["median"] / row["floor"] if row["floor"] else None
        off = f"{row['off by']:.0e}" if row.get("off by") else "–"
        line += (
            f"{digits(row.get('speed')):>9}{digits(ratio):>9}{row['memory'] / 2**20:>7,.0f} MiB"
            f"{digits(scale * row['host']):>9}{off:>9}"
        )
    return (line + (f"   then: {row['failed'][:40]}" if "failed" in row else "")).rstrip()


def digits(value: float | None) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1,234."""
    if value is None:
        return "–"
    behind = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(3, max(0, behind))}f}"


def heading(about: dict[str, Any]) -> str:
    kept = [
        ("driver (CUDA)", "driver for CUDA "),
        ("runtime (CUDA)", "CUDA "),
        ("cupy", "CuPy "),
        ("torch", "PyTorch "),
        ("numpy", "NumPy "),
        ("python", "Python "),
    ]
    return f"{about['device']}\n" + ", ".join(f"{text}{about[key]}" for key, text in kept if about.get(key))


def commit() -> str:
    """The commit of the checkout, with a + if files were changed; "unknown" without git."""
    try:
        git = ["git", "-C", str(HERE)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+" if changed else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="gpu.json", metavar="PATH", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=8, help="stop after this long (default: %(default)g)")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=list(sections(True, [])),
        metavar="SECTION",
        help=f"of {', '.join(sections(True, []))}; the ceilings are always measured",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--without-torch", action="store_true", help="measure ours alone")
    parser.add_argument("--errors", metavar="PATH", default=os.devnull, help="what the workers print goes here")
    parser.add_argument("--device", choices=["cuda", "stand-in"], default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.device)
        return 0
    begin = time.monotonic()
    with open(options.errors, "w") as errors:
        workers = {name: Worker(name, options.device, errors) for name in ("cupy", "cupy TF32")}
        if importlib.util.find_spec("torch") and not options.without_torch:
            workers |= {name: Worker(name, options.device, errors) for name in ("torch", "torch.compile")}
        try:
            return run(options, workers, begin)
        except KeyboardInterrupt:
            print(f"\nstopped; what was measured is in {options.json}")
            return 130
        finally:
            for worker in workers.values():
                worker.leave()


def run(options: argparse.Namespace, workers: dict[str, Worker], begin: float) -> int:
    about = describe(workers)
    if "failed" in about:
        print(f"benchmarks/gpu.py: {about['failed'].removeprefix('RuntimeError: ')}", file=sys.stderr)
        return 2
    chosen = {
        name: section
        for name, section in sections(options.smoke, about.pop("methods")).items()
        if name == "ceilings" or not options.sections or name in options.sections
    }
    report: dict[str, Any] = {"benchmark": "gpu", "commit": commit(), "date": time.strftime("%Y-%m-%d")}
    report |= {"about": about, "smoke": options.smoke, "rates": {}, "rows": []}
    write(options.json, report)
    whole = sum(section.share for section in chosen.values())
    deadline = begin + 60 * options.minutes
    for name, section in chosen.items():
        end = time.monotonic() + (deadline - time.monotonic()) * section.share / whole
        whole -= section.share
        for k, case in enumerate(section.cases):
            seconds = 0.0 if options.smoke else (end - time.monotonic()) / (len(section.cases) - k)
            if seconds < 0:
                now = [{"section": name, "case": case["name"], "name": "everyone", "failed": "no time left"}]
            else:
                now = measure(name, section, case, workers, seconds, deadline, report["rates"])
            report["rows"] += now
            print(table(now), flush=True)
            write(options.json, report)
    print(f"\nwritten to {options.json} after {time.monotonic() - begin:.0f} s")
    return 0


def describe(workers: dict[str, Worker]) -> dict[str, Any]:
    """Ask and print what the work runs on. Without a GPU for PyTorch its workers leave."""
    about = workers["cupy"].ask(120, describe=True)
    if "failed" in about:
        return about
    peer = workers["torch"].ask(120, describe=True) if "torch" in workers else {}
    if "failed" in peer:
        print(f"PyTorch is left out: {peer.pop('failed')}")
        for name in ("torch", "torch.compile"):
            workers.pop(name).leave()
    about |= peer | {"numpy": importlib.metadata.version("numpy"), "python": platform.python_version()}
    print(heading(about) + ("" if "torch" in workers else "\nours alone, without PyTorch"))
    return about


def write(path: str, report: dict[str, Any]) -> None:
    """All at once, so that a run that is killed leaves a whole file."""
    partial = Path(f"{path}.part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
