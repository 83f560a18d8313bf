"""Which tensors learn."""

from .policy import TuningPolicy, apply_policy, resolve_policy, train_tuned_parts, tuned_names
from .report import count_parameters, format_report

__all__ = [
    'TuningPolicy',
    'apply_policy',
    'count_parameters',
    'format_report',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
]
