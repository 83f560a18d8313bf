"""Data that is not there is said before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .prepare import SOURCES


def leaf_datasets(dataset: Mapping) -> Iterator[Mapping]:
    """The datasets inside of wrappers (``ConcatDataset``, ``RepeatDataset``, ``MultiImageMixDataset`` and their like).

    Args:
        dataset: Config of a dataset.
    """
    inner = dataset.get('datasets') or [dataset[key] for key in ('dataset',) if dataset.get(key)]
    if not inner:
        yield dataset
    for part in inner:
        yield from leaf_datasets(part)


def check_data_roots(cfg: Mapping) -> None:
    """Look for the data of every loader of a config.

    Args:
        cfg: A full config with ``train_dataloader`` and the like.

    Raises:
        FileNotFoundError: A data root does not exist; the message says where to get the data, and what runs without.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in leaf_datasets((cfg.get(key) or {}).get('dataset') or {}):
            root, kind = dataset.get('data_root'), dataset.get('type')
            if not root or kind == 'MiniScenesDataset' or Path(root).is_dir():
                continue
            raise FileNotFoundError(
                f'{key}: there is no data at data_root={root!r}. {_advice(kind)}'
                'Data elsewhere: --cfg-options data_root=PATH. '
                'Without any data: python tools/train.py configs/davpt_upernet_miniscenes.py'
            )


def _advice(kind: str) -> str:
    for name, source in SOURCES.items():
        if source.dataset == kind:
            files = ', '.join(item.url or item.name for item in source.archives)
            return f'Get {source.title} with: python tools/prepare_dataset.py {name} ({files}). '
    return 'What a dataset of your own looks like: docs/datasets.md. ' if kind == 'BaseSegDataset' else ''
