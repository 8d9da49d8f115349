"""Write the two reading lists where they are shown: the package's docstring, the README and the book's first page.

    python docs/reading.py           write them anew
    python docs/reading.py --check   exit with 1 if one of them is out of date

The lists stand here and nowhere else. A file's line is the first line of its own docstring; its length is the number of
lines that are neither blank nor only a comment.
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minisimclr"
MOST_LINES = 2600  # of code in the first list: an afternoon

# In order: each file uses only what came before it, and `processor`, `guard` and the choice of a room (its __init__).
FIRST = """
backend.py
engine/autograd.py
ops/basic.py ops/shapes.py ops/loss.py
ops/conv/plain.py ops/conv/__init__.py ops/norm/plain.py ops/norm/__init__.py
ops/pool/plain.py ops/pool/__init__.py ops/__init__.py
ntxent/plain.py ntxent/__init__.py
checks/gradcheck.py
module.py nn.py resnet.py simclr.py
views/parameters.py views/plain.py views/__init__.py
data/dataset.py
training/optim.py training/config.py training/batches.py training/train.py
evaluation/embed.py evaluation/knn.py
""".split()  # noqa: SIM905
SECOND = """
values/settings.py values/methods.py values/arrays.py values/__init__.py
cores.py processor.py storage.py collective.py
engine/guard.py engine/surface.py engine/ledger.py engine/drawing.py
ops/conv/products.py ops/conv/slabs.py ops/conv/cublas.py ops/conv/padded.py ops/conv/winograd.py ops/norm/fused.py
ops/norm/shared.py ops/pool/threaded.py ops/operators.py
ntxent/exact.py ntxent/few.py ntxent/tiled.py ntxent/cuda.py ntxent/shared.py
objectives/pairs.py objectives/logistic.py objectives/hinge.py objectives/dcl.py objectives/supervised.py
objectives/__init__.py
checks/table.py checks/report.py
interop.py heads/__init__.py
views/transforms.py views/colours.py views/changes.py views/named.py views/augment.py
data/doodles/raster.py data/doodles/styles.py data/doodles/things.py data/doodles/__init__.py
data/reading.py data/splits.py data/names.py data/classes.py data/left_out.py data/zip_names.py data/archive.py
data/labels.py data/find.py data/exif.py data/jpeg.py data/png.py data/headers.py data/memory.py data/colours.py
data/decode.py data/stores.py data/stream.py data/cache.py data/files.py data/pickled.py data/binaries.py
data/formats.py data/__init__.py
training/large_batch.py training/photos.py training/parcels.py training/signals.py
training/workers.py training/precision.py
training/archive.py
training/checkpoint.py
training/stored.py training/record.py training/folders.py training/trained.py training/run.py
training/distributed.py training/begin.py training/session.py training/presets.py
evaluation/probe.py evaluation/duplicates.py
evaluation/scores.py evaluation/measures.py
protocols/sgd_probe.py
protocols/compare.py protocols/table.py protocols/embeddings.py
protocols/monitor.py protocols/finetune.py protocols/sklearn.py
report/sheet.py report/table.py report/findings.py report/thumbs.py report/pictures.py report/svg.py report/words.py
report/label_curve.py
report/markup.py report/numbers.py report/images.py report/page.py
display.py
cli/streams.py cli/console.py cli/sources.py cli/common.py cli/demo.py cli/pretrain.py cli/evaluate.py
cli/finetune.py cli/report.py cli/embed.py cli/export.py cli/neighbours.py cli/duplicates.py cli/data.py
cli/gradcheck.py cli/__init__.py
""".split()  # noqa: SIM905

HEADINGS = {
    "First reading": (FIRST, "the whole of SimCLR, in the order in which one thing needs another."),
    "Second reading": (SECOND, "the exact, fast, safe and resumable forms of the same, and what goes with them."),
}


@functools.cache
def first_line(file: str) -> str:
    """The first line of a file's docstring, without its full stop."""
    return (ast.get_docstring(ast.parse((PACKAGE / file).read_text())) or "").partition("\n")[0].rstrip(".:")


@functools.cache
def lines_of_code(file: str) -> int:
    """The number of lines that are neither blank nor only a comment."""
    lines = (PACKAGE / file).read_text().splitlines()
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


def total(files: list[str]) -> int:
    return sum(map(lines_of_code, files))


def as_text() -> str:
    """Both lists for the package's docstring: file, lines, content."""
    parts = []
    for heading, (files, about) in HEADINGS.items():
        parts.append(f"{heading}, {total(files):,} lines: {about}\n")
        parts += [f"    {file:<24}{lines_of_code(file):>4}  {first_line(file)}" for file in files]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def as_table(prefix: str) -> str:
    """Both lists in Markdown, the names as links."""
    parts = []
    for heading, (files, about) in HEADINGS.items():
        parts.append(f"**{heading}**, {total(files):,} lines: {about}\n\n| file | lines | content |\n|---|---:|---|")
        parts += [
            f"| [`{file}`]({prefix}minisimclr/{file}) | {lines_of_code(file)} | {first_line(file)} |" for file in files
        ]
        parts.append("")
    return "\n".join(parts)


def between(text: str, begin: str, end: str, content: str) -> str:
    """The text with `content` between two markers; ValueError if one of them is missing."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no {begin!r} … {end!r}")
    return f"{before}{begin}{content}{end}{after}"


def pages() -> dict[Path, str]:
    """Return the pages that show the lists, each with the text that it should have."""
    package = PACKAGE / "__init__.py"
    pages = {package: between(package.read_text(), "-----\n\n", '"""', as_text())}
    markers = "<!-- reading lists -->\n\n", "<!-- end of the reading lists -->"
    for page, prefix in ((ROOT / "README.md", ""), (ROOT / "docs" / "README.md", "../")):
        pages[page] = between(page.read_text(), *markers, as_table(prefix) + "\n")
    return pages


def main(arguments: list[str]) -> int:
    stale = {path: text for path, text in pages().items() if path.read_text() != text}
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)}: the reading lists are out of date: python docs/reading.py")
        return 1 if stale else 0
    for path, text in stale.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
