"""Pretrained Vision Transformers: what timm gives us."""

from .build import build_trunk, resolve_blocks
from .weights import WeightsError, load_trunk_weights

__all__ = ['WeightsError', 'build_trunk', 'load_trunk_weights', 'resolve_blocks']
