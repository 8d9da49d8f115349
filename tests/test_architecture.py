"""The plan of the house: who may import whom, how long a file may grow, and what is public."""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import minisimclr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
import reading  # docs/reading.py, where the two reading lists stand

pytestmark = pytest.mark.host

ROOT = Path(minisimclr.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
TOP = {"__init__.py", "__main__.py"}  # the public names, and the command: above everything

# The rooms, lowest first: a room imports from lower ones only.
ROOMS = [
    *(
        "backend",
        "values",
        "cores",
        "processor",
        "storage",
        "collective",
        "engine",
        "ops",
        "ntxent",
        "objectives",
        "checks",
        "module",
        "nn",
        "resnet",
        "simclr",
        "heads",
        "interop",
        "views",
        "data",
    ),
    *("evaluation", "training", "protocols", "report", "display", "cli"),
]


def room(file: str) -> str:
    """The room in which a file lives: "ops/conv/plain.py" -> "ops"."""
    return Path(file).parts[0].removesuffix(".py")


def module(file: str) -> str:
    """The dotted name of a file in the package: "ops/conv/__init__.py" -> "ops.conv"."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def tree(file: str) -> ast.Module:
    """A file as Python reads it: once, for all tests."""
    return ast.parse(FILES[file].read_text())


@pytest.fixture(scope="module", autouse=True)
def forget_the_trees():
    """Half a million objects at the end of this file, which other tests would look through for garbage."""
    yield
    tree.cache_clear()


@functools.cache
def imports(file: str) -> list[str]:
    """The dotted name of every module that a file imports, also inside functions and under TYPE_CHECKING."""
    return list(imported(file))


def imported(file: str) -> Iterator[str]:
    package = ["minisimclr", *Path(file).parent.parts]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inside = ROOT.parent.joinpath(*module.split("."))
            for alias in node.names:  # `from . import x` names a module if there is such a file
                is_module = (inside / f"{alias.name}.py").exists() or (inside / alias.name / "__init__.py").exists()
                yield f"{module}.{alias.name}" if is_module else module


@functools.cache
def own(file: str) -> set[str]:
    """The imports of a file from this package, without the package's name: {"backend", "ops.conv"}."""
    return {
        name.removeprefix("minisimclr").removeprefix(".")
        for name in imports(file)
        if name.split(".")[0] == "minisimclr"
    }


# ── Layers ────────────────────────────────────────────────────────────────────────────────────────


def test_every_file_lives_in_a_room():
    assert {room(file) for file in FILES} - {"__init__", "__main__"} == set(ROOMS)


@pytest.mark.parametrize("here", ROOMS)
def test_a_room_imports_from_lower_rooms_only(here):
    for file in (file for file in FILES.keys() - TOP if room(file) == here):
        rooms = {name.split(".")[0] for name in own(file)} - {here}
        assert "" not in rooms, f"{file}: a file never imports the package that it belongs to"
        assert rooms <= set(ROOMS[: ROOMS.index(here)]), file


@pytest.mark.parametrize("package", sorted({room(file) for file in FILES if "/" in file}))
def test_files_of_one_room_do_not_import_each_other_in_circles(package):
    assert_no_circle(
        {module(file): {name for name in own(file) if name.split(".")[0] == package}
         for file in FILES if room(file) == package}
    )  # fmt: skip


def test_no_two_folders_import_each_other():
    """This holds for different files, too. The door of a folder, its __init__, may of course open its own rooms."""
    folder_of = {module(file): str(Path(file).parent) for file in FILES if "/" in file}
    links = {folder: set() for folder in folder_of.values()}
    for file in (file for file in FILES if "/" in file):
        here = str(Path(file).parent)
        used = {folder_of[name] for name in own(file) if name in folder_of} - {here}
        links[here] |= {there for there in used if not (file.endswith("__init__.py") and there.startswith(here))}
    assert_no_circle(links)


def assert_no_circle(links: dict[str, set[str]]) -> None:
    """Take away, again and again, what needs nothing that is left; a circle stays."""
    while links:
        free = {name for name, needs in links.items() if not (needs - {name}) & links.keys()}
        assert free, f"a circle among {sorted(links)}"
        links = {name: needs for name, needs in links.items() if name not in free}


# ── The two reading lists ─────────────────────────────────────────────────────────────────────────

DOORS = {file for file in FILES if file.endswith("/__init__.py")}
OPEN_TO_ALL = {"processor.py", "engine/guard.py"}  # the second list's files that the first may name …
EXCEPTIONS = {  # … and those that one file may. Each has its reason: a form among others, or what surrounds the loop
    "engine/autograd.py": {"engine/surface.py": "what Python and NumPy see of a tensor: the engine works without it"},
    "training/batches.py": {
        "training/workers.py": "the fast form of making views; batches chooses, like a door",
        "training/photos.py": "the form for images of several sizes: read, cropped and resized one by one",
        "training/large_batch.py": "the form for batches whose views do not fit: they are made chunk by chunk",
    },
    "training/train.py": {
        "training/begin.py": "the network, the loss and the optimizer that the loop trains, new or from a checkpoint",
        "training/session.py": "records, saves, stops: the loop says when",
        "training/run.py": "the run that the loop returns",
    },
}
MOST_EXCEPTIONS = 7  # in all; lower it when one goes, and never raise it


def test_the_exceptions_become_no_more():
    assert sum(map(len, EXCEPTIONS.values())) <= MOST_EXCEPTIONS


def file_of(name: str) -> str:
    """The file of a dotted name: "ops.conv" -> "ops/conv/__init__.py"."""
    path = name.replace(".", "/")
    return f"{path}.py" if f"{path}.py" in FILES else f"{path}/__init__.py"


def test_every_file_is_on_one_reading_list():
    trivial = {file for file in DOORS if len(FILES[file].read_text().splitlines()) < 25} - set(reading.FIRST)
    listed = [*reading.FIRST, *reading.SECOND]
    assert len(listed) == len(set(listed))
    assert FILES.keys() - TOP - trivial <= set(listed) <= FILES.keys()


@pytest.mark.parametrize("place", range(len(reading.FIRST)), ids=reading.FIRST)
def test_a_file_of_the_first_list_needs_only_what_was_read_before(place):
    file = reading.FIRST[place]
    needed = {file_of(name) for name in own(file)} - DOORS - OPEN_TO_ALL
    needed -= EXCEPTIONS.get(file, {}).keys()
    if file in DOORS:  # a door knows all the forms of its room
        needed = {name for name in needed if not name.startswith(str(Path(file).parent) + "/")}
    assert needed <= set(reading.FIRST[:place])


def test_the_first_list_is_an_afternoon_long():
    assert reading.total(reading.FIRST) <= reading.MOST_LINES


def test_the_lists_that_are_shown_are_those_of_the_code():
    assert reading.main(["--check"]) == 0


def comment_lines(file: str) -> int:
    """The lines with a comment that tells a reader something: no section rule, no order to a tool."""
    tokens = tokenize.generate_tokens(io.StringIO(FILES[file].read_text()).readline)
    told = [token for token in tokens if token.type == tokenize.COMMENT]
    return len({t.start[0] for t in told if not re.search(r"──|type: ignore|noqa|fmt: ", t.string)})


def test_comments_of_the_first_list_stand_on_a_fifth_of_its_lines():
    """Comments say why, or give a shape: below 15 % a reader is left alone, above 25 % the code drowns."""
    lines = sum(len(FILES[file].read_text().splitlines()) for file in reading.FIRST)
    assert 0.15 <= sum(map(comment_lines, reading.FIRST)) / lines <= 0.25


# ── What a file may use ───────────────────────────────────────────────────────────────────────────


def test_only_backend_imports_cupy():
    assert [file for file in FILES if any(re.match("cupyx?($|[.])", name) for name in imports(file))] == ["backend.py"]


@pytest.mark.parametrize(
    "file", sorted(file for file in FILES if room(file) == "ops" or file in ("ntxent/exact.py", "ntxent/plain.py"))
)
def test_operations_and_the_plain_and_exact_loss_know_no_array_module_but_xp(file):
    assert not {name for name in imports(file) if name.split(".")[0] in ("numpy", "cupy", "scipy")}


@pytest.mark.parametrize("file", ["nn.py", "resnet.py", "simclr.py"])
def test_layers_use_numpy_to_draw_and_to_store_weights_but_never_to_compute(file):
    """The exception to the rule above: initial weights are drawn, and states kept, on the host on every backend.

    What is called with data (`__call__`, `loss` and their helpers) must run on either.
    """
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef) and node.name in (
            "__call__",
            "loss",
            "_towards",
            "_shortcut",
            "_pixels_first",
        ):
            assert not [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == "np"], node.name


