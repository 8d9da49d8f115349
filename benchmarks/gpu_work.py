"""The pieces of work that benchmarks/gpu.py measures, on CuPy and in PyTorch, inside a worker process.

A piece of work is a function `prepare(machine, case, precision, how) -> (run, check)`: `run()` does the work and leaves
the result on the device, `check(result)` makes one number of it, by which one sees that all compute the same.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run from a checkout without installing it

from minisimclr import backend, ntxent, ops  # noqa: E402
from minisimclr.ops.norm import fused, shared  # noqa: E402
from minisimclr.training.config import Config, build_model  # noqa: E402
from minisimclr.training.optim import SGD  # noqa: E402
from minisimclr.training.precision import LossScale, half_dtype  # noqa: E402
from minisimclr.views.augment import two_views  # noqa: E402

Case = dict[str, Any]
Work = tuple[Callable[[], Any], Callable[[Any], float]]
LR, MOMENTUM, DECAY, TEMPERATURE = 0.05, 0.9, 1e-4, 0.1


# ── Machines: where arrays live, and how time and memory are read there ───────────────────────────


class CuPy:
    """The GPU through CuPy; or, to try out this program where there is none, the tests' stand-in for CuPy."""

    def __init__(self, device: str) -> None:
        self.real = device == "cuda"
        if not self.real:
            sys.path.insert(0, str(ROOT / "tests" / "stand_in"))
        backend.to_device(np.zeros(1), "cuda")  # says in one line what is missing
        import cupy

        self.xp = cupy

    def describe(self) -> dict[str, Any]:
        methods = {"methods": list(ntxent.METHODS)}
        if not self.real:
            return {"device": "none: the tests' stand-in for CuPy, whose times mean nothing", **methods}
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(self.xp.cuda.Device().id)
        return {
            "device": properties["name"].decode(),
            "memory": properties["totalGlobalMem"],
            "capability": self.xp.cuda.Device().compute_capability,
            "multiprocessors": properties["multiProcessorCount"],
            "driver (CUDA)": runtime.driverGetVersion(),
            "runtime (CUDA)": runtime.runtimeGetVersion(),
            "cupy": self.xp.__version__,
            **methods,
        }

    def put(self, array: Any, precision: str) -> Any:
        kind = {"TF32": "float32"}.get(precision, precision)
        return backend.to_device(array, "cuda").astype(self.xp.dtype(kind), copy=False)

    def rms(self, *arrays: Any) -> float:
        squares = [(a.astype(self.xp.float32) ** 2).mean() for a in arrays]
        return sum(float(backend.to_numpy(s)) ** 0.5 for s in squares)

    def event(self) -> Any:
        if not self.real:
            return time.perf_counter()
        event = self.xp.cuda.Event()
        event.record()
        return event

    def seconds(self, first: Any, last: Any) -> float:
        return 1e-3 * self.xp.cuda.get_elapsed_time(first, last) if self.real else last - first

    def wait(self) -> None:
        if self.real:
            self.xp.cuda.Device().synchronize()

    def release(self) -> int:
        """Give unused memory back; what is still held."""
        gc.collect()
        if not self.real:
            return 0
        pool = self.xp.get_default_memory_pool()
        pool.free_all_blocks()
        return int(pool.total_bytes())

    def peak(self) -> int:
        """The most that was held since `release`: CuPy's pool only grows until then."""
        return int(self.xp.get_default_memory_pool().total_bytes()) if self.real else 0


