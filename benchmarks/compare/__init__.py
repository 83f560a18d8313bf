"""Comparisons of tuning methods: methods x seeds under the same conditions, with spread and cost."""

from .cell import PairedHeadsHook, run_cell
from .hashing import config_hash
from .runner import QUICK_SUITE, compare
from .suite import Cell, Suite, load_suite
from .table import format_table, plot, summarize

__all__ = [
    'QUICK_SUITE',
    'Cell',
    'PairedHeadsHook',
    'Suite',
    'compare',
    'config_hash',
    'format_table',
    'load_suite',
    'plot',
    'run_cell',
    'summarize',
]
