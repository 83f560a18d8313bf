"""Datasets that mmseg lacks, repeatable draws, and checks of the data that a config names."""

from .camvid import CamVidDataset
from .ccp import CCPDataset
from .check import check_data_roots, check_sampler
from .loading import CheckedLoadAnnotations, CheckedLoadImageFromFile
from .miniscenes import MiniScenesDataset, make_miniscenes
from .sampling import ReplayableSampler, SeedPerDraw, images_per_pass

__all__ = [
    'CCPDataset',
    'CamVidDataset',
    'CheckedLoadAnnotations',
    'CheckedLoadImageFromFile',
    'MiniScenesDataset',
    'ReplayableSampler',
    'SeedPerDraw',
    'check_data_roots',
    'check_sampler',
    'images_per_pass',
    'make_miniscenes',
]
