"""Pieces of HTML, of which the sections of a run's page are made.

Names from data are escaped here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import squares_of
from ..storage import one_line
from . import words
from .findings import Findings, Indices
from .thumbs import Sheet, sheet

# Bytes of the two large sheets, so that the page stays below 3 MB: base64 makes 4 of 3, and the rest needs 0.4 MB.
DOTS_BYTES, NEIGHBOURS_BYTES = 450_000, 1_200_000


@dataclass(frozen=True)
class Material:
    """All that sections are made of: what was found, the sheets of images, and the way to the book."""

    findings: Findings
    cells: Indices  # (M,8) the cells of the sheet "near" with the neighbours of each image on the map
    way: tuple[str, str] | None  # to the book
    sheets: dict[str, Sheet] = field(default_factory=dict)  # by name; a section may add its own

    @classmethod
    def of(cls, findings: Findings) -> Material:
        """Put the images of the map, and all neighbours of them, on a sheet each."""
        near, cells = np.unique(findings.nearest, return_inverse=True)
        made = cls(findings, cells.reshape(findings.nearest.shape), words.book(findings.run.folder))
        made.add_sheet("dots", squares_of(findings.test)[findings.shown], DOTS_BYTES)
        made.add_sheet("near", squares_of(findings.train)[near], NEIGHBOURS_BYTES)
        return made

    def add_sheet(self, name: str, images: NDArray[np.uint8], most: int) -> None:
        """Put images (N,S,S,3) on a sheet of at most `most` bytes."""
        self.sheets[name] = sheet(images, most)

    def class_name(self, label: int) -> str:
        """Return the name of a class, safe to stand in HTML."""
        return text(self.findings.test.class_names[label], most=40) if self.findings.labelled else "image"

    def thumb(self, name: str, k: int, label: str, kind: str = "") -> str:
        """Return cell k of a sheet as a thumbnail; the label is HTML already."""
        s = self.sheets[name]
        place = f"--x:{k % s.columns};--y:{k // s.columns}"
        return f'<i class="t sheet-{name} {kind}" style="{place}" role="img" aria-label="{label}"></i>'

    def section(self, name: str, title: str, content: str, means: str = "") -> str:
        """Return a section with its heading and what it means."""
        return f'<section id="{name}"><h2>{title}</h2>{self.meaning(means) if means else ""}{content}</section>'

    def meaning(self, name: str) -> str:
        """Return what a figure means, with a link to the book."""
        return words.meaning(name, self.way)

    def rules(self) -> str:
        """Return the styles by which the cells of the sheets are shown."""
        return "\n".join(
            f".sheet-{name} {{ --n: {s.columns}; background-image: url({s.uri}) }}" for name, s in self.sheets.items()
        )


def text(value: Any, most: int = 80) -> str:
    """Make text from data safe to stand in HTML: escaped, on one line, no control characters, no novel.

    >>> text("<b>cat\\n& dog")
    '&lt;b&gt;cat &amp; dog'
    """
    return escape(one_line(str(value), most=most))


def table(rows: Iterable[Iterable[str]], head: Iterable[str] = (), kind: str = "") -> str:
    """Return rows of cells, HTML already, as a table; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [f"<thead><tr>{top}</tr></thead>" if top else ""]
    for first, *cells in rows:
        body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{first}</th>{body}</tr>')
    return f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def filled(template: str, **parts: str) -> str:
    """Put parts in the places {{name}} of a template, in one pass: a part cannot open another place.

    >>> filled("<b>{{a}}</b>{{b}}", a="{{b}}", b="!")
    '<b>{{b}}</b>!'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
