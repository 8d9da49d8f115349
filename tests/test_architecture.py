"""The plan of the house: who may import whom, how long a file may grow, and what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minisimclr

pytestmark = pytest.mark.host

ROOT = Path(minisimclr.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
TOP = {"__init__.py", "__main__.py"}  # the public names, and the command: above everything

# The order in which the files are read, as the package's docstring lists them, lowest first.
READING_ORDER = re.findall(r"^    (\w+)/? {2,}", minisimclr.__doc__ or "", re.MULTILINE)


def room(file: str) -> str:
    """The entry of the reading order to which a file belongs: "ops/conv.py" -> "ops"."""
    return Path(file).parts[0].removesuffix(".py")


def module(file: str) -> str:
    """The dotted name of a file in the package: "ops/conv/__init__.py" -> "ops.conv"."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All of a syntax tree but what stands under `if TYPE_CHECKING:`, which never runs."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from executed(child)


def imports(file: str) -> Iterator[str]:
    """The dotted name of every module that a file imports, inside functions too: "minisimclr.ops.conv", "numpy"."""
    package = ["minisimclr", *Path(file).parent.parts]
    for node in executed(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            inside = ROOT.parent.joinpath(*module.split("."))
            for alias in node.names:  # `from . import x` names a module if there is such a file
                is_module = (inside / f"{alias.name}.py").exists() or (inside / alias.name / "__init__.py").exists()
                yield f"{module}.{alias.name}" if is_module else module


def own(file: str) -> set[str]:
    """What a file imports of this package, without the package's name: {"backend", "ops.conv"}."""
    return {
        name.removeprefix("minisimclr").removeprefix(".")
        for name in imports(file)
        if name.split(".")[0] == "minisimclr"
    }


# ── Layers ────────────────────────────────────────────────────────────────────────────────────────


def test_every_file_has_its_place_in_the_reading_order():
    assert {room(file) for file in FILES} - {"__init__", "__main__"} == set(READING_ORDER)
    assert len(READING_ORDER) == len(set(READING_ORDER))


def test_the_reading_order_begins_and_ends_as_planned():
    """The chain that the design promises; other files may stand in between."""
    chain = [
        "backend",
        "engine",
        "ops",
        "ntxent",
        "checks",
        "nn",
        "resnet",
        "simclr",
        "views",
        "data",
        "training",
        "evaluation",
        "protocols",
        "report",
        "cli",
    ]
    assert [name for name in READING_ORDER if name in chain] == chain


@pytest.mark.parametrize("file", sorted(FILES.keys() - TOP))
def test_imports_point_down_the_reading_order_only(file):
    rooms = {name.split(".")[0] for name in own(file)} - {room(file)}
    assert "" not in rooms, "a file never imports the package that it belongs to"
    assert rooms <= set(READING_ORDER[: READING_ORDER.index(room(file))])


@pytest.mark.parametrize("package", sorted({room(file) for file in FILES if "/" in file}))
def test_files_of_one_package_do_not_import_each_other_in_circles(package):
    links = {
        module(file): {name for name in own(file) if name.split(".")[0] == package}
        for file in FILES
        if room(file) == package
    }
    for needs in links.values():
        needs &= links.keys()
    while links:
        free = {name for name, needs in links.items() if not needs & links.keys()}
        assert free, f"a circle among {sorted(links)}"
        links = {name: needs for name, needs in links.items() if name not in free}


def test_only_backend_imports_cupy():
    assert [file for file in FILES if any(re.match("cupyx?($|[.])", name) for name in imports(file))] == ["backend.py"]


@pytest.mark.parametrize("file", sorted(file for file in FILES if room(file) == "ops" or file == "ntxent/exact.py"))
def test_operations_and_the_readable_loss_know_no_array_module_but_xp(file):
    assert not {name for name in imports(file) if name.split(".")[0] in ("numpy", "cupy", "scipy")}


@pytest.mark.parametrize("file", ["nn.py", "resnet.py", "simclr.py"])
def test_layers_use_numpy_to_draw_and_to_store_weights_but_never_to_compute(file):
    """The exception to the rule above: initial weights are drawn, and states kept, on the host on every backend.

    What is called with data (`__call__`, `loss` and their helpers) must run on either.
    """
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in (
            "__call__",
            "loss",
            "_towards",
            "_shortcut",
            "_pixels_first",
        ):
            assert not [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == "np"], node.name


# ── Size ──────────────────────────────────────────────────────────────────────────────────────────

LONGER = {
    "ntxent/tiled.py",
    "ops/conv/winograd.py",
    "checks/table.py",
}  # drawing, options, and the fast twin: not the readable core


@pytest.mark.parametrize("file", sorted(file for file in FILES if file not in LONGER and room(file) != "data"))
def test_a_file_of_the_readable_core_can_be_read_in_one_sitting(file):
    assert len(FILES[file].read_text().splitlines()) <= 320


# ── What is public ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", minisimclr.__all__)
def test_every_public_name_exists_and_says_what_it_is(name):
    assert getattr(minisimclr, name).__doc__


def test_public_names_are_listed_once_and_nothing_else_is_exported():
    exported = {name for name in vars(minisimclr) if not name.startswith("_")}
    modules = {room(file) for file in FILES}
    assert len(minisimclr.__all__) == len(set(minisimclr.__all__))
    assert exported - modules <= set(minisimclr.__all__)


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_file_begins_by_saying_what_it_is_for(file):
    assert ast.get_docstring(ast.parse(FILES[file].read_text())) or file == "__main__.py"


def test_importing_the_package_loads_nothing_that_it_can_do_without():
    """Neither the extras nor what only the command line needs."""
    done = subprocess.run(
        [sys.executable, "-c", "import minisimclr, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded = set(done.stdout.split())
    assert "minisimclr" in loaded
    assert not loaded & {"cupy", "matplotlib", "torch", "jax", "tqdm", "minisimclr.cli", "scipy.optimize"}


# ── The book ──────────────────────────────────────────────────────────────────────────────────────


def chapters() -> dict[str, str]:
    """The text of the chapters that exist, by number: {"5": …}."""
    return {str(int(path.name[:2])): path.read_text() for path in (ROOT.parent / "docs").glob("[0-9][0-9]_*.md")}


def test_every_equation_that_the_code_names_is_in_the_book():
    r"""A tag such as (5.6) in code stands as \tag{5.6} in chapter 5, once that is written."""
    code = "\n".join(path.read_text() for path in FILES.values())
    for chapter, number in set(re.findall(r"\((\d)\.(\d+)\)", code)):
        if chapter in chapters():
            assert rf"\tag{{{chapter}.{number}}}" in chapters()[chapter]


def test_every_equation_of_the_loss_is_in_the_code():
    if "5" not in chapters():
        pytest.skip("the chapter on the loss, docs/05_nt_xent.md, is not here")
    code = "\n".join(path.read_text() for file, path in FILES.items() if room(file) == "ntxent")
    for tag in re.findall(r"\\tag\{(5\.\d+)\}", chapters()["5"]):
        assert f"({tag})" in code
