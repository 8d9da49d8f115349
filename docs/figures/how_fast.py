"""Make the tables of chapter 13 of what is stored in benchmarks/results; the benchmarks draw its figures.

    python docs/figures/how_fast.py         prints them

Each function returns Markdown. Of a file that is not there, a line says that it was not measured yet.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import minisimclr as ms
from minisimclr import nn

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STEP, STEP_ALONE = "train_step_quiet_avx512.json", "train_step_1_thread.json"  # two threads, and one
LOSSES = {
    "ntxent_quiet_avx512.json": "AVX-512",
    "ntxent_quiet_avx2.json": "AVX2",
    "ntxent.json": "AVX2, an earlier day",
}
PROFILE, PICTURE = "step_profile.json", "step_profile.png"
NAMES = {  # in the files -> on the page; "direct" is an older name
    "direct": "slabs", "torch c.-l., memory kept": "torch, memory kept", "torch channels-last": "torch",
    "torch contiguous": "torch, contiguous",
}  # fmt: skip
RIVAL = "torch, memory kept"  # the honest one: it has our two calls of mallopt
OURS = ("auto", "slabs", "winograd", "plain", "tiled, E kept", "tiled, E recomputed", "exact", "reference",
        "NumPy textbook", "composed")  # fmt: skip
ENCODERS = {
    "small encoder, side 32": (ms.resnet_small, {}, 32),
    "ResNet-18, side 32": (ms.resnet18, {"stem": "cifar"}, 32),
    "ResNet-50, side 224": (ms.resnet50, {}, 224),
}
CASES = {  # of benchmarks/train_step.py: the encoder above, and views of a batch
    "small, 512 views": ("small encoder, side 32", 512),
    "ResNet-18, 128 views": ("ResNet-18, side 32", 128),
    "ResNet-50, 8 views of 224": ("ResNet-50, side 224", 8),
}
FAULTS = 185_000  # page faults of a step of ResNet-18 in PyTorch as it comes, in files that do not count them
PAGE = 4096  # bytes of a page of memory
EXPONENTIALS = 2 * 3e9  # in a second, on two threads, of files that do not tell: benchmarks/notes.md

Layer = tuple[tuple[int, ...], tuple[int, int]]  # kernel (K,K,C,D), and height and width of the output


# ── What is stored ────────────────────────────────────────────────────────────────────────────────


def stored(file: str) -> dict[str, Any]:
    """The results in a file, or nothing."""
    path = RESULTS / file
    return dict(json.loads(path.read_text())) if path.exists() else {}


def missing(file: str) -> str:
    return f"*Not measured yet: `benchmarks/results/{file}` is not there.*"


def of_case(file: str, case: str) -> dict[str, dict[str, Any]]:
    """The rows of a case that were measured, by the names that the page uses."""
    rows = [row for row in stored(file).get("rows", []) if row.get("case") == case and "median" in row]
    return {NAMES.get(row["name"], row["name"]): row for row in rows}


def table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in [heading, *rows]]
    return "\n".join([lines[0], "|---" * len(heading) + "|", *lines[1:]])


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%")  # no line breaks before the sign


def digits(number: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{number:,.{2 if number < 10 else 1 if number < 100 else 0}f}"


def in_tens(number: float) -> str:
    """A large number as 2.2 · 10¹¹."""
    power = int(np.floor(np.log10(number)))
    return f"{number / 10**power:.2g} · 10{str(power).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def sources() -> str:
    """A line that says of which commits the measurements are."""
    files = [STEP, STEP_ALONE, *LOSSES, "conv.json", "augment.json", "growth.json", PROFILE]
    found = {file: stored(file) for file in files if stored(file)}
    if not found:
        return missing(STEP)
    commits = defaultdict(list)
    for file, results in found.items():
        commits[results["commit"][:7] + " (changed)" * results["commit"].endswith("-dirty")].append(file)
    dates = sorted(results["date"] for results in found.values() if "date" in results)
    told = "; ".join(f"{commit}: {', '.join(f'`{file}`' for file in files)}" for commit, files in commits.items())
    apart = "They are not all of one commit, and older than the code" if len(commits) > 1 else "They are of one commit"
    when = f" from {dates[0]} to {dates[-1]}" if dates else ""
    return f"{apart}. Measured{when}, at the commits {told}."


# ── The floor ─────────────────────────────────────────────────────────────────────────────────────


def layers(encoder: Any, side: int) -> list[Layer]:
    """List kernel (K,K,C,D) and size (H',W') of every convolution of an encoder, for images of this side.

    The encoder runs with a convolution that only notes its shapes, on a batch of no images.
    """
    found: list[Layer] = []

    def noted(x: Any, w: Any, *, stride: int, padding: int, method: str) -> Any:
        (H, W, N, _), (K, _, _, D) = x.shape, w.shape
        height, width = ((side + 2 * padding - K) // stride + 1 for side in (H, W))
        found.append((w.shape, (height, width)))
        return ms.Tensor(np.zeros((height, width, N, D), np.float32))

    with mock.patch.object(ms.ops, "conv2d", noted):
        encoder(np.zeros((0, side, side, 3), np.float32))
    return found


def work(found: list[Layer]) -> tuple[float, float]:
    """Multiply–adds of a step, and bytes that its passes copy, for one view."""
    products = sum(3 * height * width * np.prod(kernel) for kernel, (height, width) in found)  # (13.2), (13.3)
    maps = sum(height * width * kernel[-1] for kernel, (height, width) in found)
    return float(products), float(8 * 4 * maps)  #                                        (13.4)


@functools.cache
def of_encoder(name: str) -> list[Layer]:
    make, options, side = ENCODERS[name]
    with mock.patch.object(nn, "he_normal", lambda rng, shape, fan: np.empty(shape, np.float32)):
        return layers(make(**options), side)  # drawing millions of weights would take the longest, for nothing


def counted() -> str:
    """The layers of two encoders, stage by stage: multiply–adds of a forward pass and maps, for one view."""
    rows = []
    for name in list(ENCODERS)[:2]:
        stages: dict[str, list[Layer]] = defaultdict(list)
        for kernel, size in of_encoder(name):
            stages["stem" if kernel[2] == 3 else f"{size[0]}×{size[1]}, {kernel[-1]} ch"].append((kernel, size))
        whole, bytes_ = work(of_encoder(name))
        for stage, own in stages.items():
            products, copied = work(own)
            cells = [f"{len(own)}", f"{products / 3e6:,.1f}", percent(products / whole), f"{copied / 32 / 2**10:,.0f}"]
            rows.append([name.partition(",")[0], stage, *cells, percent(copied / bytes_)])
        total = [f"{whole / 3e6:,.1f}", "", f"{bytes_ / 32 / 2**10:,.0f}", ""]
        rows.append([f"**{name.partition(',')[0]}**", "together", f"{len(of_encoder(name))}", *total])
    heading = ["encoder", "stage", "layers", "10⁶ multiply–adds", "share", "numbers in maps / 1,024", "share"]
    return table(heading, rows)


def rates() -> tuple[float, float] | None:
    """Multiply–adds and bytes copied in a second: the π and β of (13.5) that give the stored floors of all cases."""
    left = []
    for case, (encoder, views) in CASES.items():
        for row in list(of_case(STEP, case).values())[:1]:
            left.append(np.multiply(work(of_encoder(encoder)), views / row["floor"]))
    if len(left) < 2:
        return None
    seconds, *_ = np.linalg.lstsq(np.array(left), np.ones(len(left)), rcond=None)  # relative errors, least squares
    return float(1 / seconds[0]), float(1 / seconds[1])


def floors() -> str:
    """The two terms of the floor of a step, and the step that was measured."""
    found = rates()
    if found is None:
        return missing(STEP)
    rows = []
    for case, (encoder, views) in CASES.items():
        products, copied = np.multiply(work(of_encoder(encoder)), views)
        terms = [products / found[0], copied / found[1]]
        own = of_case(STEP, case).get("auto")
        if own is None:
            continue
        cells = [
            f"{products / 1e9:,.0f}",
            f"{copied / 1e9:.1f}",
            *(f"{1e3 * term:,.0f}" for term in (*terms, sum(terms))),
        ]
        rows.append([case, *cells, f"{1e3 * own['floor']:,.0f}", f"{1e3 * own['median']:,.0f}"])
    heading = ["times in ms", "10⁹ multiply–adds", "GB copied", "$F/\\pi$", "$B/\\beta$", "(13.5)",
               "the file's floor", "measured"]  # fmt: skip
    text = (
        f"π = {found[0] / 1e9:.0f} · 10⁹ multiply–adds and β = {found[1] / 1e9:.0f} GB copied in a second, "
        f"two threads together; π/β = {found[0] / found[1]:.1f} multiply–adds a byte."
    )
    return f"{text}\n\n{table(heading, rows)}"


def intensities() -> dict[str, float]:
    """Multiply–adds for each byte copied, forward; a copy reads a byte and writes one, so bytes moved count half."""

    def convolution(K: int, C: int, D: int) -> float:
        return K * K * C * D / (4 * (C + D) / 2)  # reads C numbers, writes D; the kernel stays in the cache

    return {
        "3×3 convolution, 512 channels": convolution(3, 512, 512),
        "3×3 convolution, 64 channels": convolution(3, 64, 64),
        "3×3 convolution, 32 channels": convolution(3, 32, 32),
        "1×1 convolution, 64 to 256 channels": convolution(1, 64, 256),
        "3×3 stem, 3 to 64 channels": convolution(3, 3, 64),
        "batch norm and ReLU": 3 / (4 * 3 / 2),  # of each number: two reads, one write; three multiply–adds
        "SGD with momentum": 3 / (4 * 5 / 2),  # of each weight: three reads, two writes
    }


def roofline() -> str:
    """The part of the best rate of the product that each operation can reach, by (13.6)."""
    found = rates()
    if found is None:
        return missing(STEP)
    ridge = found[0] / found[1]
    rows = [
        [name, f"{value:.1f}" if value < 10 else f"{value:,.0f}", "products" if value > ridge else "**memory**",
         percent(min(1, value / ridge))]
        for name, value in intensities().items()
    ]  # fmt: skip
    return table(["operation, forward", "multiply–adds a byte", "limited by", "of the best rate, at most"], rows)


# ── Measured ──────────────────────────────────────────────────────────────────────────────────────


def losses(n: int) -> list[dict[str, dict[str, Any]]]:
    """The rows of the files on NT-Xent, for a batch of n images, by name."""
    return [
        {row["name"]: row for row in stored(file).get("rows", []) if row["n"] == n and "median" in row}
        for file in LOSSES
    ]


def by_default(rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the form of the loss that runs unless another one is asked for."""
    return rows.get("auto", rows.get("tiled, E kept"))


