"""The cores that this process may use.

They are fewer than the machine has in a container, or in a job of a cluster.
The affinity of the process says on which cores it may run. A quota of its control groups says for how long: "200000
100000" is 200 ms of processor time in every 100 ms, two cores. A thread more than that would be stopped again and
again, in the middle of its block, while the others wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator


@functools.cache
def usable_cores() -> int:
    """Count the cores that this process may use: its affinity, or the least quota of its control groups if less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups():
        # version 2 writes "quota period" into one file, version 1 into two; "max" or −1 is no quota
        for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
            with contextlib.suppress(OSError, ValueError):  # not that version, or no quota
                quota, period = " ".join(_text(f"{group}/{name}") for name in files).split()
                if int(quota) > 0:
                    cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _control_groups() -> Iterator[str]:
    """Yield the folders of the control groups that limit this process: its own, and each that this one is inside of.

    In a container its own group may be mounted as if it were the outermost; the inner folders are then not there.
    """
    lines = []
    with contextlib.suppress(OSError):  # another system than Linux
        lines = _text("/proc/self/cgroup").splitlines()
    for line in [*lines, "0::/"]:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]  # "4:cpu,cpuacct:/outer/inner"; "0::…": version 2
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in (f"/{controllers}", "/cpu") if controllers else ("", "/unified"):
            for depth in range(len(parts), -1, -1):
                yield "/".join([f"/sys/fs/cgroup{root}", *parts[:depth]])


def _text(path: str) -> str:
    """Read a small file."""
    with open(path) as file:
        return file.read()
