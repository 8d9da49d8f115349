"""Keep the book true: code and outputs are written into its pages, and links, equations and figures are checked.

    python docs/book.py            write code and outputs into the pages again (needs cogapp: the extra `docs`)
    python docs/book.py --check    exit with 1 if a page is out of date, or a link, an equation or a figure is wrong
    python docs/book.py --build    check, then build the HTML into build/book, every warning an error

A page carries blocks such as

    <!-- [[[cog show("minisimclr/nn.py", "Linear") ]]] -->
    <!-- [[[end]]] -->

Cog runs the code of the first line and writes what it prints between the two. A code host shows the result only,
because the markers are HTML comments. The functions that a block may call are `show`, `run`, `table`,
`from_figures`, `told`, `lab`, `curve`, `settings` and `compared`; what one `run` defines, the later ones of the page
know.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import json
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILT = ROOT / "build" / "book"
WIDTH = 100  # columns of a line of prose
LONGER = {"03_convolution.md", "05_nt_xent.md", "README.md"}  # pages with longer lines; this list only shrinks

sys.path.insert(0, str(ROOT))  # the book is about this checkout, whatever else is installed


# ── What a page may call ──────────────────────────────────────────────────────────────────────────


def _print(text: str) -> None:
    import cog  # there only while cog runs a page

    cog.outl(text)


def _fenced(text: str, language: str) -> None:
    _print(f"\n```{language}\n{text.strip(chr(10))}\n```")


def source(file: str, name: str = "", docstring: bool = True) -> str:
    """The source of a function or class ("Class.method" too) in a file of the repository; without a name, all of it.

    Raises KeyError if the file does not define the name.
    """
    text = (ROOT / file).read_text()
    node: Any = ast.parse(text)
    for part in filter(None, name.split(".")):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise KeyError(f"{file} defines no {name}")
        node = found[0]
    lines = text.splitlines()
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 if name else 0
    last = node.end_lineno if name else len(lines)
    kept = lines[first:last]
    if not docstring and ast.get_docstring(node) is not None:
        told = node.body[0]
        kept = lines[first : told.lineno - 1] + lines[told.end_lineno : last]
    return textwrap.dedent("\n".join(kept))


def show(file: str, *names: str, docstring: bool = True) -> None:
    """Print functions or classes of a file as one block of code, the file's name on top."""
    parts = [source(file, name, docstring) for name in names or ("",)]
    _fenced(f"# {file.removeprefix('minisimclr/')}\n" + "\n\n".join(parts), "python")


_NAMES: dict[str, dict[str, Any]] = {}  # what the snippets of each page have defined


def printed(code: str, names: dict[str, Any]) -> str:
    """Run a snippet and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "<the book>", "exec"), names)
    return out.getvalue()


def run(code: str) -> None:
    """Print a snippet, and below it what it prints when it is run."""
    import cog

    names = _NAMES.setdefault(cog.inFile, {"__name__": "book"})
    _fenced(code, "python")
    if said := printed(code, names):
        _fenced(said, "text")


def table(file: str, row: str, words: dict[str, str] | None = None) -> None:
    """Print the table of another page that has a row with this text, some words replaced (in a translation)."""
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / file).read_text(), re.MULTILINE)
    (found,) = [block for block in blocks if row in block]
    for word, other in (words or {}).items():
        if word not in found:
            raise KeyError(f"the table of {file} has no {word!r}")
        found = found.replace(word, other)
    _print(f"\n{found}")


def _figures(script: str) -> Any:
    """The module docs/figures/SCRIPT.py."""
    if str(HERE / "figures") not in sys.path:
        sys.path.insert(0, str(HERE / "figures"))
    return importlib.import_module(script)


def from_figures(script: str) -> None:
    """Print the table that docs/figures/SCRIPT.py makes of the results that are stored."""
    module = _figures(script)
    _print("\n" + module.table(json.loads(module.RESULTS.read_text())["runs"]) + "\n")


def told(script: str, name: str, *arguments: Any) -> None:
    """Print what a function of docs/figures/SCRIPT.py returns: a table or sentences, its prose in lines of the page."""
    paragraphs = getattr(_figures(script), name)(*arguments).split("\n\n")
    wrapped = [
        text
        if text.startswith(("|", "!"))
        else textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    ]
    _print("\n" + "\n\n".join(wrapped) + "\n")


LAB = HERE / "results" / "paper"  # what benchmarks/paper.py stores
SETS = {"doodles": "Doodles", "cifar10-jpeg": "CIFAR-10 (as JPEG)"}  # the data sets of the lab, by their files


def lab(name: str) -> None:
    """Print what the paper lab has stored of an experiment: for each data set the cost, the table and the figure."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    paper = importlib.import_module("paper")
    found = False
    for data, title in SETS.items():
        path = LAB / f"{name}-{data}.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        if runs:
            _print(f"\n**{title}.** {_cost(runs)}\n\n{paper.table(paper.EXPERIMENTS[name], runs)}")
            picture = path.with_suffix(".png")
            if picture.exists():
                _print(f"\n![{name}, {title}]({picture.relative_to(HERE)})")
            found = True
    if not found:
        _print("\nNot run yet.")
    _print("")