class Torch:
    """The GPU through PyTorch; its CPU, where this program is tried out."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch, self.real = torch, device == "cuda"
        if self.real and not torch.cuda.is_available():
            raise RuntimeError("PyTorch finds no GPU")
        self.device = "cuda" if self.real else "cpu"

    def describe(self) -> dict[str, Any]:
        return {
            "torch": self.torch.__version__,
            "torch CUDA": self.torch.version.cuda,
            "cudnn": self.torch.backends.cudnn.version(),
        }

    def use(self, precision: str) -> Any:
        """Set PyTorch's own switches; a context in which bfloat16 and float16 are autocast."""
        self.torch.backends.cuda.matmul.allow_tf32 = self.torch.backends.cudnn.allow_tf32 = precision == "TF32"
        self.torch.backends.cudnn.benchmark = True
        if precision in ("float32", "TF32"):
            return contextlib.nullcontext()
        return self.torch.autocast(self.device, getattr(self.torch, precision))

    def put(self, array: Any, precision: str = "float32") -> Any:
        kind = getattr(self.torch, {"TF32": "float32"}.get(precision, precision))
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device, kind)

    def maps(self, array: Any, precision: str) -> Any:
        """(H,W,N,C) -> (N,C,H,W), channels last in memory."""
        return self.put(array.transpose(2, 0, 1, 3), precision).permute(0, 3, 1, 2)

    def rms(self, *arrays: Any) -> float:
        return sum(float((a.float() ** 2).mean()) ** 0.5 for a in arrays)

    def event(self) -> Any:
        if not self.real:
            return time.perf_counter()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, first: Any, last: Any) -> float:
        return 1e-3 * first.elapsed_time(last) if self.real else last - first

    def wait(self) -> None:
        if self.real:
            self.torch.cuda.synchronize()

    def release(self) -> int:
        gc.collect()
        if not self.real:
            return 0
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        return int(self.torch.cuda.memory_reserved())

    def peak(self) -> int:
        return int(self.torch.cuda.max_memory_reserved()) if self.real else 0


