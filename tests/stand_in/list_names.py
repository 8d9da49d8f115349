"""Write down which names CuPy has, and what their parameters are called: cupy/names.txt.

Run where the real CuPy is installed; it needs no GPU:

    python tests/stand_in/list_names.py > tests/stand_in/cupy/names.txt
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
import cupy  # noqa: E402  (not the stand-in beside this file)

UFUNC = "*args, out, dtype, casting"  # what ufunc.__call__ takes; it has no signature to be read


def parameters(thing: Any, method: bool) -> str | None:
    """The names of the parameters, "a, axis, *, copy"; None if they cannot be found out."""
    if isinstance(thing, cupy.ufunc):
        return UFUNC
    if isinstance(thing, type):
        return None
    try:
        names, star = [], False
        for p in inspect.signature(thing).parameters.values():
            if p.kind is p.KEYWORD_ONLY and not star:
                names.append("*")
                star = True
            star |= p.kind is p.VAR_POSITIONAL
            names.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name)
    except (TypeError, ValueError):
        line = (getattr(thing, "__doc__", None) or "").split("\n")[0]  # Cython writes it there
        found = re.match(r"\w+\.\w+\((.*)\)( ->|$)", line)
        if not found:
            return None
        names = [re.sub(r"=.*", "", part).split()[-1] for part in found[1].split(", ") if part]
    return ", ".join(names[1:] if method and names[:1] == ["self"] else names)


def lines(prefix: str, home: Any) -> list[str]:
    of_arrays = isinstance(home, type)
    found = []
    for name in dir(home):
        if name.startswith("_") and not (of_arrays and re.fullmatch("__[a-z]+__", name)):
            continue
        taken = parameters(getattr(home, name), of_arrays) if callable(getattr(home, name)) else None
        found.append(f"{prefix}{name}" + ("" if taken is None else f"({taken})"))
    return found


if __name__ == "__main__":
    print(f"# CuPy {cupy.__version__}: every public name, with the names of its parameters where they are known.")
    print("# Made by list_names.py, never by hand.")
    for prefix, home in (("", cupy), ("linalg.", cupy.linalg), ("ndarray.", cupy.ndarray)):
        print(*lines(prefix, home), sep="\n")
