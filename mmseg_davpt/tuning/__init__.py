"""Which tensors learn."""

from .policy import SplitBias, TuningPolicy, apply_policy, resolve_policy, train_tuned_parts, tuned_names
from .report import build_shapes, count_parameters, format_comparison, format_report

__all__ = [
    'SplitBias',
    'TuningPolicy',
    'apply_policy',
    'build_shapes',
    'count_parameters',
    'format_comparison',
    'format_report',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
]
