"""Checks of a config before anything is built: data that is missing, a sampler that does not fit the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..packaged import tool_command
from .prepare import SOURCES


def leaf_datasets(dataset: Any) -> Iterator[Any]:
    """Configs of the datasets inside of wrappers: ``ConcatDataset``, ``RepeatDataset``, ``MultiImageMixDataset``.

    Args:
        dataset: Config of a dataset; yielded itself if it is no wrapper.
    """
    inner = dataset.get('datasets') or [dataset[key] for key in ('dataset',) if dataset.get(key)]
    if not inner:
        yield dataset
    for part in inner:
        yield from leaf_datasets(part)


def check_data_roots(cfg: Mapping[str, Any]) -> None:
    """Check that the data of every loader of a config exists.

    Args:
        cfg: A full config with ``train_dataloader`` and the like.

    Raises:
        FileNotFoundError: A data root does not exist; the message names a source of the data, and a config that runs
            without data.
    """
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in leaf_datasets((cfg.get(key) or {}).get('dataset') or {}):
            root, kind = dataset.get('data_root'), dataset.get('type')
            if not root or kind == 'MiniScenesDataset' or Path(root).is_dir():
                continue
            raise FileNotFoundError(
                f'{key}: there is no data at data_root={root!r}. {_advice(kind)}'
                'Data elsewhere: --cfg-options data_root=PATH. '
                f'Without any data: {tool_command("train", "mmseg_davpt::davpt_upernet_miniscenes.py")}'
            )


def _advice(kind: str) -> str:
    for name, source in SOURCES.items():
        if source.dataset == kind:
            files = ', '.join(item.url or item.name for item in source.archives)
            return f'Get {source.title} with: {tool_command("prepare_dataset", name)} ({files}). '
    return 'Layout of your dataset: docs/datasets.md. ' if kind == 'BaseSegDataset' else ''


def check_sampler(cfg: Mapping[str, Any]) -> None:
    """Check that a ``ReplayableSampler`` ends an epoch exactly where the training loop counts epochs.

    Args:
        cfg: A full config.

    Raises:
        ValueError: An endless sampler under ``EpochBasedTrainLoop``, whose first epoch would never end, or the reverse.
    """
    sampler = (cfg.get('train_dataloader') or {}).get('sampler') or {}
    loop = cfg.get('train_cfg') or {}
    if 'ReplayableSampler' not in str(sampler.get('type')):
        return
    by_epoch = 'EpochBased' in str(loop.get('type')) if 'type' in loop else bool(loop.get('by_epoch', True))
    endless = sampler.get('endless', True)
    if by_epoch == endless:
        raise ValueError(
            f'ReplayableSampler(endless={endless}) does not fit train_cfg, which counts '
            f'{"epochs" if by_epoch else "iterations"}: set train_dataloader.sampler.endless={not by_epoch}'
        )
