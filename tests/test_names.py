"""Every name that the package asks of an array module is in CuPy too, and means the same: checked without running it.

The list of CuPy's names is tests/stand_in/cupy/names.txt.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import minisimclr

pytestmark = pytest.mark.host
ROOT = Path(minisimclr.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}

# {"sum": ["a", "axis", …], "linalg.norm": […], "ndarray.max": […], "RawModule": None}: name -> parameters
CUPY: dict[str, list[str] | None] = {}
for line in (Path(__file__).parent / "stand_in" / "cupy" / "names.txt").read_text().splitlines():
    if not line.startswith("#"):
        name, bracket, parameters = line.partition("(")
        CUPY[name] = re.findall(r"[^, ]+", parameters[:-1]) if bracket else None

# In both, but not the same, or slow: why each must not stand behind `xp`
DIFFERENT = {
    **dict.fromkeys(
        ("nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "bincount", "choose", "put"),
        "waits for the GPU: how large the answer is must be known on the host",
    ),
    **dict.fromkeys(("einsum", "tensordot", "inner", "vdot"), "copies its operands, and ignores TF32: write a 2-D @"),
    **dict.fromkeys(("allclose", "array_equal", "count_nonzero"), "a number in NumPy, an array on the device in CuPy"),
    "random": "draws other numbers: a numpy.random.Generator is passed in",
    "vectorize": "compiles a kernel in CuPy, is a Python loop in NumPy",
}

# Where it may be asked whether there is a GPU, and why. Everything else is one code path.
ASKS = {
    "backend.py": "it is there to know",
    "processor.py": "cuts work to fit a processor's cache, and does not on a GPU",
    "ntxent/cuda.py": "its kernels are for a GPU",
    "ntxent/__init__.py": "chooses between the version for a processor and the one for a GPU",
    "ops/conv/winograd.py": "its tiles are cut for a processor's cache",
    "views/augment.py": "cuts a batch to fit a processor's cache",
    "views/transforms.py": "finds the band of a matrix, which a GPU would have to wait for",
    "values/arrays.py": "NumPy's arrays have kinds of which CuPy's have none: masked ones, matrices, other byte orders",
    "engine/guard.py": "only NumPy's arrays can be locked",
    "training/precision.py": "refuses number formats that a processor does not have",
    "cli/pretrain.py": "tells what a GPU is sent, and when",
    "training/workers.py": "sends crops to a GPU, which resizes them itself, and views to a processor",
    "training/batches.py": "processes draw the views ahead of a processor; a GPU draws them itself",
}


def xp_names(tree: ast.AST) -> Iterator[tuple[str, ast.Attribute]]:
    """All that is taken from `xp` or `array_module(…)`: "exp", "linalg.norm", "add.at"."""

    def is_xp(node: ast.expr) -> bool:
        return (isinstance(node, ast.Name) and node.id == "xp") or (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array_module"
        )

    longer = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_xp(node.value) and id(node) not in longer:
            yield node.attr, node
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and is_xp(node.value.value):
            yield f"{node.value.attr}.{node.attr}", node


def wrong_with(name: str) -> str | None:
    """Why `xp.name` will not do; None if it will."""
    home, _, last = name.rpartition(".")
    if home and home != "linalg":  # a method of a ufunc, or something of a dtype's
        if last == "at":
            return None if home == "add" else "ufunc.at: only of add"
        if last in ("reduce", "accumulate"):
            return None if home in ("add", "multiply") else f"ufunc.{last}: only of add and multiply"
        return wrong_with(home)
    if name in DIFFERENT:
        return DIFFERENT[name]
    if name not in CUPY:
        return "CuPy has no such name"
    return None if hasattr(np.linalg if home else np, last) else "NumPy has no such name"


ONLY_THERE = {  # behind a question whether it is there
    "processor.py": "cuts work to fit a processor's cache, and does not on a GPU",
    "ntxent/cuda.py": {"RawModule", "cuda.Device"},
}


@pytest.mark.parametrize("room", sorted({file.partition("/")[0] for file in FILES}))
def test_every_name_behind_xp_is_in_cupy_and_means_the_same(room: str) -> None:
    texts = {file: path.read_text() for file, path in FILES.items() if file.partition("/")[0] == room}
    wrong = {
        f"{file}, line {node.lineno}: xp.{name}: {wrong_with(name)}"
        for file, text in texts.items()
        if "xp" in text or "array_module" in text
        for name, node in xp_names(ast.parse(text))
        if wrong_with(name) and name not in ONLY_THERE.get(file, set()) and not name.startswith("__")
    }
    assert not wrong


def is_on_the_host(node: ast.expr) -> bool:
    """np.… , math.… , rng.… : what is called there is not an array's method."""
    return isinstance(node, ast.Name) and node.id in ("np", "math", "rng", "ops", "self", "xp")


