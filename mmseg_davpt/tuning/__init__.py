"""Which tensors learn."""

from .policy import SplitBias, TuningPolicy, apply_policy, resolve_policy, train_tuned_parts, tuned_names
from .report import count_parameters, format_report

__all__ = [
    'SplitBias',
    'TuningPolicy',
    'apply_policy',
    'count_parameters',
    'format_report',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
]
