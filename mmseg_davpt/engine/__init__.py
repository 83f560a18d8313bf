"""Hooks, optimizer wrappers and the metric."""

from .assignment_hook import PromptAssignmentHook
from .attention_hook import AttentionMassHook, PromptAttentionHook
from .checkpoint_hook import SafeCheckpointHook
from .guards import TrainingGuardHook
from .hooks import ParamReportHook, StepSeedHook
from .interrupts import stoppable
from .mask_writer import MaskWriterHook
from .metric import PerClassIoUMetric
from .optim import CpuAmpOptimWrapper, TunedOptimWrapperConstructor
from .pictures import PictureGridHook
from .record_hook import RunRecordHook
from .screen import TrainingRunner
from .summary_hook import RunSummaryHook
from .task_file_hook import TaskFileHook

__all__ = [
    'AttentionMassHook',
    'CpuAmpOptimWrapper',
    'MaskWriterHook',
    'ParamReportHook',
    'PerClassIoUMetric',
    'PictureGridHook',
    'PromptAssignmentHook',
    'PromptAttentionHook',
    'RunRecordHook',
    'RunSummaryHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'TaskFileHook',
    'TrainingGuardHook',
    'TrainingRunner',
    'TunedOptimWrapperConstructor',
    'stoppable',
]
