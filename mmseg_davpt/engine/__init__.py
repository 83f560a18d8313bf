"""Hooks, optimizer wrappers and the metric."""

from .assignment_hook import PromptAssignmentHook
from .attention_hook import AttentionMassHook
from .checkpoint_hook import SafeCheckpointHook
from .guards import TrainingGuardHook
from .hooks import ParamReportHook, StepSeedHook
from .mask_writer import MaskWriterHook
from .metric import PerClassIoUMetric
from .optim import CpuAmpOptimWrapper, TunedOptimWrapperConstructor
from .pictures import PictureGridHook
from .task_file_hook import TaskFileHook

__all__ = [
    'AttentionMassHook',
    'CpuAmpOptimWrapper',
    'MaskWriterHook',
    'ParamReportHook',
    'PerClassIoUMetric',
    'PictureGridHook',
    'PromptAssignmentHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'TaskFileHook',
    'TrainingGuardHook',
    'TunedOptimWrapperConstructor',
]
