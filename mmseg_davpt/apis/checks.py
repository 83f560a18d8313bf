"""Checks of a full config before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.audit import check_before_training
from ..datasets.check import check_data_roots, check_sampler, leaf_datasets
from ..options import check_sequence, wrong


def check_config(cfg: Mapping[str, Any]) -> None:
    """Everything that is checked before a training builds its model: sampler, schedule, class names, data.

    Args:
        cfg: A full config.

    Raises:
        FileNotFoundError: A data root does not exist.
        ValueError: The message names the key, or files and remedies.
    """
    check_data_roots(cfg)
    check_sampler(cfg)
    check_schedule(cfg)
    check_classes(cfg)
    check_before_training(cfg)


def check_schedule(cfg: Mapping[str, Any]) -> None:
    """Check that the learning rate is not zero for a part of the training, and that it changes at all.

    Args:
        cfg: A full config.

    Raises:
        ValueError: The last part of the schedule falls to zero before the training ends, or a part counts epochs
            where the loop counts iterations, or the reverse; the message names the keys.
    """
    loop = cfg.get('train_cfg') or {}
    by_epoch = 'EpochBased' in str(loop.get('type')) if 'type' in loop else bool(loop.get('by_epoch', True))
    length_key = 'max_epochs' if by_epoch else 'max_iters'
    length, parts = loop.get(length_key), cfg.get('param_scheduler')
    if length is None or not parts:
        return
    parts = [parts] if isinstance(parts, Mapping) else list(parts)
    if not all(isinstance(part, Mapping) for part in parts):  # one list for each of several optimizers
        return
    for index, part in enumerate(parts):
        if not by_epoch and part.get('by_epoch', True):
            raise ValueError(
                f'param_scheduler[{index}] counts epochs, but train_cfg counts iterations: its rate would never '
                f'change. Set param_scheduler[{index}].by_epoch=False'
            )
    own_unit = [part for part in parts if part.get('by_epoch', True) == by_epoch or part.get('convert_to_iter_based')]
    last: Mapping[str, Any] = max(own_unit, key=lambda part: part.get('end', float('inf')), default={})
    end = last.get('end', float('inf'))
    if end < length and _falls_to_zero(last):
        index = parts.index(last)
        raise ValueError(
            f'param_scheduler[{index}].end={end}, train_cfg.{length_key}={length}: the learning rate is 0 from {end} '
            f'on. Set both to the same number (--cfg-options param_scheduler.{index}.end={length})'
        )


def _falls_to_zero(part: Mapping[str, Any]) -> bool:
    """Whether a scheduler of mmengine leaves a learning rate of zero behind its end."""
    kind = str(part.get('type'))
    if kind.startswith(('PolyLR', 'PolyParam', 'CosineAnnealing')):
        return not part.get('eta_min') and not part.get('eta_min_ratio')
    return kind.startswith('Linear') and part.get('end_factor', 1.0) == 0


def check_classes(cfg: Mapping[str, Any]) -> None:
    """Check the class names that a config gives to its datasets.

    Args:
        cfg: A full config.

    Raises:
        ValueError: A string in place of a list, of which every letter would be a class; a name that is no string, is
            empty, or is given twice.
    """
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for dataset in leaf_datasets((cfg.get(loader) or {}).get('dataset') or {}):
            classes = (dataset.get('metainfo') or {}).get('classes')
            # mmengine also takes the name of a file with one class a line.
            if classes is not None and not (isinstance(classes, str) and Path(classes).is_file()):
                _check_names(f'{loader}.dataset.metainfo.classes', classes)


def _check_names(key: str, classes: Sequence[Any]) -> None:
    expected = "a list or tuple of different names such as ('background', 'road'), or a file with one name a line"
    names = check_sequence(key, classes, expected)
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise wrong(key, classes, expected)