def again(n: int = 4096) -> str:
    """The same loss in several runs of the same benchmark."""
    files = losses(n)
    names = [name for name in files[0] if all(name in rows for rows in files)]
    lines = []
    for name in names:
        times = [1e3 * rows[name]["median"] for rows in files]
        spread = [(rows[name]["quartiles"][1] - rows[name]["quartiles"][0]) / rows[name]["median"] for rows in files]
        cells = [f"{time:,.0f} ± {percent(share / 2)}" for time, share in zip(times, spread)]
        lines.append([name, *cells, f"{max(times) / min(times):.2f}"])
    heading = [f"N = {n:,}, ms", *LOSSES.values(), "largest over smallest"]
    return table(heading, lines) if lines else missing(next(iter(LOSSES)))


def profile() -> str:
    """The milliseconds of a step: by phase, by operation, and the figure."""
    found = stored(PROFILE)
    if not found:
        return missing(PROFILE)
    cases = found["cases"]
    steps = {case: sum(wall for wall, _ in rows["phases"].values()) for case, rows in cases.items()}
    phases = []
    for phase in next(iter(cases.values()))["phases"]:
        times = [(rows["phases"][phase][0], steps[case]) for case, rows in cases.items()]
        phases.append([phase, *(f"{1e3 * wall:,.1f} ({percent(wall / step)})" for wall, step in times)])
    phases.append(["**a step**", *(f"**{1e3 * step:,.1f}**" for step in steps.values())])
    parts = [table(["phase, ms", *cases], phases), operations(cases, steps, found["threads"])]
    if (RESULTS / PICTURE).exists():
        parts.append(f"![Where a step spends its time](../benchmarks/results/{PICTURE})")
    return "\n\n".join(parts)


