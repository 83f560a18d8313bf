"""Tables and figures of a model."""

from .parameters import build_shapes, count_parameters, count_trainable, format_comparison, format_report
from .prompt_attention import (
    PromptAttention,
    PromptSpace,
    attention_maps,
    attention_mass,
    attention_to_prompts,
    measure_attention,
    prompt_space,
    with_labels_of_image_size,
)
from .prompt_figures import draw_class_table, draw_prompt_maps, draw_prompt_space, prompt_titles

__all__ = [
    'PromptAttention',
    'PromptSpace',
    'attention_maps',
    'attention_mass',
    'attention_to_prompts',
    'build_shapes',
    'count_parameters',
    'count_trainable',
    'draw_class_table',
    'draw_prompt_maps',
    'draw_prompt_space',
    'format_comparison',
    'format_report',
    'measure_attention',
    'prompt_space',
    'prompt_titles',
    'with_labels_of_image_size',
]
