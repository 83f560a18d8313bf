"""MiniScenes: a generated dataset, painted on a canvas."""

from .dataset import MiniScenesDataset, make_miniscenes

__all__ = ['MiniScenesDataset', 'make_miniscenes']
