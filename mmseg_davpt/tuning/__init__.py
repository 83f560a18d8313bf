"""Which tensors are trained, and how they enter the trunk."""

from .adaptformer import ParallelAdapter
from .attention import BlockTap, CarriedPrompts, PromptedAttention
from .lora import low_rank, updates
from .policy import TuningPolicy, apply_policy, norm_parameters, resolve_policy, train_tuned_parts, tuned_names
from .prompts import Prompts

__all__ = [
    'BlockTap',
    'CarriedPrompts',
    'ParallelAdapter',
    'PromptedAttention',
    'Prompts',
    'TuningPolicy',
    'apply_policy',
    'low_rank',
    'norm_parameters',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
    'updates',
]
