"""The metric space: labels in, losses out. Imports nothing of the backbone."""

from .assignment import PromptAssignment, assign_classes
from .guidance import MetricGuidance
from .labels import patch_class_fractions
from .losses import ProxyAnchorLoss
from .prototypes import class_prototypes

__all__ = [
    'MetricGuidance',
    'PromptAssignment',
    'ProxyAnchorLoss',
    'assign_classes',
    'class_prototypes',
    'patch_class_fractions',
]
