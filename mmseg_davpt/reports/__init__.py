"""Tables and figures of a model."""

from .parameters import build_shapes, count_parameters, count_trainable, format_comparison, format_report
from .prompt_attention import attention_mass, attention_to_prompts

__all__ = [
    'attention_mass',
    'attention_to_prompts',
    'build_shapes',
    'count_parameters',
    'count_trainable',
    'format_comparison',
    'format_report',
]