def operations(cases: dict[str, Any], steps: dict[str, float], threads: int) -> str:
    """The operations that take a percent of some step, forward and backward, and their floors."""

    def spent(case: str, name: str) -> tuple[Any, Any]:
        own = cases[case]["operations"]
        return tuple(np.array(own.get(name + part, (0.0, 0.0))) for part in ("", " backward"))

    def share(case: str, name: str) -> float:
        return float(sum(spent(case, name))[0] / steps[case])

    names = {name.removesuffix(" backward") for rows in cases.values() for name in rows["operations"]}
    shown = [name for name in names if max(share(case, name) for case in cases) >= 0.01]
    lines = []
    for name in sorted(shown, key=lambda name: -sum(share(case, name) for case in cases)):
        lines.append([f"`{name}`"])
        for case in cases:
            (forward, backward), (wall, cpu) = spent(case, name), sum(spent(case, name))
            busy = percent(cpu / threads / wall) if wall else "0"
            times = f"{1e3 * forward[0]:,.1f} + {1e3 * backward[0]:,.1f}"
            lines[-1].append(f"{times} ({percent(share(case, name))}, {busy})")
    heading = ["forward + backward, ms (share, busy)", *cases]
    floors = []
    for label, op, parts in (
        ("convolutions", "conv2d", ["conv2d"]),
        ("batch norms and their statistics", "batch_norm", ["batch_norm", "moments"]),
    ):
        walls = {case: sum(sum(spent(case, name))[0] for name in parts) for case in cases}
        floors.append([label, *(f"{wall / cases[case]['floor'][op]:.2f}" for case, wall in walls.items())])
    return f"{table(heading, lines)}\n\n{table(['× floor', *cases], floors)}"


