"""Trained segmentors for other programs: checkpoints, task files, timm, ONNX, ``torch.export``."""

from .graph import SegmentationGraph
from .programs import MAX_ERROR, ExportError, export_onnx, export_torch
from .weights import save_full, save_task, save_timm

__all__ = [
    'MAX_ERROR',
    'ExportError',
    'SegmentationGraph',
    'export_onnx',
    'export_torch',
    'save_full',
    'save_task',
    'save_timm',
]
