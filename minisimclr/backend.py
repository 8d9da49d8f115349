"""Where arrays live and who works on them: NumPy or CuPy, and the threads.

Everything above this file is written once, for an array module called `xp`:

    xp = array_module(x)        # numpy for a NumPy array, cupy for a CuPy array
    y = xp.exp(x)

so no other file asks which device it runs on, and this is the only one that imports CuPy.

Threads. NumPy releases Python's lock inside its array functions and its matrix products, so plain
Python threads run them side by side. A large product split by BLAS itself leaves everything
around it (the additions, the exponentials) on one core; so we split the *work* instead, into
blocks that fit a core's cache, and hold BLAS at one thread meanwhile:

    parallel(lambda rows: ..., blocks(total, size))

Each block writes its own part of the output, so the result does not depend on which thread takes
which block, and is the same bit for bit at any fixed number of threads.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from types import ModuleType
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import threadpoolctl

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: the two share their interface, not a type
Item = TypeVar("Item")


# ── Array modules ─────────────────────────────────────────────────────────────────────────────────

def array_module(*values: Any) -> ModuleType:
    """The module, numpy or cupy, that computes on these arrays (NumPy if none of them is an array).

    Raises TypeError if NumPy and CuPy arrays are mixed: we never copy between devices silently.
    """
    cupy = sys.modules.get("cupy")  # a CuPy array cannot exist before somebody imported CuPy
    if cupy is None:
        return np
    on_gpu = [isinstance(value, cupy.ndarray) for value in values if is_array(value)]
    if not any(on_gpu):
        return np
    if not all(on_gpu):
        raise TypeError("NumPy and CuPy arrays are mixed; move them first: backend.to_device(array, device)")
    return cupy


def is_array(value: Any) -> bool:
    """Whether this is a NumPy or CuPy array (numbers, lists and NumPy scalars are not)."""
    if isinstance(value, np.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def to_device(array: Array, device: str) -> Array:
    """The array on `device`, "cpu" or "cuda"; no copy if it is there already."""
    if device == "cpu":
        return array if isinstance(array, np.ndarray) else array.get()
    if device == "cuda":
        return _cupy().asarray(array)
    raise ValueError(f'device must be "cpu" or "cuda", not {device!r}')


def to_numpy(array: Array) -> Any:
    """The array as a NumPy array on the host."""
    return to_device(array, "cpu")


def device_of(*arrays: Any) -> str:
    """Where they are: "cpu" or "cuda"."""
    return "cpu" if array_module(*arrays) is np else "cuda"


def device_name(device: str) -> str:
    """The processor that computes and what drives it: other ones round differently."""
    if device == "cpu":
        return "cpu"
    cupy = _cupy()
    if not hasattr(cupy.cuda, "runtime"):  # a stand-in, in tests
        return f"no GPU, CuPy {cupy.__version__}"
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"]
    return f"{name.decode()}, CuPy {cupy.__version__}"


def require(device: str) -> None:
    """Raises RuntimeError, in one line that says what is missing, if this device cannot be used here."""
    if device == "cuda":
        _cupy()


def whose_memory(error: MemoryError) -> str:
    """Which memory an error says is full: CuPy's own, a MemoryError too, means the GPU's."""
    return " on the GPU" if type(error).__module__.partition(".")[0] == "cupy" else ""


def compute_capability() -> tuple[int, int]:
    """The generation of the GPU: (9, 0) is an H100; from (8, 0) on there are tensor cores for TF32 and bfloat16."""
    return divmod(int(_cupy().cuda.Device().compute_capability), 10)


def free_bytes(device: str) -> float:
    """Memory that arrays on this device may still take; of the host's we never run out before the system does."""
    if device == "cpu" or not hasattr(_cupy().cuda, "runtime"):
        return math.inf
    return float(_cupy().cuda.runtime.memGetInfo()[0])


def _cupy() -> Any:
    """CuPy, or a one-line error that says what is missing."""
    try:
        import cupy
    except ImportError:
        raise RuntimeError(
            'device "cuda" needs CuPy: pip install "minisimclr[cuda12]" (or cuda13); or use device "cpu"'
        ) from None
    if not cupy.cuda.is_available():  # `import cupy` succeeds without a GPU
        raise RuntimeError('device "cuda": CuPy finds no usable GPU or driver; use device "cpu"')
    return cupy


# ── Threads ───────────────────────────────────────────────────────────────────────────────────────

_threads: int | None = None
_blas: threadpoolctl.ThreadpoolController | None = None
_inside = threading.local()  # .task is True in a thread that is already working on a block
_hold = threading.RLock()
_holders = 0  # how many blas_at_one_thread() are open now
_limiter: Any = None


def threads() -> int:
    """How many threads work: `set_threads`, else $MINISIMCLR_THREADS, else the cores we may use."""
    if _threads is not None:
        return _threads
    asked = os.environ.get("MINISIMCLR_THREADS", "")
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"MINISIMCLR_THREADS must be a whole number from 1 on, not {asked!r}")
        return int(asked)
    return _usable_cores()


