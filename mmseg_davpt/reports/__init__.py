"""Tables and pictures of a model."""

from .parameters import build_shapes, count_parameters, format_comparison, format_report

__all__ = ['build_shapes', 'count_parameters', 'format_comparison', 'format_report']
