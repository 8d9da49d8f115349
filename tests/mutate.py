"""Test the tests: change the code in every small way that mutmut knows, and see whether a test notices.

    python tests/mutate.py autograd optim             every mutant of these files
    python tests/mutate.py --sample 100 --seed 1      a hundred, drawn from each file
    python tests/mutate.py --keep mutants.jsonl  write down each verdict there, and go on from what it holds
    python tests/mutate.py --keep … --again           try those that survived once more

Needs `pip install mutmut` (3.x), of which it takes the operators. mutmut itself passes over every function with a
decorator, and here each operation has one. A mutant is run in a process forked from this one, where all libraries are
loaded, by those tests alone that pass through the changed statement, the fastest first, until one fails.

Left out: annotations, decorators, what stands outside of functions, the wording of strings in `raise`. A mutant that
does not end or that crashes is noticed. tests/SURVIVORS.md says why some survive.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= dict.fromkeys(("MINISIMCLR_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import coverage
import libcst as cst
import pytest
from hypothesis import Phase, settings
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

ROOT = Path(__file__).resolve().parents[1]
FILES = {  # what is changed, and the tests that should notice
    "engine/autograd": "autograd ops nn precision values",
    "engine/guard": "guard autograd ops values",
    "training/optim": "optim",
    "ops/basic": "ops autograd precision",
    "ops/conv/plain": "ops plain",
    "ops/conv/slabs": "ops winograd simclr precision",
    "ops/loss": "ops precision",
    "ops/norm/plain": "ops plain",
    "ops/norm/fused": "ops nn precision",
    "ops/pool/plain": "ops plain",
    "ops/conv/winograd": "winograd",
    "ntxent/__init__": "ntxent autograd precision",
    "ntxent/exact": "ntxent precision",
    "ntxent/plain": "ntxent ops",
    "ntxent/tiled": "ntxent ntxent_tiled",
}
SECONDS = 60  # CPU time that one mutant may take, seconds
OPTIONS = [
    "-q",
    "--no-header",
    "--tb=no",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "--hypothesis-profile=mutate",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]  # hypothesis is loaded before pytest asks


class Mutant(NamedTuple):
    """A change of one place: the file, the lines of the statement that it is in, what it says, and the new text."""

    file: str
    lines: range
    change: str
    code: str


def mutants(file: str, sample: int | None, seed: int) -> Iterator[Mutant]:
    """All mutants of a file, or a sample of them, in an order that only the seed decides."""
    wrapper = MetadataWrapper(cst.parse_module((ROOT / f"minisimclr/{file}.py").read_text()))
    parents, positions = wrapper.resolve(ParentNodeProvider), wrapper.resolve(PositionProvider)

    def untested(node: cst.CSTNode) -> bool:
        return isinstance(node, cst.Annotation | cst.Decorator) or (
            isinstance(node, cst.If) and wrapper.module.code_for_node(node.test) == "TYPE_CHECKING"
        )

    def above(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while node in parents:
            node = parents[node]
            yield node

    found = []
    for node in parents:
        around = list(above(node))
        if any(map(untested, around)) or not any(isinstance(a, cst.FunctionDef | cst.Lambda) for a in around):
            continue
        for kind, operator in mutation_operators:
            if isinstance(node, kind) and not (
                operator is operator_string and any(isinstance(a, cst.Raise) for a in around)
            ):
                found += [(node, around, new) for new in operator(node)]
    random.Random(f"{seed} {file}").shuffle(found)
    for node, around, new in found[:sample]:
        whole = cst.BaseSmallStatement | cst.BaseCompoundStatement
        statement = next(a for a in [node, *around] if isinstance(a, whole))
        span = positions[statement]
        last = span.end.line
        if isinstance(statement, cst.If | cst.For | cst.While | cst.With):  # the head, not what it governs
            last = positions[statement.body].start.line - 1
        old, text = (" ".join(wrapper.module.code_for_node(n).split()) for n in (node, new))
        at = positions[node].start
        yield Mutant(
            file,
            range(span.start.line, max(last, span.start.line) + 1),
            f"{at.line}:{at.column}  {old}  ->  {text}",
            wrapper.module.deep_replace(node, new).code,
        )


class Chosen:
    """A plugin of pytest: the tests of a choice (None: all), in the order of a rank. Notes how long each takes."""

    def __init__(self, choice: set[str] | None, rank: Callable[[str], float]) -> None:
        self.choice, self.rank = choice, rank
        self.seconds: Counter[str] = Counter()
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        chosen = [item for item in items if self.choice is None or item.nodeid in self.choice]
        items[:] = sorted(chosen, key=lambda item: self.rank(item.nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        self.failed = self.failed or (report.nodeid if report.failed else "")


def forked(run: Callable[[], Any], notes: Callable[[], Any], path: Path) -> tuple[int, Any]:
    """Run in a process forked from this one: its exit code, negative for a signal, and its notes."""
    path.write_text("null")
    if process := os.fork():
        signal.alarm(1800)  # for a deadlock; an endless loop uses up its CPU time
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), json.loads(path.read_text())
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    code = 1
    try:
        code = run()
        path.write_text(json.dumps(notes()))
    finally:  # also if pytest itself breaks: the mutant must not go on in the parent's place
        os._exit(code)


def survey(files: list[str], scratch: Path) -> tuple[dict[str, dict[int, set[str]]], Counter[str]]:
    """Which tests pass through each line, file by file, and how long each test takes."""
    chosen = Chosen(None, lambda test: 0)
    names = sorted({f"tests/test_{name}.py" for file in files for name in FILES[file].split()})
    os.environ["COVERAGE_FILE"] = str(scratch / "coverage")
    code, seconds = forked(
        lambda: pytest.main(
            [*OPTIONS, "--cov=minisimclr", "--cov-context=test", "--cov-report=", *names], plugins=[chosen]
        ),
        lambda: chosen.seconds,
        scratch / "notes",
    )
    if code:
        sys.exit("the tests fail without any mutant")
    data = coverage.CoverageData(scratch / "coverage")
    data.read()
    through = {
        file: {
            line: {test.partition("|")[0] for test in tests if test}
            for line, tests in data.contexts_by_lineno(str(ROOT / f"minisimclr/{file}.py")).items()
        }
        for file in files
    }
    return through, Counter(seconds)


def verdict_on(mutant: Mutant, tests: set[str], rank: Callable[[str], float], scratch: Path) -> tuple[str, str]:
    """Return the first test that notices the mutant, or nothing if none does."""
    name = f"minisimclr.{mutant.file}".replace("/", ".").removesuffix(".__init__")
    path, usual, chosen = ROOT / f"minisimclr/{mutant.file}.py", SourceFileLoader.get_code, Chosen(tests, rank)

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        SourceFileLoader.get_code = lambda self, fullname: (  # type: ignore[method-assign,assignment]
            compile(mutant.code, str(path), "exec") if fullname == name else usual(self, fullname)
        )
        return int(
            pytest.main([*OPTIONS, "-x", *sorted({test.partition("::")[0] for test in tests})], plugins=[chosen])
        )

    code, first = forked(run, lambda: chosen.failed, scratch / "notes")
    return "SURVIVES" if code in (0, 5) else "killed" if code > 0 else "no end, or a crash", first or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of {', '.join(FILES)}; all by default")
    parser.add_argument("--sample", type=int, help="try so many mutants of each file, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--keep", type=Path, help="a file of verdicts, to go on from")
    parser.add_argument("--again", action="store_true", help="try only those that survived, once more")
    options = parser.parse_args()
    files = options.files or list(FILES)
    known: dict[str, str] = {}
    if options.keep and options.keep.exists():
        known = {row["mutant"]: row["verdict"] for row in map(json.loads, options.keep.read_text().splitlines())}
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    settings.register_profile(
        "mutate",
        max_examples=10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
    )
    import minisimclr  # noqa: F401, for the sake of what it imports; each child imports the package anew, mutated

    for name in [name for name in sys.modules if name.split(".")[0] == "minisimclr"]:
        del sys.modules[name]

    kills: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        through, seconds = survey(files, Path(folder))
        for file in files:
            verdicts: Counter[str] = Counter()
            for mutant in mutants(file, options.sample, options.seed):
                key = f"{file}:{mutant.change}"
                verdict = known.get(key, "")
                if (verdict == "SURVIVES") if options.again else not verdict:
                    tests = set().union(*(through[file].get(line, set()) for line in mutant.lines)) or set(seconds)
                    verdict, first = verdict_on(
                        mutant, tests, lambda test: seconds[test] / (1 + kills[test]) ** 2, Path(folder)
                    )
                    kills[first] += 1
                    if options.keep:
                        with options.keep.open("a") as out:
                            out.write(json.dumps({"mutant": key, "verdict": verdict, "by": first}) + "\n")
                verdicts[verdict] += 1
                if verdict == "SURVIVES":
                    print(key, flush=True)
            print(f"{file:16} {dict(verdicts)}", flush=True)


if __name__ == "__main__":
    main()
