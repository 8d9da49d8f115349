"""The array module and the threads."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl

from minisimclr import backend, cores, processor
from minisimclr.backend import array_module, to_device
from minisimclr.processor import blas_at_one_thread, blocks, parallel, pieces, set_threads, threads

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    set_threads(4)
    yield
    set_threads(None)


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


# ── Arrays ────────────────────────────────────────────────────────────────────────────────────────


def test_array_module_of_numpy_and_of_numbers() -> None:
    assert array_module(np.ones(2), 3.0, [1]) is np
    assert array_module() is np


def test_an_array_goes_to_a_device_by_its_name() -> None:
    x = np.ones(2)
    assert to_device(x, "cpu") is x
    with pytest.raises(ValueError, match="device must be"):
        to_device(x, "tpu")


def test_cuda_without_cupy_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes `import cupy` fail
    with pytest.raises(RuntimeError, match=r"pip install .*cuda12") as error:
        backend._cupy()
    assert "\n" not in str(error.value)


# ── How many threads ──────────────────────────────────────────────────────────────────────────────


def test_the_number_of_threads_is_set_by_a_call_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads() == 4
    set_threads(None)
    monkeypatch.setenv("MINISIMCLR_THREADS", "3")
    assert threads() == 3
    for bad in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("MINISIMCLR_THREADS", bad)
        with pytest.raises(ValueError, match="MINISIMCLR_THREADS must be"):
            threads()
    monkeypatch.delenv("MINISIMCLR_THREADS")
    assert 1 <= threads() <= (os.cpu_count() or 1)
    with pytest.raises(ValueError, match="at least 1"):
        set_threads(0)


@pytest.fixture
def cores_asked_anew() -> Iterator[None]:
    cores.usable_cores.cache_clear()
    yield
    cores.usable_cores.cache_clear()  # the next test shall not see this one's machine


@pytest.mark.usefixtures("cores_asked_anew")
def test_the_system_is_asked_for_its_cores_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`threads()` stands in every `parallel`: it must not open a file each time."""
    asked: list[int] = []
    set_threads(None)
    monkeypatch.delenv("MINISIMCLR_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: asked.append(process) or {0, 1}, raising=False)
    assert [threads() for _ in range(3)] == [threads()] * 3
    assert len(asked) == 1


CGROUP = "/sys/fs/cgroup"


@pytest.mark.usefixtures("cores_asked_anew")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({f"{CGROUP}/cpu.max": "max 100000"}, 8),
        ({f"{CGROUP}/cpu.max": "200000 100000"}, 2),
        ({f"{CGROUP}/cpu.max": "250000 100000"}, 2),
        ({f"{CGROUP}/cpu.max": "50000 100000"}, 1),
        ({f"{CGROUP}/cpu.max": "9900000 100000"}, 8),
        ({f"{CGROUP}/cpu.max": ""}, 8),
        # version 2, nested: any group on the way may set the limit
        ({"/proc/self/cgroup": "0::/a/b", f"{CGROUP}/a/b/cpu.max": "300000 100000"}, 3),
        (
            {"/proc/self/cgroup": "0::/a/b", f"{CGROUP}/a/b/cpu.max": "max 100000", f"{CGROUP}/a/cpu.max": "4000 1000"},
            4,
        ),
        ({"/proc/self/cgroup": "0::/a", f"{CGROUP}/a/cpu.max": "5000 1000", f"{CGROUP}/cpu.max": "3000 1000"}, 3),
        ({"/proc/self/cgroup": "0::/../x", f"{CGROUP}/cpu.max": "3000 1000"}, 3),  # a group outside this container
        # version 1: the controller has a hierarchy of its own, under one of two names
        (
            {
                "/proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/m",
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
        (
            {
                "/proc/self/cgroup": "1:cpu:/job/step\n0::/",
                f"{CGROUP}/cpu/job/step/cpu.cfs_quota_us": "-1\n",
                f"{CGROUP}/cpu/job/step/cpu.cfs_period_us": "100000\n",
                f"{CGROUP}/cpu/job/cpu.cfs_quota_us": "600000\n",
                f"{CGROUP}/cpu/job/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {"/proc/self/cgroup": "2:cpuset:/\n1:cpu:/deep/in/the/host"}
            | {f"{CGROUP}/cpu/cpu.cfs_quota_us": "200000", f"{CGROUP}/cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ({"/proc/self/cgroup": "nonsense"}, 8),
    ],
)
def test_the_default_is_the_affinity_within_the_quotas_of_the_control_groups(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    def opened(path: str) -> io.StringIO:
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    set_threads(None)
    for name in ("MINISIMCLR_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "open", opened, raising=False)
    assert threads() == expected


@pytest.mark.usefixtures("cores_asked_anew")
@pytest.mark.parametrize(
    ("most", "count"), [("3", 3), ("1", 1), ("99", 8), ("2,4", 2), (" 5 ", 5), ("0", 8), ("", 8), ("many", 8)]
)
def test_the_default_is_no_more_than_omp_num_threads_and_who_asks_gets_what_he_asked(
    monkeypatch: pytest.MonkeyPatch, most: str, count: int
) -> None:
    monkeypatch.setattr(processor, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", most)
    monkeypatch.delenv("MINISIMCLR_THREADS", raising=False)
    set_threads(None)
    assert threads() == count
    monkeypatch.setenv("MINISIMCLR_THREADS", "6")
    assert threads() == 6
    set_threads(7)
    assert threads() == 7


# ── Parallel work ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_every_item_is_done_once(count: int) -> None:
    set_threads(count)
    for items in (0, 1, 3, 100):
        done = np.zeros(items, int)
        parallel(lambda i, done=done: done.__setitem__(i, done[i] + 1), range(items))
        assert (done == 1).all()


def test_threads_really_work_side_by_side() -> None:
    meeting = threading.Barrier(4, timeout=10)  # passes only if four threads stand here at once
    parallel(lambda _: meeting.wait(), range(4))


def test_threads_warn_of_what_their_caller_wants_to_hear_of() -> None:
    meeting = threading.Barrier(4, timeout=10)  # all four take part

    def overflows(_: int) -> None:
        meeting.wait()
        np.multiply(*np.full((2, 3), 1e30, np.float32))

    with np.errstate(over="ignore"):
        parallel(overflows, range(4))
    with pytest.raises(RuntimeWarning, match="overflow"):
        parallel(overflows, range(4))


def test_blocks_cover_the_range() -> None:
    assert [range(10)[s] for s in blocks(10, 4)] == [range(4), range(4, 8), range(8, 10)]
    assert blocks(0, 4) == []


def test_the_first_exception_arrives_and_the_pool_survives() -> None:
    def fail_on(i: int) -> None:
        if i == 5:
            raise KeyError("five")

    for _ in range(20):
        with pytest.raises(KeyError, match="five"):
            parallel(fail_on, range(50))
    test_every_item_is_done_once(4)


def test_an_exception_of_another_thread_alone_arrives_too() -> None:
    """The caller does its item to the end; what the other one raised meanwhile must not be lost."""
    set_threads(2)
    raised = threading.Event()

    def task(item: int) -> None:
        if threading.current_thread() is threading.main_thread():
            assert raised.wait(timeout=30)
        else:
            raised.set()
            raise KeyError(item)

    with pytest.raises(KeyError):
        parallel(task, range(2))


def test_a_nested_call_runs_its_items_itself() -> None:
    seen: list[tuple[int, int, bool]] = []

    def outer(i: int) -> None:
        me = threading.get_ident()
        parallel(lambda j: seen.append((i, j, threading.get_ident() == me)), range(3))

    parallel(outer, range(8))
    assert sorted(seen) == [(i, j, True) for i in range(8) for j in range(3)]


def test_calls_from_several_threads_do_not_mix() -> None:
    totals = np.zeros((6, 40))
    callers = [
        threading.Thread(
            target=lambda k=k: [
                parallel(lambda i, k=k: totals.__setitem__((k, i), totals[k, i] + 1), range(40)) for _ in range(25)
            ]
        )
        for k in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert (totals == 25).all()


def test_what_a_task_kept_is_released() -> None:
    import weakref

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    parallel(lambda i, thing=thing: None, range(4))
    del thing
    assert gone() is None


def test_pieces_are_blocks_on_a_processor_and_one_on_a_gpu() -> None:
    assert pieces(np, 10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    gpu = types.ModuleType("cupy")
    assert pieces(gpu, 10, 4) == [slice(0, 10)]
    assert pieces(gpu, 0, 4) == []


# ── BLAS ──────────────────────────────────────────────────────────────────────────────────────────


def test_blas_is_held_at_one_thread_and_restored() -> None:
    with threadpoolctl.threadpool_limits(2, "blas"):
        before = blas_threads()
        seen: list[list[int]] = []
        parallel(lambda _: seen.append(blas_threads()), range(4))
        assert all(count == 1 for counts in seen for count in counts)
        assert blas_threads() == before
        with pytest.raises(ZeroDivisionError):
            parallel(lambda i: 1 // i, range(4))
        assert blas_threads() == before
        with blas_at_one_thread():
            with blas_at_one_thread():
                pass
            assert all(count == 1 for count in blas_threads())
        assert blas_threads() == before


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_a_repeated_step_takes_no_fresh_memory() -> None:
    code = """
import resource
import numpy as np
from minisimclr.processor import keep_freed_memory

def step():
    arrays = [np.ones(size, np.float32) for size in (700_000, 600_000, 800_000, 9_000_000)]  # one beyond 32 MiB

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = fresh_pages()
keep_freed_memory()
step()
print(first, fresh_pages())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    first, later = map(int, result.stdout.split())
    assert first > 1000
    assert later < 100


# ── Processes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_its_own_threads() -> None:
    parallel(lambda _: None, range(4))  # the parent's workers exist now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
        child = os.fork()
    if child == 0:
        done = np.zeros(20)
        parallel(lambda i: done.__setitem__(i, 1), range(20))
        os._exit(0 if done.all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_interpreter_ends_while_workers_sleep() -> None:
    code = (
        "from minisimclr.processor import *; set_threads(4); done = []; parallel(done.append, range(3)); "
        "print(*sorted(done))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", "1", "2"]
