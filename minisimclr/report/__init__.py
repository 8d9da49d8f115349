"""The table of accuracies and four pictures of a run."""

from .pictures import draw_all
from .table import table

__all__ = ["draw_all", "table"]