COMPUTING = [
    file for file in FILES if re.match(r"ops/|ntxent/(plain|exact|__init__)|nn|resnet|simclr|optim|transforms", file)
]


@pytest.mark.parametrize("file", COMPUTING)
def test_methods_of_arrays_are_called_as_cupy_knows_them(file: str) -> None:
    wrong = set()
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        if (
            isinstance(node, ast.Attribute)
            and not is_on_the_host(node.value)
            and not node.attr.startswith("__")
            and hasattr(np.ndarray, node.attr)
            and f"ndarray.{node.attr}" not in CUPY
        ):
            wrong.add(f"line {node.lineno}: CuPy's arrays have no .{node.attr}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not is_on_the_host(node.func.value):
            taken = CUPY.get(f"ndarray.{node.func.attr}")
            unknown = {k.arg for k in node.keywords if k.arg} - set(taken or ())
            if taken and unknown and hasattr(np.ndarray, node.func.attr):
                wrong.add(f"line {node.lineno}: .{node.func.attr} takes no {unknown} in CuPy")
    assert not wrong


GPU_QUESTION = re.compile(
    r"xp is (not )?np\b|array_module\([^)]*\) is (not )?np\b|is np\b|__name__ [!=]= .(numpy|cupy)"
    r"|isinstance\([^)]*np\.ndarray\)|device [!=]= .(cpu|cuda)|== .cuda."
)


def test_nobody_else_asks_whether_there_is_a_gpu() -> None:
    asking = {
        file: [text.strip() for text in path.read_text().splitlines() if GPU_QUESTION.search(text.partition("  #")[0])]
        for file, path in FILES.items()
    }
    assert {file: lines for file, lines in asking.items() if lines and file not in ASKS} == {}


def test_every_exception_is_still_needed() -> None:
    for file in ASKS:
        assert GPU_QUESTION.search(FILES[file].read_text()), file


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("xp.errstate(all='ignore')", "CuPy has no such name"),
        ("array_module(x).block(x)", "CuPy has no such name"),
        ("xp.linalg.vector_norm(x)", "CuPy has no such name"),
        ("xp.asnumpy(x)", "NumPy has no such name"),
        ("xp.maximum.reduce(x)", "only of add and multiply"),
        ("xp.unique(x)", "waits for the GPU"),
        ("xp.einsum('ij,jk', x, y)", "2-D"),
        ("xp.random.default_rng()", "Generator"),
    ],
)
def test_a_name_that_will_not_do_is_found(source: str, says: str) -> None:
    ((name, _),) = xp_names(ast.parse(source))
    assert says in (wrong_with(name) or "")


def test_the_question_is_recognised() -> None:
    for text in (
        "if xp is np:",
        "if xp is not np",
        "array_module(za, zb) is np",
        'xp.__name__ != "numpy"',
        "isinstance(x, np.ndarray)",
        'if config.device == "cuda":',
    ):
        assert GPU_QUESTION.search(text), text
