"""Pretrained Vision Transformers: what timm gives us."""

from .build import build_trunk, pixel_statistics, resolve_blocks
from .projections import QKV, bias_home, projection, weight_home
from .weights import WeightsError, load_trunk_weights

__all__ = [
    'QKV',
    'WeightsError',
    'bias_home',
    'build_trunk',
    'load_trunk_weights',
    'pixel_statistics',
    'projection',
    'resolve_blocks',
    'weight_home',
]
