"""Write the two pages to look things up: the public names from their docstrings, the commands from their parser.

`api()` and `commands()` are called by blocks of cog in docs/api.md and docs/commands.md; docs/book.py writes them, and
a test fails if they are out of date. So a new public name or option is on its page as soon as the book is written.
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

import minisimclr as ms

WIDTH = 100  # columns of a line of prose
SECTIONS = ("Shapes", "VJP", "Raises", "Source")  # of a docstring, in our dialect

# The heading of each room, in the order of the page; a room that is not named stands at the end under its own name.
HEADINGS = {
    "engine": "Tensors and autograd",
    "checks": "Checks of gradients",
    "ops": "Operations",
    "ntxent": "The loss",
    "objectives": "Other losses",
    "module": "Layers and networks",
    "nn": "Layers and networks",
    "resnet": "Layers and networks",
    "simclr": "Layers and networks",
    "views": "Views",
    "data": "Images",
    "training": "Training",
    "evaluation": "Representations, and how good they are",
    "protocols": "What is done with a run",
    "interop": "Weights from elsewhere, and for elsewhere",
    "processor": "Threads",
}


def _print(text: str) -> None:
    import cog  # there only while cog runs a page

    cog.outl(text)


# ── Markdown from a docstring ─────────────────────────────────────────────────────────────────────


def escaped(text: str) -> str:
    """The text with what Markdown would take for a mark-up made plain, except what stands between backticks."""
    pieces = re.split(r"(`[^`\n]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*<\[\]|$]|\b_|_\b)", r"\\\1", p) for p in pieces)


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """A paragraph of at most 100 columns; no line may begin as an item of a list would."""
    lines = textwrap.wrap(
        text, WIDTH - 2, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(
        re.sub(r"^( *)([-+#]|\d+\.)(?= )", r"\1\\\2", line) if line != lines[0] else line for line in lines
    )


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a docstring: ("text" | "code" | "example" | a section, its lines)."""
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines, kind = part.splitlines(), ""
        nested = any(re.match(r' +"\S+" {2,}', line) for line in lines)  # a list in a list stays as it is written
        if re.match(r'"?\w[\w.*"-]* {2,}\S', lines[0]) and not nested:  # "name   what it is", one or two a line
            ends = [k for k, line in enumerate(lines) if re.match(rf"({'|'.join(SECTIONS)}):", line)] + [len(lines)]
            yield "table", "\n".join(lines[: ends[0]])
            lines = lines[ends[0] :]
            if not lines:
                continue
        gathered: list[str] = []
        for line in lines:
            if found := re.match(rf"({'|'.join(SECTIONS)}): *(.*)", line):
                new, line = found[1], found[2]
            elif line.startswith(">>>") or kind == "example":
                new = "example"
            elif kind in SECTIONS:
                new = kind if line.startswith(" ") or kind in ("Raises", "Source") else "text"
            else:
                new = "code" if line.startswith("    ") else "text"
            if (new != kind or found) and gathered:
                yield kind, "\n".join(gathered)
                gathered = []
            kind = new
            gathered.append(line)
        yield kind, "\n".join(gathered)


def columns(text: str) -> list[tuple[str, str]]:
    """The names and descriptions of a list in columns; a line that is indented goes on with the one above."""
    items: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith(" "):
            name, item = items.pop()
            items.append((name, f"{item} {' '.join(line.split())}"))
            continue
        cells = re.split(r" {2,}", line.strip())
        items += [(f"`{cells[k]}`", " ".join(cells[k + 1 : k + 2])) for k in range(0, len(cells), 2)]
    return items


def described(docstring: str) -> str:
    """A docstring of our dialect as Markdown."""
    parts = []
    for kind, text in blocks(inspect.cleandoc(docstring)):
        if kind == "example":
            parts.append(f"```python\n{text}\n```")
        elif kind == "code":
            parts.append(f"```text\n{textwrap.dedent(text)}\n```")
        elif kind == "table":
            parts.append("\n".join(wrapped(escaped(item), f"* {name}: ", "  ") for name, item in columns(text)))
        elif kind == "text" and re.match(r"[*-] ", text):
            items = re.split(r"\n(?=[*-] )", text)
            parts.append("\n".join(wrapped(escaped(" ".join(i[2:].split())), "* ", "  ") for i in items))
        elif kind == "text":
            parts.append(wrapped(escaped(" ".join(text.split()))))
        else:
            parts.append(wrapped(escaped(" ".join(text.split())), f"*{kind}:* "))
    return "\n\n".join(parts)


