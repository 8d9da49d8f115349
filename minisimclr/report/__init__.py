"""The report of a run: the table of accuracies, a page in HTML, and three pictures."""

from __future__ import annotations

from ..protocols.compare import Vote
from .findings import Findings, look
from .page import as_html
from .pictures import draw_all
from .table import read_results, table

__all__ = ["Vote", "drawn", "look", "read_results", "table"]


def drawn(findings: Findings) -> dict[str, bytes]:
    """Return the files that show what was found, by name: report.html and the pictures."""
    return {"report.html": as_html(findings).encode(), **draw_all(findings)}
