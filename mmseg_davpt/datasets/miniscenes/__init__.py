"""MiniScenes: a generated dataset."""

from .dataset import MiniScenesDataset, make_miniscenes

__all__ = ['MiniScenesDataset', 'make_miniscenes']