def _cost(runs: list[dict[str, Any]]) -> str:
    """Say how many runs there are, how many of them another experiment had made already, and what the rest cost."""
    own = [run for run in runs if "from" not in run]
    shared = len(runs) - len(own)
    said = f"{len(runs)} runs" + (f", {shared} of them shared with other tables" if shared else "")
    return f"{said}; {sum(run['cpu seconds'] for run in own) / 60:.0f} minutes of CPU time."


def curve(file: str) -> None:
    """Print the accuracies of a label-efficiency curve, as `finetune --curve` stores them: a row for each amount."""
    if not (HERE / file).exists():
        return _print("\nNot run yet.\n")
    points = json.loads((HERE / file).read_text())["points"]
    splits = list(points[0]["scores"])
    heads = [f"{start}, {split}" for split in splits for start in ("SimCLR", "scratch")]
    lines = ["| labels a class | images | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for labels in dict.fromkeys(point["labels"] for point in points):
        own = {point["start"]: point for point in points if point["labels"] == labels}
        cells = [
            f"{100 * own[start]['scores'][split]['accuracy']:.1f}" if start in own else ""
            for split in splits
            for start in ("simclr", "scratch")
        ]
        lines.append(f"| {labels} | {next(iter(own.values()))['count']:,} | " + " | ".join(cells) + " |")
    _print("\n" + "\n".join(lines) + "\n")


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return re.sub("e-0*", "e-", f"{value:.0e}") if isinstance(value, float) and 0 < value < 1e-3 else str(value)


def compared(heading: str, rows: str) -> None:
    """Print a table in which {name} stands for the default of that setting of `Config`, one line a row."""
    from minisimclr.training.config import Config
    from minisimclr.views import parameters

    defaults = {name: _default(value) for name, value in Config().as_dict().items()}
    low, high = (Fraction(bound).limit_denominator(10) for bound in parameters.CROP_ASPECT)
    defaults |= {"aspect": f"{low} to {high}", "jittered": str(parameters.JITTERED), "greyed": str(parameters.GREYED)}
    defaults |= {"sigma": "{:g} to {:g}".format(*parameters.BLUR_SIGMA), "blurred": f"{Fraction(parameters.BLURRED)}"}
    defaults |= {"hidden": "that of h, that of h"}
    columns = heading.count("|") + 1
    lines = [heading, "|".join(["---"] * columns), *(row.format(**defaults) for row in rows.strip().splitlines())]
    for line in lines:
        if line.count("|") + 1 != columns:
            raise ValueError(f"a row needs {columns} columns: {line}")
    _print("\n" + "\n".join(f"| {line} |" for line in lines) + "\n")


def presets() -> None:
    """Print the presets: a row for each setting that one of them names, and the default beside them."""
    from minisimclr.training.config import Config
    from minisimclr.training.presets import PRESETS, for_few

    columns = {"default": Config().as_dict(), **PRESETS, "few-images": for_few(300)}
    names = [
        name for name in Config().as_dict() if any(name in s for title, s in columns.items() if title != "default")
    ]
    titles = [title + (", 300 of them" if title == "few-images" else "") for title in columns]
    lines = [f"| setting | {' | '.join(titles)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        values = [f"`{_default(column[name])}`" if name in column else "" for column in columns.values()]
        lines.append(f"| `{name}` | {' | '.join(values)} |")
    _print("\n" + "\n".join(lines) + "\n")


def settings() -> None:
    """Print every setting of `Config` with its default and its help text."""
    from minisimclr.training.config import Config

    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for item in dataclasses.fields(Config):
        lines.append(
            f"| `{item.name}` | `{_default(item.default)}` | {item.metadata['help'].replace('|', chr(92) + '|')} |"
        )
    _print("\n" + "\n".join(lines) + "\n")


# ── Pages and what they should be ─────────────────────────────────────────────────────────────────


def pages() -> list[Path]:
    """The pages of the book, and the other pages of the repository whose links are checked."""
    others = [*ROOT.glob("*.md"), *(ROOT / "tests").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    return sorted([*HERE.rglob("*.md"), *others])


def written(page: Path) -> str:
    """The text that a page should have: every block of cog written anew."""
    text = page.read_text()
    if "[[[cog" not in text:
        return text
    from cogapp import Cog

    cog = Cog()
    cog.options.end_spec = "]]] -->"  # so that an array of arrays of arrays may be printed
    cog.options.prologue = f"import sys; sys.path.insert(0, {str(HERE)!r}); from book import *"
    _NAMES.pop(str(page), None)
    return str(cog.process_string(text, str(page)))


def stale(page: Path) -> list[str]:
    """Return a complaint if a block of the page is out of date, or prints nothing, as one that was misspelt does."""
    text = page.read_text()
    if re.search(r"\]\]\] -->\n<!-- \[\[\[end\]\]\]", text):
        return [f"{_name(page)}: a block prints nothing"]
    return [] if written(page) == text else [f"{_name(page)}: out of date: python docs/book.py"]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _prose(text: str) -> str:
    """The text without code and comments, whose brackets are no links; line breaks stay."""
    blank = lambda match: "\n" * match.group().count("\n")  # noqa: E731
    text = re.sub(r"<!--.*?-->", blank, text, flags=re.DOTALL)
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2", blank, text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda match: "x" * len(match.group()), text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def links(page: Path) -> Iterator[str]:
    """The targets of all links and images of a page."""
    yield from re.findall(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)", _prose(page.read_text()))


def broken_links(page: Path) -> list[str]:
    """Return a complaint for each link into the repository that leads nowhere."""
    complaints = []
    for target in links(page):
        if re.match("[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            complaints.append(f"{_name(page)}: no file {target}")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text()):
            complaints.append(f"{_name(page)}: no heading {target}")
    return complaints


def long_lines(page: Path) -> list[str]:
    """Return a complaint for each line of prose beyond 100 columns. Tables, code and formulas may be longer."""
    if page.name in LONGER or page.parent != HERE:
        return []
    prose = re.sub(r"^\|.*$", "", _prose(page.read_text()), flags=re.MULTILINE)
    wide = lambda line: len(line) + len(re.findall("[\u1100-\u11ff\u3000-\ud7ff\uff00-\uffef]", line))  # noqa: E731
    return [
        f"{_name(page)}:{k}: {wide(line)} columns" for k, line in enumerate(prose.splitlines(), 1) if wide(line) > WIDTH
    ]


def tags(page: Path) -> list[str]:
    return re.findall(r"\\tag\{([^}]*)\}", page.read_text())


def tags_in_code() -> set[tuple[str, str]]:
    """The equations that comments and docstrings of the package name: {("minisimclr/nn.py", "4.2"), …}."""
    named = set()
    for path in sorted((ROOT / "minisimclr").rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                named |= {(_name(path), tag) for tag in re.findall(r"(?<!\w)\((\d{1,2}\.[1-9]\d?)\)", token.string)}
    return named


def wrong_equations() -> list[str]:
    """Every tag stands once, in the chapter of its number; every equation that the code names is there.

    A translation carries the tags of its original.
    """
    complaints = []
    by_chapter: dict[str, list[str]] = {}
    for page in sorted(HERE.glob("[0-9][0-9]_*.md")):
        original = page.with_name(page.name.replace(".ko.md", ".md"))
        if original != page:
            if tags(page) != tags(original):
                complaints.append(f"{_name(page)}: other equations than {original.name}")
            continue
        chapter, found = str(int(page.name[:2])), tags(page)
        by_chapter[chapter] = found
        complaints += [f"{_name(page)}: ({tag}) stands twice" for tag in set(found) if found.count(tag) > 1]
        complaints += [f"{_name(page)}: ({tag}) is of another chapter" for tag in found if tag.split(".")[0] != chapter]
    for file, tag in sorted(tags_in_code()):
        of_chapter = by_chapter.get(tag.split(".")[0])
        if of_chapter and tag not in of_chapter:  # chapters without equations: (0.5) is a number there
            complaints.append(f"{file}: no equation ({tag}) in the book")
    return complaints


def unused_figures() -> list[str]:
    """Return a complaint for each picture that no page shows (broken_links sees the opposite)."""
    shown = {(page.parent / target).resolve() for page in pages() for target in links(page) if ":" not in target}
    figures = [path for path in (HERE / "figures").iterdir() if path.suffix in (".png", ".gif", ".svg")]
    return [f"{_name(path)}: no page shows it" for path in sorted(figures) if path not in shown]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line of minisimclr on a page, in a line of its own or within the text."""
    text = page.read_text()
    for line in re.findall(r"^(?:\$ )?(minisimclr [a-z].*)$", text, re.MULTILINE) + re.findall(
        r"`(minisimclr [a-z][^`]*)`", text
    ):
        yield line.partition("#")[0].split()[1:]


@functools.cache
def help_of(command: str) -> str:
    """The help text of a command; empty if there is no such command."""
    from minisimclr.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return out.getvalue()


def wrong_commands(page: Path) -> list[str]:
    """Return a complaint for each command or option on a page that minisimclr does not have."""
    complaints = []
    for command, *words in commands(page):
        known = set(re.findall(r"--[\w-]+", help_of(command)))
        if not known:
            complaints.append(f"{_name(page)}: no command minisimclr {command}")
            continue
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        complaints += [f"{_name(page)}: {command} has no {flag}" for flag in sorted(flags - known)]
    return complaints


def from_elsewhere(folder: Path) -> list[str]:
    """Return a complaint for each script, style, font or picture that a built page would load from the network."""
    loads = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?(?:https?:)?//[^"'>\s]+"""
        r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*?\bhref=["']?(?:https?:)?//[^"'>\s]+"""
        r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+"""
        r"""|url\(["']?(?:https?:)?//[^"')\s]+"""
    )
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".html", ".css")]
    return [f"{path.relative_to(folder)}: {found}" for path in files for found in loads.findall(path.read_text())]


def split_formulas(folder: Path) -> list[str]:
    """Return a complaint for each built page with a formula in `split`, which a browser refuses if it has a tag."""
    files = sorted(folder.rglob("*.html"))
    return [f"{path.relative_to(folder)}: a formula in split" for path in files if r"\begin{split}" in path.read_text()]


def complaints() -> list[str]:
    """Everything that is wrong with the book, a line each."""
    found = [
        line for page in pages() for check in (stale, broken_links, wrong_commands, long_lines) for line in check(page)
    ]
    return [*found, *wrong_equations(), *unused_figures()]


def build() -> int:
    """Build the HTML, strictly, and look whether it would load anything from the network, or show no formula."""
    strict = ["-W", "--keep-going", "-n", "-q", "-j", "auto"]
    code = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", *strict, HERE, BUILT]).returncode
    outside = [*from_elsewhere(BUILT), *split_formulas(BUILT)]
    print(*outside, sep="\n", end="\n" if outside else "")
    if not code and not outside:
        print(f"the book: {BUILT / 'index.html'}")
    return code or bool(outside)


def main(arguments: list[str]) -> int:
    if not arguments:
        for page in pages():
            text = written(page)
            if text != page.read_text():
                page.write_text(text)
                print(f"{_name(page)}: written")
        return 0
    found = complaints()
    print(*found, sep="\n", end="\n" if found else "")
    if "--build" in arguments:
        return build() or bool(found)
    return bool(found)


if __name__ == "__main__":
    sys.modules["book"] = sys.modules["__main__"]  # what cog imports is this very module
    sys.exit(main(sys.argv[1:]))
