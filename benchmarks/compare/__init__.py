"""Comparisons of tuning methods: methods x seeds in one frame, with spread and cost."""

from .cell import PairedHeadsHook, run_cell
from .suite import Cell, Suite, load_suite
from .table import format_table, plot, summarise

__all__ = [
    'Cell',
    'PairedHeadsHook',
    'Suite',
    'format_table',
    'load_suite',
    'plot',
    'run_cell',
    'summarise',
]
