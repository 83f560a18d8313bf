"""Hooks, optimizer wrappers and the metric."""

from .assignment_hook import PromptAssignmentHook
from .attention_hook import AttentionMassHook, PromptAttentionHook
from .checkpoint_hook import SafeCheckpointHook
from .guards import TrainingGuardHook
from .hooks import ParamReportHook, StepSeedHook
from .interrupts import stoppable
from .metric import PerClassIoUMetric
from .optim import CpuAmpOptimWrapper, TunedOptimWrapperConstructor
from .pictures import PictureGridHook
from .precision import CpuAmpTestLoop, CpuAmpValLoop, cpu_has_bfloat16
from .record_hook import RunRecordHook
from .screen import QuietRunner, open_screens
from .summary_hook import RunSummaryHook
from .task_file_hook import TaskFileHook
from .writers import ComparisonWriterHook, MaskWriterHook

__all__ = [
    'AttentionMassHook',
    'ComparisonWriterHook',
    'CpuAmpOptimWrapper',
    'CpuAmpTestLoop',
    'CpuAmpValLoop',
    'MaskWriterHook',
    'ParamReportHook',
    'PerClassIoUMetric',
    'PictureGridHook',
    'PromptAssignmentHook',
    'PromptAttentionHook',
    'QuietRunner',
    'RunRecordHook',
    'RunSummaryHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'TaskFileHook',
    'TrainingGuardHook',
    'TunedOptimWrapperConstructor',
    'cpu_has_bfloat16',
    'open_screens',
    'stoppable',
]
