"""Datasets that mmseg lacks, and draws that can be repeated."""

from .camvid import CamVidDataset
from .check import check_data_roots
from .miniscenes import MiniScenesDataset, make_miniscenes
from .sampling import ReplayableSampler, SeedPerDraw

__all__ = [
    'CamVidDataset',
    'MiniScenesDataset',
    'ReplayableSampler',
    'SeedPerDraw',
    'check_data_roots',
    'make_miniscenes',
]
