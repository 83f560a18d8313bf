"""Hooks, mixed precision on a CPU, and what the command lines share."""

from .assignment_hook import PromptAssignmentHook
from .hooks import ParamReportHook, StepSeedHook
from .launch import enable_amp, leave_process_group, load_config, prepare_launcher
from .optim import CpuAmpOptimWrapper, TunedOptimWrapperConstructor
from .pictures import PictureGridHook
from .testing import (
    PerClassIoUMetric,
    draw_predictions,
    library_versions,
    prepare_test,
    require_complete,
    run_multi_scale,
    run_single_scale,
    save_results,
)

__all__ = [
    'CpuAmpOptimWrapper',
    'ParamReportHook',
    'PerClassIoUMetric',
    'PictureGridHook',
    'PromptAssignmentHook',
    'StepSeedHook',
    'TunedOptimWrapperConstructor',
    'draw_predictions',
    'enable_amp',
    'leave_process_group',
    'library_versions',
    'load_config',
    'prepare_launcher',
    'prepare_test',
    'require_complete',
    'run_multi_scale',
    'run_single_scale',
    'save_results',
]
