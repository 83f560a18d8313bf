"""Tuning methods: what is trained in the trunk, one file per method."""

from importlib import import_module
from pkgutil import iter_modules

from .attention import BlockActivations, GatedPrompts, JoinedPrompts, TunedAttention
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import TOKEN_GRID, TunedBlock, tune_attention, tune_block
from .policy import TuningPlan, build_methods, presets, resolve_tuning, train_tuned_modules
from .prompts import DeepPrompts, ShallowPrompts

for _module in iter_modules(__path__):  # every file of this folder registers its method
    import_module(f'{__name__}.{_module.name}')

__all__ = [
    'TOKEN_GRID',
    'TUNING_METHODS',
    'BlockActivations',
    'DeepPrompts',
    'GatedPrompts',
    'JoinedPrompts',
    'Preset',
    'ShallowPrompts',
    'TunedAttention',
    'TunedBlock',
    'TuningMethod',
    'TuningPlan',
    'build_methods',
    'presets',
    'resolve_tuning',
    'train_tuned_modules',
    'tune_attention',
    'tune_block',
]