def threads() -> str:
    """A step on one thread and on two: elapsed and CPU time."""
    case = "ResNet-18, 128 views"
    one, two = of_case(STEP_ALONE, case), of_case(STEP, case)
    if not one or not two:
        return missing(STEP_ALONE)
    rows = []
    for name in ("slabs", "winograd", "auto", "torch", RIVAL):
        if name in one and name in two:
            a, b = one[name], two[name]
            cells = [f"{1e3 * row[key]:,.0f}" for row, key in ((a, "median"), (b, "median"), (a, "cpu"), (b, "cpu"))]
            rows.append(
                [name, *cells[:2], f"{a['median'] / b['median']:.2f}", *cells[2:], f"{b['cpu'] / a['cpu']:.2f}"]
            )
    heading = [case, "1 thread, ms", "2 threads, ms", "times as fast", "CPU time, 1", "CPU time, 2", "times the work"]
    return table(heading, rows)


def faults() -> str:
    """The cost of a page fault in PyTorch's step, from the same step with memory kept."""
    rows = of_case(STEP, "ResNet-18, 128 views")
    if "torch" not in rows or RIVAL not in rows:
        return missing(STEP)
    fresh, kept = rows["torch"], rows[RIVAL]
    lost, count = fresh["median"] - kept["median"], faults_more(fresh, kept)
    touched = count * PAGE / 2**20  # MiB
    return (
        f"Its step takes {1e3 * fresh['median']:,.0f} ms, and {1e3 * kept['median']:,.0f} with memory kept: "
        f"{percent(lost / fresh['median'])} of the time went into pages. That is {1e6 * lost / count:.1f} µs for each "
        f"of {count:,.0f} faults more, and together they are {touched:,.0f} MiB, where the step holds "
        f"{fresh['memory'] / 2**20:,.0f}."
    )


