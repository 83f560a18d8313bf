"""Pretrained Vision Transformers, as timm builds them."""

from .build import Trunk, build_trunk, pixel_statistics, resolve_blocks
from .projections import QKV, bias_home, project, projection, weight_home

__all__ = [
    'QKV',
    'Trunk',
    'bias_home',
    'build_trunk',
    'pixel_statistics',
    'project',
    'projection',
    'resolve_blocks',
    'weight_home',
]
