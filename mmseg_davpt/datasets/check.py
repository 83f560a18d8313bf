"""Data that is not there is said before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_SOURCES = {
    'ADE20KDataset': (
        'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (0.9 GB), unpacked so that '
        'DATA_ROOT/images/training exists'
    ),
    'CamVidDataset': 'http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ (research use), with 11-class masks',
}


def check_data_roots(cfg: Mapping) -> None:
    """Look for the data of every loader of a config.

    Args:
        cfg: A full config with ``train_dataloader`` and the like.

    Raises:
        FileNotFoundError: A data root does not exist; the message says where to get the data, and what runs without.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(key) or {}).get('dataset') or {}
        root, kind = dataset.get('data_root'), dataset.get('type')
        if not root or kind == 'MiniScenesDataset' or Path(root).is_dir():
            continue
        source = _SOURCES.get(kind)
        raise FileNotFoundError(
            f'{key}: there is no data at data_root={root!r}. '
            + (f'Get it from {source}. ' if source else '')
            + 'Data elsewhere: --cfg-options data_root=PATH. '
            'Without any data: python tools/train.py configs/davpt_upernet_miniscenes.py'
        )