def faults_more(fresh: dict[str, Any], kept: dict[str, Any]) -> int:
    """Page faults of a step of PyTorch as it comes, beyond those of the one that keeps memory, in thousands."""
    more = fresh["faults"] - kept.get("faults", 0) if "faults" in fresh else FAULTS
    return max(1000, round(more, -3))


def kept() -> str:
    """The two sides of (13.9), and what an entry of E costs in memory that is new."""
    found, rows = rates(), of_case(STEP, "ResNet-18, 128 views")
    if found is None or "torch" not in rows or RIVAL not in rows:
        return missing(STEP)
    exponentials = next(
        (row["rates"]["exponentials"] for row in losses(4096)[0].values() if "rates" in row), EXPONENTIALS
    )
    copy, again = 4 / found[1], 128 / found[0] + 1 / exponentials
    count = faults_more(rows["torch"], rows[RIVAL])
    fault = (rows["torch"]["median"] - rows[RIVAL]["median"]) / count / (PAGE / 4)
    return (
        f"With the rates from above, {exponentials / 1e9:.0f} · 10⁹ exponentials a second and $d = 128$, the left "
        f"side is {1e9 * copy:.2f} ns and the right one {1e9 * again:.2f}. But a page fault of "
        f"{1e9 * fault * PAGE / 4e3:.1f} µs for {PAGE // 4:,} entries is {1e9 * fault:.1f} ns for each."
    )


def winograd() -> str:
    """Winograd's gain in multiply–adds, counted by (13.10), and in time, measured."""
    rows = []
    for case, about in stored("conv.json").get("cases", {}).items():
        own = of_case("conv.json", case)
        C, D = about["channels"], about["out"]
        if about["kernel"] == 3 and about["stride"] == 1 and C == D and "winograd" in own:
            gain = 144 * C * D / (36 * C * D + 36 * 36 * C + 16 * 36 * D)  # (13.10)
            slabs, fast = own["slabs"], own["winograd"]
            cells = [f"{gain:.2f}", f"{slabs['median'] / fast['median']:.2f}"]
            rows.append([case, *cells, f"{slabs['error']:.0e}", f"{fast['error']:.0e}"])
    heading = ["layer", "multiply–adds, slabs / Winograd", "time, slabs / Winograd", "error, slabs", "error, Winograd"]
    return table(heading, rows) if rows else missing("conv.json")


