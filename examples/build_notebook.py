"""Turn a script with cells (# %%) into a notebook, and run it for its outputs.

    python examples/build_notebook.py            run examples/quickstart.py, and write quickstart.ipynb
    python examples/build_notebook.py --check    exit with 1 if its cells are not those of the script

It needs neither Jupyter nor IPython. A test compares the cells, and a slow one runs them from top to bottom.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SCRIPT, NOTEBOOK = HERE / "quickstart.py", HERE / "quickstart.ipynb"
sys.path.insert(0, str(HERE.parent))  # the package of this checkout, whatever else is installed


class Cell(NamedTuple):
    """A cell: "markdown" or "code", and its text."""

    kind: str
    text: str


def cells(script: str) -> list[Cell]:
    """Cut a script at its lines `# %%`; what stands before the first is no cell."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        mark, _, text = part.partition("\n")
        if "[markdown]" in mark:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
            found.append(Cell("markdown", text.strip()))
        else:
            found.append(Cell("code", text.strip("\n")))
    return found


def run(code: list[Cell]) -> list[list[dict[str, Any]]]:
    """Run the cells in one namespace, as a notebook does, and return the outputs of each."""
    names: dict[str, Any] = {"__name__": "__main__"}
    return [_outputs(number, cell.text, names) if cell.kind == "code" else [] for number, cell in enumerate(code)]


def _outputs(number: int, text: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell: what it prints, and what its last line is worth if that is an expression."""
    tree, value, said = ast.parse(text), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(said):
        exec(compile(tree, f"<cell {number}>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if said.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(said.getvalue())})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": _shown(value)}
        )
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    """A value as a notebook shows it: text, and HTML or a picture if it has one."""
    shown: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_html_"):
        shown["text/html"] = _lines(value._repr_html_())
    elif hasattr(value, "_repr_png_"):
        shown["image/png"] = base64.b64encode(value._repr_png_()).decode()
        shown["text/plain"] = [f"<picture of {value.width}×{value.height} pixels>"]
    return shown


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def notebook(found: list[Cell], outputs: list[list[dict[str, Any]]]) -> str:
    """The notebook as JSON, format 4.5."""
    entries: list[dict[str, Any]] = []
    for number, (cell, output) in enumerate(zip(found, outputs)):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(cell.text)}
        if cell.kind == "code":
            entry |= {"execution_count": number, "outputs": output}
        entries.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": entries, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def stored(path: Path = NOTEBOOK) -> list[Cell]:
    """The cells of a notebook."""
    return [Cell(entry["cell_type"], "".join(entry["source"])) for entry in json.loads(path.read_text())["cells"]]


def main(arguments: list[str]) -> int:
    found = cells(SCRIPT.read_text())
    if "--check" in arguments:
        if stale := not NOTEBOOK.exists() or stored() != found:
            print(f"{NOTEBOOK.name} is out of date: python examples/build_notebook.py")
        return int(stale)
    NOTEBOOK.write_text(notebook(found, run(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
