"""Which tensors are trained, and how they enter the trunk."""

from .adaptformer import AdaptFormer
from .attention import BlockActivations, PromptedAttention, ShallowPrompts
from .lora import build_lora, lora_deltas
from .policy import TuningPolicy, freeze_except, norm_parameters, resolve_policy, train_tuned_parts, tuned_names
from .prompts import Prompts

__all__ = [
    'AdaptFormer',
    'BlockActivations',
    'PromptedAttention',
    'Prompts',
    'ShallowPrompts',
    'TuningPolicy',
    'build_lora',
    'freeze_except',
    'lora_deltas',
    'norm_parameters',
    'resolve_policy',
    'train_tuned_parts',
    'tuned_names',
]