def growth() -> str:
    """Exponents fitted and expected, and what a constant part does to them."""
    found = stored("growth.json").get("growth", {})
    if "channels" not in found.get("step", {}):
        return missing("growth.json")
    rows = [
        [
            part,
            name,
            f"{own['sizes'][0]:,} … {own['sizes'][-1]:,}",
            *(
                f"{own[f'{kind} {what}']:.{2 if kind == 'fitted' else 0}f}"
                for what in ("time", "memory")
                for kind in ("fitted", "expected")
            ),
        ]
        for part, varied in found.items()
        for name, own in varied.items()
    ]
    sizes, times = (np.array(found["step"]["channels"][key], float) for key in ("sizes", "time"))
    terms = np.stack([sizes, sizes**2], axis=1) / times[:, None]
    (a, b), *_ = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)  # (13.11)
    error = abs((a * sizes + b * sizes**2) / times - 1).max()
    last = np.log(times[-1] / times[-2]) / np.log(sizes[-1] / sizes[-2])
    gains = ", ".join(f"{name} {gain:.2f}" for name, gain in stored("growth.json")["gain of two threads"].items())
    text = (
        f"Fitted to the times of a step against the channels, $a C + b C^2$ is off by at most {percent(error)}. Its "
        f"two terms are equal at {a / b:.0f} channels. From {sizes[-2]:.0f} to {sizes[-1]:.0f} channels the exponent "
        f"is {last:.2f}. Speed-up by a second thread: {gains}; below 1 it is slower."
    )
    heading = ["of", "against", "from … to", "time: fitted", "expected", "memory: fitted", "expected"]
    return f"{table(heading, rows)}\n\n{text}"


# ── The paper's size ──────────────────────────────────────────────────────────────────────────────

IMAGES, EPOCHS, BATCH = 1_281_167, 100, 4096  # ImageNet, and the batch of the paper
FILES, FROM = "128 JPEG files of 400x300, 224", "minisimclr, 1 worker"  # of photos.json: two views of each file
CASE_50, VIEWS_50 = "ResNet-50, 8 views of 224", 8


def paper_seconds(machines: int, view: float, made: float, loss: float, messages: float) -> dict[str, float]:
    """Seconds of each part of a step on so many machines of two cores.

    view: seconds of the network for one view, forward, backward and update. made: of one core to make a view of a
    file. loss: those of NT-Xent, alone.
    """
    views = 2 * BATCH / machines
    # One machine takes the batch in chunks: a forward pass more, and it makes the views twice, as chapter 14 says.
    passes, times = (4 / 3, 2) if machines == 1 else (1, 1)
    return {
        "network": passes * views * view,  # (13.12)
        "views": times * views * made / 2,  # two cores
        "NT-Xent": loss if machines == 1 else 2 * loss / machines,  # a share of the rows, but without symmetry
        "messages": messages,
    }