# ── Public names ──────────────────────────────────────────────────────────────────────────────────


def signature(name: str, thing: Any) -> str:
    """The call of a function or class, on as many lines as it takes."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return f"{name}(…)"
    parameters = [p.replace(annotation=_annotation(p.annotation)) for p in found.parameters.values()]
    returns = _annotation(found.return_annotation)
    ending = "" if isinstance(thing, type) or returns is inspect.Signature.empty else f" -> {returns.text}"
    # A function shows its address, and a class is shown in angle brackets.
    words = [re.sub(r"<function .*>", "...", str(p)) for p in parameters if p.name != "self"]
    words = [re.sub(r"<class '([\w.]+)'>", r"\1", word) for word in words]
    kinds = [p.kind for p in parameters if p.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    line = f"{name}({', '.join(words)}){ending}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(words) + f",\n){ending}"


class _Name:
    """An annotation, shown as it was written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _annotation(annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _Name(re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text.strip("'\"")))


def entry(name: str, thing: Any, level: int) -> str:
    """The paragraph of a public name: how it is called, its docstring, and the methods of a class."""
    parts = [f"{'#' * level} `{name}`"]
    raised = isinstance(thing, type) and issubclass(thing, BaseException)
    if callable(thing) and not raised:
        parts.append(f"```python\n{signature(name, thing)}\n```")
    parts.append(described(thing.__doc__ or ""))
    if isinstance(thing, type) and not raised:
        for method, function in methods(thing):
            what = "" if isinstance(function, property) else signature(method, function).partition("(")[2]
            shown = f"`.{method}`" if isinstance(function, property) else f"`.{method}({' '.join(what.split())}`"
            first = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]
            parts.append(f"* {shown}\n" + wrapped(escaped(" ".join(first.split())), "  ", "  "))
    return "\n\n".join(parts)


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class that have a docstring, those of its own file's bases too."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("minisimclr") or (base is not kind and base.__name__ in ms.__all__):
            continue
        for name, function in vars(base).items():
            plain = isinstance(function, (types.FunctionType, property, classmethod))
            function = function.__func__ if isinstance(function, classmethod) else function
            if plain and not name.startswith("_") and name not in seen and function.__doc__:
                seen.add(name)
                yield name, function


def room(thing: Any) -> str:
    parts = (getattr(thing, "__module__", None) or "").split(".")
    return parts[1] if len(parts) > 1 else ""


def api() -> None:
    """Print every public name, a section for each room."""
    by_heading: dict[str, list[str]] = {heading: [] for heading in HEADINGS.values()}
    for name in ms.__all__:
        thing = getattr(ms, name)
        if isinstance(thing, types.ModuleType):
            continue
        where = room(thing)
        by_heading.setdefault(HEADINGS.get(where, where), []).append(entry(f"ms.{name}", thing, 3))
    by_heading["Operations"] += [entry(f"ms.ops.{n}", getattr(ms.ops, n), 3) for n in ms.ops.__all__]
    for heading, entries in by_heading.items():
        if entries:
            _print(f"\n## {heading}\n\n" + "\n\n".join(entries))
    _print("")


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────


def cell(text: str) -> str:
    return escaped(" ".join(text.split()))


def option_row(action: argparse.Action) -> str:
    """The row of an option: its name with its value, and its help text."""
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = ""
    if action.option_strings and action.nargs != 0:
        value = str(action.metavar or ("" if action.choices else action.dest.upper()))
        if action.choices is not None and not action.metavar:
            value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs in ("+", "*"):
        value = (value or names) + " …"
        names = names if action.option_strings else ""
    call = f"{names} {value}".strip().replace("|", "\\|")
    return f"| `{call}` | {cell((action.help or '') % vars(action)) if action.help else ''} |"


def commands(parser: Callable[[], argparse.ArgumentParser] | None = None) -> None:
    """Print every command with its options."""
    from minisimclr import cli

    found = next(a for a in (parser or cli._parser)()._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in found.choices.items():
        _print(f"\n## minisimclr {name}\n\n{wrapped(escaped(sub.description or ''))}\n")
        actions = [a for a in sub._actions if a.dest != "help"]
        words = [a for a in actions if not a.option_strings]
        rows = [*words, *(a for a in actions if a.option_strings and a.dest not in ("threads", "debug"))]
        shared = [a for a in actions if a.dest in ("threads", "debug")]
        _print("| option | meaning |\n|---|---|\n" + "\n".join(map(option_row, [*rows, *shared])))
    _print("")
