"""Test the tests: plant each fault of faults.py in a copy of the package, and see which tests notice.

    python tests/plant_faults.py                     all of them (about 20 minutes on one core)
    python tests/plant_faults.py columns-forgotten   some, by name
    python tests/plant_faults.py loss engine         or all of an area
    python tests/plant_faults.py --all               count every test that notices, not only the first of two kinds
    python tests/plant_faults.py --jobs 2            plant two at a time, each in a copy of its own
    python tests/plant_faults.py --list              their names

Prints a line for each: how many tests failed until two kinds had, and one of each kind. A test counts only if it passes
without the fault. Exit code 1 if a fault survives or is noticed by tests of one kind only.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import ClassVar

from faults import FAULTS, Fault, kind_of

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("minisimclr", "tests", "docs", "README.md", "pyproject.toml")
SECONDS = 300  # a fault may make a loop endless: that is noticed too
MEMORY = 8 * 2**20  # KiB that the tests may take: a fault may take all that there is
WANTED = 2  # kinds of tests that must notice


def patched(text: str, fault: Fault) -> str:
    """The text of the file with the fault in it; ValueError unless its place is there exactly once."""
    if "\n" in fault.old or "\n" in fault.new:
        raise ValueError(f"{fault.name}: a fault changes one line")
    if (times := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.name}: {fault.file} holds {fault.old!r} {times} times, expected once")
    return text.replace(fault.old, fault.new)


def copy_of_the_project(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.png", "results")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)


def failures(folder: Path, files: Iterable[str], enough: int = 0) -> set[str]:
    """The tests of these files that fail in the copy: all of them, or as many as it takes for `enough` kinds."""
    paths = os.pathsep.join([str(folder), str(folder / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "ENOUGH_KINDS": str(enough)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "--hypothesis-seed=0",
        *(("-p", "enough") if enough else ()),
        *(f"tests/test_{name}.py" for name in files),
    ]
    if os.name == "posix":
        command = ["sh", "-c", f'ulimit -v {MEMORY}; exec "$@"', "sh", *command]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"no end"}
    if done.returncode not in (0, 1, 2):  # 2: a test file could not be imported
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return set(re.findall(r"^(?:FAILED|ERROR) (tests/[^\s\[]+(?:\[.*?\])?)(?= - |$)", done.stdout, re.MULTILINE))


class Copy:
    """A copy of the project, in which one fault at a time is planted."""

    before: ClassVar[dict[str, set[str]]] = {}  # test file -> what fails in it without any fault
    locks: ClassVar[defaultdict[str, threading.Lock]] = defaultdict(threading.Lock)

    def __init__(self, folder: Path, enough: int) -> None:
        self.folder, self.enough = folder, enough
        folder.mkdir()
        copy_of_the_project(folder)

    def noticing(self, fault: Fault) -> set[str]:
        """The tests that fail with the fault and pass without it."""
        files = fault.tests.split()
        before = set().union(*(self.failing_anyway(file) for file in files))
        target = self.folder / "minisimclr" / fault.file
        whole = target.read_text()
        target.write_text(patched(whole, fault))
        try:
            # A test that fails anyway would count as one kind, and end the run too early.
            return failures(self.folder, files, 0 if before else self.enough) - before
        finally:
            target.write_text(whole)

    def failing_anyway(self, file: str) -> set[str]:
        """The tests of a file that fail without any fault; each file is run once, whichever copy needs it first."""
        with self.locks[file]:
            if file not in self.before:
                self.before[file] = failures(self.folder, [file])
                for test in sorted(self.before[file]):
                    print(f"not counted, it fails without a fault: {test}", flush=True)
            return self.before[file]


def judge(fault: Fault, failed: set[str]) -> bool:
    """Print which tests noticed the fault; True if these are of enough kinds."""
    kinds: dict[str, list[str]] = {}
    for test in sorted(failed):
        kinds.setdefault(kind_of(test), []).append(test.partition("::")[2].partition("[")[0])
    noticed = len(kinds) >= WANTED
    verdict = "killed" if noticed else "ONE KIND" if kinds else "SURVIVES"
    print(f"{fault.about:13} {fault.name:36} {verdict:9} by {len(failed):3} tests of {len(kinds)} kinds", flush=True)
    for kind, tests in sorted(kinds.items()):
        print(f"{'':14}{kind:20} {len(tests):3}  {tests[0]}", flush=True)
    return noticed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults, or areas as `loss`; all by default")
    parser.add_argument("--all", action="store_true", help="count every test that notices a fault")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="faults that are planted at a time (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="print the faults and leave")
    options = parser.parse_args()
    unknown = set(options.names) - {fault.name for fault in FAULTS} - {fault.about for fault in FAULTS}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    chosen = [fault for fault in FAULTS if not options.names or {fault.name, fault.about} & set(options.names)]
    if options.list:
        for fault in chosen:
            print(f"{fault.about:13} {fault.name:36} {fault.file:19} {fault.old}  ->  {fault.new}")
        return 0

    with tempfile.TemporaryDirectory() as name, ThreadPool(max(1, options.jobs)) as pool:
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for k in range(max(1, options.jobs)):
            free.put(Copy(Path(name) / str(k), 0 if options.all else WANTED))

        def noticed(fault: Fault) -> tuple[Fault, set[str]]:
            copy = free.get()
            try:
                return fault, copy.noticing(fault)
            finally:
                free.put(copy)

        survivors = [fault.name for fault, failed in pool.imap(noticed, chosen) if not judge(fault, failed)]
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} faults noticed by tests of {WANTED} kinds or more")
    if survivors:
        print(f"not so: {', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