def paper() -> str:
    """Hours of the paper's run on this CPU, and on 128 of them."""
    rows = of_case(STEP, CASE_50)
    loss = by_default(losses(BATCH)[0])
    files = of_case("photos.json", FILES)
    if "auto" not in rows or loss is None:
        return missing(STEP)
    if FROM not in files:
        return missing("photos.json")
    made = files[FROM]["median"] / (2 * int(FILES.split()[0]))
    view, model = rows["auto"]["median"] / VIEWS_50, distributed()
    steps, lines = EPOCHS * (IMAGES // BATCH), []
    for machines in (1, 128):
        messages = model.predicted(machines)["messages"] if machines > 1 else 0.0
        parts = paper_seconds(machines, view, made, loss["median"], messages)
        step = sum(parts.values())
        hours, held = steps * step / 3600, 2 * BATCH / machines * rows["auto"]["memory"] / VIEWS_50 / 2**30
        memory = f"{held:,.1f} GiB" if machines > 1 else f"{held:,.0f} GiB; with `--chunk 32`, {held / 128:,.1f}"
        lines.append([f"{machines}", *(digits(seconds) for seconds in (*parts.values(), step))])
        lines[-1] += [f"**{hours:,.0f}**", f"{hours / 24:,.0f}" if hours > 240 else f"{hours / 24:.1f}", memory]
    products = work(of_encoder("ResNet-50, side 224"))[0]
    assumed = model.MACHINES["two cores"]
    text = (
        f"There are {IMAGES // BATCH} steps in an epoch, {steps:,} in all. A core makes a view of a "
        f"file in {1e3 * made:.1f} ms. The network takes {1e3 * view:.0f} ms for it, and that is "
        f"{in_tens(2 * products / view)} operations in a second, two for each multiply–add. Chapter 14 assumes "
        f"{in_tens(assumed)} for two cores; here messages weigh {2 * products / view / assumed:.1f} times as much "
        "beside the computing."
    )
    heading = ["machines", "network, s", "views, s", "NT-Xent, s", "messages, s", "a step, s", "hours", "days"]
    return f"{text}\n\n{table([*heading, 'memory of a step'], lines)}"


def distributed() -> Any:
    """The program benchmarks/distributed.py, whose model of many machines chapter 14 prints."""
    path = ROOT / "benchmarks" / "distributed.py"
    spec = importlib.util.spec_from_file_location("minisimclr_distributed_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ── Beside the peers ──────────────────────────────────────────────────────────────────────────────


def steps() -> str:
    """A step beside PyTorch's, the honest rival first: a table for each case."""
    tables = []
    for case in CASES:
        rows = of_case(STEP, case)
        if RIVAL not in rows:
            continue
        lines = []
        for name in [RIVAL, "auto", *(name for name in rows if name not in (RIVAL, "auto"))]:
            row = rows[name]
            low, high = (1e3 * time for time in row["quartiles"])
            cells = [f"{1e3 * row['median']:,.0f}", f"{low:,.0f} – {high:,.0f}", f"{row['median'] / row['floor']:.2f}"]
            cells += [f"{rows[RIVAL]['median'] / row['median']:.2f}", f"{row['cpu'] / row['median']:.2f}"]
            lines.append([f"**{name}**" if name in OURS else name, *cells, f"{row['memory'] / 2**20:,.0f}"])
        tables.append(table([case, "ms", "quartiles", "× floor", "speed", "cores busy", "memory, MiB"], lines))
    return "\n\n".join(tables) or missing(STEP)


def losses_beside() -> str:
    """NT-Xent beside its peers."""
    file, label = next(iter(LOSSES.items()))
    rows = [row for row in stored(file).get("rows", []) if "median" in row]
    names = list(dict.fromkeys(row["name"] for row in rows))
    sizes = sorted({row["n"] for row in rows})
    lines = []
    for name in names:
        own = {row["n"]: row for row in rows if row["name"] == name}
        cells = [
            f"{1e3 * own[n]['median']:,.2f} ms, × {own[n]['median'] / own[n]['floor']:.1f}" if n in own else ""
            for n in sizes
        ]
        lines.append([f"**{name}**" if name in OURS else name, *cells])
    return table([label, *(f"N = {n:,}" for n in sizes)], lines) if lines else missing(file)


def behind() -> str:
    """Each case in which a peer is faster than what we take by default, with the fastest one."""
    lines = []
    for case in CASES:
        rows = of_case(STEP, case)
        if "auto" in rows:
            lines += _behind(case, rows["auto"], rows)
    for file, label in LOSSES.items():
        rows = stored(file).get("rows", [])
        for n in sorted({row["n"] for row in rows}):
            own = {row["name"]: row for row in rows if row["n"] == n and "median" in row}
            if (row := by_default(own)) is not None:
                lines += _behind(f"NT-Xent, N = {n:,}, {label}", row, own)
    return table(["", "ours, ms", "fastest peer", "its ms", "its time, of ours"], lines) if lines else "Nowhere."


def _behind(case: str, ours: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    peers = {name: row["median"] for name, row in rows.items() if name not in OURS}
    best = min(peers, key=peers.__getitem__, default=None)
    if best is None or peers[best] >= ours["median"]:
        return []
    return [
        [case, f"{1e3 * ours['median']:,.3g}", best, f"{1e3 * peers[best]:,.3g}", f"{peers[best] / ours['median']:.2f}"]
    ]


TABLES = (sources, again, counted, floors, roofline, profile, threads, faults, kept, winograd, growth, paper, steps,
          losses_beside, behind)  # fmt: skip

if __name__ == "__main__":
    for make in TABLES:
        print(f"── {make.__name__}\n\n{make()}\n")
