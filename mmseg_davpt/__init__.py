"""DA-VPT for MMSegmentation: a frozen pretrained ViT, a few guided prompts per block, any mmseg head."""

from . import compat

compat.apply()  # before anything imports torchvision, mmseg, or builds a Runner

# ruff: noqa: E402
from . import datasets
from .apis.segmenter import Segmentation, TaskSegmenter
from .engine import PromptAssignmentHook
from .guidance import MetricGuidance, ProxyAnchorLoss, class_prototypes, patch_class_fractions
from .models import PromptedEncoderDecoder, PromptedViT
from .reports import count_parameters, format_report
from .tasks import TaskFileError
from .tuning import TUNING_METHODS, TuningMethod
from .version import __version__
from .weights import WeightsError

__all__ = [
    'TUNING_METHODS',
    'MetricGuidance',
    'PromptAssignmentHook',
    'PromptedEncoderDecoder',
    'PromptedViT',
    'ProxyAnchorLoss',
    'Segmentation',
    'TaskFileError',
    'TaskSegmenter',
    'TuningMethod',
    'WeightsError',
    '__version__',
    'class_prototypes',
    'count_parameters',
    'datasets',
    'format_report',
    'patch_class_fractions',
]
