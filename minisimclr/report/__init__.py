"""The report of a run: the table of accuracies and four pictures."""

from .pictures import draw_all, drawn
from .table import table

__all__ = ["draw_all", "drawn", "table"]
