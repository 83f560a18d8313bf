"""Hooks, mixed precision on a CPU, and what the command lines share."""

from .assignment_hook import PromptAssignmentHook
from .hooks import ParamReportHook, StepSeedHook
from .launch import enable_amp, load_config, prepare_launcher
from .optim import CpuAmpOptimWrapper, TunedOptimWrapperConstructor
from .pictures import PictureGridHook
from .testing import require_complete, use_tta

__all__ = [
    'CpuAmpOptimWrapper',
    'ParamReportHook',
    'PictureGridHook',
    'PromptAssignmentHook',
    'StepSeedHook',
    'TunedOptimWrapperConstructor',
    'enable_amp',
    'load_config',
    'prepare_launcher',
    'require_complete',
    'use_tta',
]
