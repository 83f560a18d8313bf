"""A config for a folder of images and one of masks: pair and read them, choose settings, write the files."""

from .labels import Labels, class_weights, read_classes, read_labels
from .pairing import PairingError, pair_files
from .plan import Choice, Machine, Plan, make_plan
from .scan import DataSummary, Pair, scan_data
from .split import split_pairs
from .write import write_project

__all__ = [
    'Choice',
    'DataSummary',
    'Labels',
    'Machine',
    'Pair',
    'PairingError',
    'Plan',
    'class_weights',
    'make_plan',
    'pair_files',
    'read_classes',
    'read_labels',
    'scan_data',
    'split_pairs',
    'write_project',
]