# ── Size ──────────────────────────────────────────────────────────────────────────────────────────

LONGER_FILES = {  # than 250 lines, each with its reason; this list only shrinks
    "ntxent/tiled.py": "one fast form, whole",
    "ops/conv/winograd.py": "one fast form, whole",
    "checks/table.py": "a table of every operation",
    "data/doodles/things.py": "sixteen drawings",
}
LONGER_FUNCTIONS: dict[str, str] = {}  # than 40 lines, as "file:function", each with its reason; this list only shrinks


def test_a_file_can_be_read_in_one_sitting():
    assert {file for file, path in FILES.items() if len(path.read_text().splitlines()) > 250} == set(LONGER_FILES)


def test_a_function_can_be_seen_at_one_glance():
    longer = {
        f"{file}:{node.name}"
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 40
    }
    assert longer == set(LONGER_FUNCTIONS)


def body_lines(function: ast.FunctionDef) -> int:
    """The lines of a function, its signature and docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1


def test_a_small_file_with_one_reader_lives_in_that_file():
    """A file of fewer than 40 lines with one reader is no room of its own, except doors and commands."""
    users = {file: [other for other in FILES.keys() - TOP if module(file) in own(other)] for file in FILES}
    lonely = {
        file for file, using in users.items() if len(using) == 1 and len(FILES[file].read_text().splitlines()) < 40
    }
    assert not {file for file in lonely - DOORS - TOP if not file.startswith("cli/")}


# ── What is public ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", minisimclr.__all__)
def test_every_public_name_exists_and_says_what_it_is(name):
    assert getattr(minisimclr, name).__doc__


def test_public_names_are_listed_once_and_nothing_else_is_exported():
    exported = {name for name in vars(minisimclr) if not name.startswith("_")}
    modules = {*ROOMS, "cli"}
    assert len(minisimclr.__all__) == len(set(minisimclr.__all__))
    assert exported - modules <= set(minisimclr.__all__)


def test_every_file_begins_by_saying_what_it_is_for():
    assert [file for file in FILES if not ast.get_docstring(tree(file))] in ([], ["__main__.py"])


def test_importing_the_package_loads_nothing_that_it_can_do_without():
    """It loads neither the extras nor the packages that only the command line needs."""
    done = subprocess.run(
        [sys.executable, "-c", "import minisimclr, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded = set(done.stdout.split())
    assert "minisimclr" in loaded
    assert not loaded & {
        "cupy",
        "matplotlib",
        "torch",
        "jax",
        "tqdm",
        "minisimclr.cli",
        "scipy.optimize",
        "safetensors",
    }
    assert not loaded & {"PIL", "minisimclr.data.files", "minisimclr.data.doodles", "minisimclr.report"}


# ── The book ──────────────────────────────────────────────────────────────────────────────────────


def chapters() -> dict[str, str]:
    """The text of the chapters that exist, by number: {"5": …}."""
    return {str(int(path.name[:2])): path.read_text() for path in (ROOT.parent / "docs").glob("[0-9][0-9]_*.md")}


def test_every_equation_that_the_code_names_is_in_the_book():
    r"""A tag such as (5.6) in code stands as \tag{5.6} in chapter 5, once that is written."""
    code = "\n".join(path.read_text() for path in FILES.values())
    for chapter, number in set(re.findall(r"(?<!\w)\((\d+)\.([1-9]\d*)\)", code)):  # no call, no (2.0)
        if chapter in chapters():
            assert rf"\tag{{{chapter}.{number}}}" in chapters()[chapter]


def test_every_equation_of_the_loss_is_in_the_code():
    if "5" not in chapters():
        pytest.skip("the chapter on the loss, docs/05_nt_xent.md, is not here")
    code = "\n".join(path.read_text() for file, path in FILES.items() if room(file) == "ntxent")
    for tag in re.findall(r"\\tag\{(5\.\d+)\}", chapters()["5"]):
        assert f"({tag})" in code