def measure(machine: Any, run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Seconds of each of a row of runs, from event to event on the device; `host`: until the first was handed over."""
    start = time.perf_counter()
    run()
    machine.wait()
    expected = time.perf_counter() - start
    count = int(min(200, max(3, seconds / max(expected, 1e-6))))
    events = [machine.event()]
    start = time.perf_counter()
    for k in range(count):
        run()
        events.append(machine.event())
        if k == 0:
            host = time.perf_counter() - start
    machine.wait()
    return {"times": [machine.seconds(a, b) for a, b in itertools.pairwise(events)], "host": host}


# ── Inputs ────────────────────────────────────────────────────────────────────────────────────────


def embeddings(case: Case) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    za = rng.standard_normal((case["N"], case["D"]), np.float32)
    return za, za + rng.standard_normal(za.shape, np.float32)


def convolution_inputs(case: Case) -> tuple[Any, Any, Any]:
    """x (H,W,N,C) as a ReLU leaves it, w (K,K,C,D), and the gradient that arrives (H',W',N,D)."""
    rng = np.random.default_rng(0)
    side, views, kernel = case["side"], case["views"], case["kernel"]
    out = (side - 1) // case["stride"] + 1
    pattern = np.maximum(rng.standard_normal((side, side, 8, case["channels"]), np.float32), 0)
    w = rng.standard_normal((kernel, kernel, case["channels"], case["out"]), np.float32) / kernel
    g = rng.standard_normal((out, out, 8, case["out"]), np.float32)
    return pattern.repeat(views // 8, 2), w, g.repeat(views // 8, 2)  # drawing all would take longer than the rest


def table_inputs(case: Case) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((case["rows"] // 64, case["channels"]), np.float32).repeat(64, 0)
    scale, shift = rng.random((2, case["channels"]), np.float32)
    return x, scale, shift, np.ascontiguousarray(x[::-1])


def pictures(case: Case) -> Any:
    blocks = np.random.default_rng(0).integers(0, 256, (case["images"], 8, 8, 3), np.uint8)
    return blocks.repeat(case["side"] // 8, 1).repeat(case["side"] // 8, 2)


# ── Ours ──────────────────────────────────────────────────────────────────────────────────────────


def our_ceiling(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    xp, side = machine.xp, case["side"]
    if how == "copy":
        source, target = xp.ones(case["bytes"] // 4, xp.float32), xp.empty(case["bytes"] // 4, xp.float32)

        def copy() -> Any:
            target[...] = source
            return target

        return copy, lambda y: float(backend.to_numpy(y[-1]))
    a = machine.put(np.random.default_rng(0).random((side, side), np.float32), precision)
    return lambda: a @ a, lambda y: machine.rms(y)


def our_ntxent(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    za, zb = (machine.put(z, "float32") for z in embeddings(case))  # the precision is that of the products
    method = ntxent.METHODS[how]
    return lambda: method(za, zb, TEMPERATURE), lambda result: float(backend.to_numpy(result[0]))


def our_convolution(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    x, w, g = (machine.put(a, precision) for a in convolution_inputs(case))
    conv2d = ops.conv2d.__wrapped__  # type: ignore[attr-defined]

    def run() -> Any:
        y, vjp = conv2d(machine.xp, x, w, stride=case["stride"], padding=case["kernel"] // 2)
        return y, *(d() if callable(d) else d for d in vjp(g))

    return run, lambda result: machine.rms(*result)


def our_batch_norm(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    x, scale, shift, g = (machine.put(a, precision) for a in table_inputs(case))
    settings = {"eps": 1e-5, "totals": shared.totals_of(None), "relu": True}

    def run() -> Any:
        mean, variance = ops.moments(machine.xp, x)
        y, vjp = fused.batch_norm(machine.xp, x, scale, shift, mean=mean, variance=variance, **settings)
        return y, *vjp(g)

    return run, lambda result: machine.rms(*result)


def our_views(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    images, rng = backend.to_device(pictures(case), "cuda"), np.random.default_rng(1)
    options = case["size"], case["strength"], case["blur"]
    return lambda: two_views(images, rng, *options), lambda views: machine.rms(*views)


def our_step(machine: CuPy, case: Case, precision: str, how: str) -> Work:
    import train_step

    config = Config(encoder=case["encoder"], size=case["size"], device="cuda", precision=precision.lower())
    model = build_model(config, half_dtype(config.precision, "cuda")).to("cuda")
    scale = LossScale() if precision == "float16" else None
    optimizer = SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY, loss_scale=scale)
    images = backend.to_device(pictures({"images": case["views"] // 2, "side": case["size"]}), "cuda")
    given, rng = [backend.to_device(v, "cuda") for v in train_step.views(case)], np.random.default_rng(1)

    def run() -> Any:
        a, b = two_views(images, rng, case["size"], 0.5, case["size"] > 96) if how == "with views" else given
        loss, _, _ = model.loss(a, b, TEMPERATURE)
        optimizer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.data

    return run, lambda loss: float(backend.to_numpy(loss))


# ── PyTorch ───────────────────────────────────────────────────────────────────────────────────────


def contrastive(torch: Any, z: Any) -> Any:
    """NT-Xent as it is usually written: similarity matrix, mask, cross-entropy."""
    n = len(z)
    u = torch.nn.functional.normalize(z, dim=1)
    logits = (u @ u.T / TEMPERATURE).masked_fill(torch.eye(n, dtype=torch.bool, device=z.device), float("-inf"))
    partner = (torch.arange(n, device=z.device) + n // 2) % n
    return torch.nn.functional.cross_entropy(logits.float(), partner)


def torch_ntxent(machine: Torch, case: Case, precision: str, how: str) -> Work:
    torch = machine.torch
    z = machine.put(np.concatenate(embeddings(case))).requires_grad_()

    def loss_of(z: Any) -> Any:
        return contrastive(torch, z)

    compute = torch.compile(loss_of) if how == "compile" else loss_of

    def run() -> Any:
        with machine.use(precision):
            loss = compute(z)
        return loss, torch.autograd.grad(loss, z)

    return run, lambda result: float(result[0].detach())


def torch_convolution(machine: Torch, case: Case, precision: str, how: str) -> Work:
    torch = machine.torch
    x, w, g = convolution_inputs(case)
    x, g = (machine.maps(a, precision) for a in (x, g))
    w = machine.put(w.transpose(3, 2, 0, 1), precision).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    w.requires_grad_()

    def run() -> Any:
        machine.use("TF32" if precision == "TF32" else "float32")  # the arrays are of the precision asked for
        y = torch.nn.functional.conv2d(x, w, stride=case["stride"], padding=case["kernel"] // 2)
        return y.detach(), *torch.autograd.grad(y, (x, w), g)

    return run, lambda result: machine.rms(*result)


def torch_batch_norm(machine: Torch, case: Case, precision: str, how: str) -> Work:
    torch = machine.torch
    x, scale, shift, g = (machine.put(a) for a in table_inputs(case))
    inputs = [x.requires_grad_(), scale.requires_grad_(), shift.requires_grad_()]

    def value(x: Any, scale: Any, shift: Any) -> Any:
        return torch.relu(torch.nn.functional.batch_norm(x, None, None, scale, shift, training=True))

    compute = torch.compile(value) if how == "compile" else value

    def run() -> Any:
        y = compute(*inputs)
        return y.detach(), *torch.autograd.grad(y, inputs, g)

    return run, lambda result: machine.rms(*result)


def torch_step(machine: Torch, case: Case, precision: str, how: str) -> Work:
    import train_step
    from torch_peer import torch_network

    torch = machine.torch
    net = torch_network(train_step.model_of(case)).to(machine.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    scaler = torch.amp.GradScaler(machine.device, enabled=precision == "float16")
    images = machine.put(np.concatenate(train_step.views(case))).permute(0, 3, 1, 2)  # channels last in memory
    forward = torch.compile(net) if how == "compile" else net

    def run() -> Any:
        with machine.use(precision):
            z = forward(images)
        loss = contrastive(torch, z.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return run, lambda loss: float(loss)


WORK: dict[str, dict[str, Callable[..., Work]]] = {
    "ceilings": {"minisimclr": our_ceiling},
    "NT-Xent": {"minisimclr": our_ntxent, "torch": torch_ntxent},
    "convolution": {"minisimclr": our_convolution, "torch": torch_convolution},
    "batch norm": {"minisimclr": our_batch_norm, "torch": torch_batch_norm},
    "views": {"minisimclr": our_views},
    "step": {"minisimclr": our_step, "torch": torch_step},
}


# ── The worker ────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """Answers questions: describe yourself; forget what was prepared; or do a turn of one contestant."""

    def __init__(self, name: str, device: str) -> None:
        self.machine: Any = None
        self.make = lambda: Torch(device) if name.startswith("torch") else CuPy(device)
        self.prepared: dict[str, tuple[Any, dict[str, Any]]] = {}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        self.machine = self.machine or self.make()
        if "describe" in question:
            return self.machine.describe()  # type: ignore[no-any-return]
        if "forget" in question:
            self.prepared.clear()
            self.release()
            return {}
        key = str([question[part] for part in ("section", "case", "who", "how", "precision")])
        if key not in self.prepared:
            self.prepared[key] = self.prepare(question)
        run, found = self.prepared[key]
        try:
            return found | measure(self.machine, run, question["seconds"])
        finally:
            del run
            if not question["keep"]:
                self.prepared.clear()
            self.release()

    def release(self) -> None:
        """Give the memory back that only the allocator holds."""
        if self.machine is not None:
            self.machine.release()

    def prepare(self, question: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The work, run once to be compiled and checked, and once more to see how much memory it needs."""
        prepare = WORK[question["section"]][question["who"]]
        run, check = prepare(self.machine, question["case"], question["precision"], question["how"])
        found: dict[str, Any] = {"check": check(run())}
        before = self.machine.release()
        run()
        self.machine.wait()
        found["memory"] = self.machine.peak() - before
        return run, found
