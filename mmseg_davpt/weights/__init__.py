"""Weight files in any supported format -> a trunk, every tensor or none."""

from .formats import WeightsError
from .load import load_trunk_weights

__all__ = ['WeightsError', 'load_trunk_weights']
