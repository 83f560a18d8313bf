"""Which tensors learn."""

from .adapter import ParallelAdapter
from .lora import low_rank, updates
from .policy import TuningPolicy, apply_policy, resolve_policy, train_tuned_parts, tuned_names
from .report import build_shapes, count_parameters, format_comparison, format_report

__all__ = [
    'ParallelAdapter',
    'TuningPolicy',
    'apply_policy',
    'build_shapes',
    'count_parameters',
    'format_comparison',
    'format_report',
    'low_rank',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
    'updates',
]