def set_threads(count: int | None) -> None:
    """Use this many threads from now on; None returns to the default."""
    global _threads
    if count is not None and count < 1:
        raise ValueError(f"the number of threads must be at least 1, not {count}")
    _threads = count


@functools.cache
def blas_kernels() -> str:
    """Which BLAS computes the products, and for which processor: other kernels round differently."""
    found = {f"{library['internal_api']} {library.get('architecture', '')}".strip()
             for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}
    return ", ".join(sorted(found))


@functools.cache
def _usable_cores() -> int:
    """The cores this process may use: its affinity, and the quota of its control group if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = file.read().split()  # "max 100000" when there is none: int() refuses it
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def blocks(total: int, size: int) -> list[slice]:
    """Cut range(total) into consecutive slices of at most `size`."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def few_large_calls(xp: ModuleType) -> bool:
    """Whether few calls on large arrays beat many on parts that fit a cache: on a GPU."""
    return xp is not np


def pieces(xp: ModuleType, total: int, size: int) -> list[slice]:
    """How to walk through `total` rows: in blocks of `size`, which fit a core's cache; on a GPU all at once.

    There every call launches a kernel, which costs microseconds whatever its size: a few large ones win.
    """
    return blocks(total, max(1, total) if few_large_calls(xp) else size)


def parallel(task: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Run task(item) for every item on `threads()` threads, BLAS held at one thread each.

    Tasks must not depend on each other and must write to disjoint places. The first exception, if
    any, is raised here after all threads have stopped. A task that calls `parallel` again runs the
    inner items itself.
    """
    items = list(items)
    workers = min(threads(), len(items))
    if workers <= 1 or getattr(_inside, "task", False):
        for item in items:
            task(item)
        return
    queue = iter(items)  # `next` on a list iterator is atomic, so the threads share it as their queue

    def work() -> None:
        _inside.task = True
        try:
            for item in queue:
                task(item)
        except BaseException:
            for _ in queue:  # let the other threads find the queue empty
                pass
            raise
        finally:
            _inside.task = False

    with blas_at_one_thread():
        # each in a copy of our context: what NumPy is told not to warn of here holds there too
        others = [_Worker.start(functools.partial(copy_context().run, work)) for _ in range(workers - 1)]
        try:
            work()  # the calling thread works too
        finally:
            errors = [other.wait() for other in others]
        for error in errors:
            if error is not None:
                raise error


class _Worker:
    """A thread that sleeps between jobs. Two bare locks wake it in a third of an executor's time."""

    idle: ClassVar[list[_Worker]] = []

    def __init__(self) -> None:
        self.job: Callable[[], None] | None = None
        self.error: BaseException | None = None
        self.go, self.done = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.done.acquire()
        threading.Thread(target=self.live, name="minisimclr", daemon=True).start()

    @classmethod
    def start(cls, job: Callable[[], None]) -> _Worker:
        """Have an idle worker, or a new one, do this job; every start is followed by one wait."""
        try:
            worker = cls.idle.pop()  # atomic: two threads never get the same one
        except IndexError:
            worker = cls()
        worker.job = job
        worker.go.release()
        return worker

    def wait(self) -> BaseException | None:
        """Until the job is done; the exception that ended it, if one did.

        By now the caller has emptied the queue. A worker that is not yet awake has nothing left to do,
        so its job is taken back: on a busy machine waking it could take longer than all of the work.
        """
        if self.go.acquire(blocking=False):
            self.job = None
        else:
            self.done.acquire()
        error, self.error = self.error, None
        _Worker.idle.append(self)
        return error

    def live(self) -> None:
        while True:
            self.go.acquire()
            assert self.job is not None
            try:
                self.job()
            except BaseException as error:
                self.error = error
            self.job = None  # keep nothing of the caller's alive
            self.done.release()


@contextlib.contextmanager
def blas_at_one_thread() -> Iterator[None]:
    """Hold BLAS at one thread; what it was before is restored when the last holder leaves.

    A long computation (a training run) holds it once at the outside; then each `parallel` inside is free.
    """
    global _blas, _holders, _limiter
    with _hold:
        if _holders == 0:
            if _blas is None:
                _blas = threadpoolctl.ThreadpoolController()
            _limiter = _blas.limit(limits=1, user_api="blas")
            _limiter.__enter__()
        _holders += 1
    try:
        yield
    finally:
        with _hold:
            _holders -= 1
            if _holders == 0:
                _limiter.__exit__(None, None, None)


def _forget_threads() -> None:
    """A forked child has none of its parent's threads: it starts its own pool, with fresh locks."""
    global _hold, _holders
    _hold, _holders = threading.RLock(), 0
    _Worker.idle.clear()
    _inside.task = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
