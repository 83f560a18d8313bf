"""The cheap part of the check of a dataset, before a training builds anything."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from ..image_files import describe_orientation, read_header
from .faults import WARNINGS, Fault, add_fault, check_binary, no_images, other_suffixes
from .samples import Reader, Sample, inspect_mask, inspect_sample
from .splits import Split, UnknownDatasetError, build_dataset, collect, make_reader, named_leaves, sample_infos

MASKS = 32  # masks of a split that are decoded
HEADERS = 256  # samples of a split whose sizes are compared
MORE_MASKS = 1000  # masks that are decoded if the first hold nothing but 0 and 255
INSPECTED = 8  # samples of a split that are decoded because their headers look wrong
SHOWN = 3  # faults of a kind that a message lists


def check_before_training(cfg: Mapping[str, Any]) -> None:
    """Check the training and validation data of a config in a few seconds, on the first rank only.

    Checked are: that every file of every split exists; sizes and EXIF orientation of :data:`HEADERS` samples of each;
    the ids of :data:`MASKS` masks of each; one batch, which is passed through the training pipeline. Warnings are
    logged. A dataset that is none of mmseg's with classes and files is skipped. ``check_data=False`` in the config
    skips everything.

    Args:
        cfg: A full config.

    Raises:
        ValueError: There are errors; the message lists files and remedies.
    """
    rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
    if not cfg.get('check_data', True) or rank != '0':
        return
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    faults: list[Fault] = []
    states = random.getstate(), np.random.get_state()  # the pipeline draws numbers
    for name, leaf in named_leaves(cfg):
        places = [part.partition('[')[0] for part in name.split('/')]
        if set(places) == {'test'}:
            continue
        loader = cfg[f'{places[0]}_dataloader']
        _check_split(name, leaf, loader.get('batch_size', 1) if 'train' in places else 1, faults)
    random.setstate(states[0])
    np.random.set_state(states[1])
    notes = [fault for fault in faults if fault.kind in WARNINGS and fault.kind != 'all ignored']
    for line in _lines(notes):
        print_log(f'Data: {line}', logger='current', level=logging.WARNING)
    errors = [fault for fault in faults if fault.kind not in WARNINGS]
    if errors:
        raise ValueError(
            '\n'.join(
                [
                    'the data has errors:',
                    *(f'  {line}' for line in _lines(errors)),
                    'tools/check_dataset.py CONFIG reads every file. --cfg-options check_data=False trains regardless.',
                ]
            )
        )


def _check_split(name: str, leaf: Mapping[str, Any], batch: int, faults: list[Fault]) -> None:
    add = partial(add_fault, faults, name)
    try:
        split = Split(name, build_dataset(name, leaf), False)
        infos = sample_infos(split)
    except UnknownDatasetError as error:
        print_log(f'Data: not checked before training: {error}', logger='current', level=logging.WARNING)
        return
    if not infos:
        add('no images', *no_images(split.dataset))
        return
    split.images = len(infos)
    reader = make_reader(leaf, split, infos[0], add)
    local = not reader.backend_args and '://' not in infos[0]['img_path']
    if local and _find_missing(split, infos, add):
        return
    seen: set[str] = set()
    if local:
        for info in _spread(infos, HEADERS):
            if _looks_right(info, add):
                continue
            seen.add(info['img_path'])
            collect(split, info, inspect_sample(info, reader), reader, add)
            if len(seen) >= INSPECTED:
                break
    whole = [info for info in _spread(infos, batch) if info['img_path'] not in seen]
    for info in whole:
        collect(split, info, inspect_sample(info, reader), reader, add)
    seen |= {info['img_path'] for info in whole}
    _read_masks(split, [info for info in _spread(infos, MASKS) if info['img_path'] not in seen], reader, add)
    if set(split.ids) == {0, 255} and len(split.classes) > 1:
        _read_masks(split, _spread(infos, MORE_MASKS), reader, partial(add_fault, []), until_other=True)
        check_binary([split], faults)
    elif set(split.pixels) == {split.dataset.ignore_index}:
        what = f'no pixel of {split.masks.total()} masks belongs to a class: check reduce_zero_label and the ids'
        add('no labels', str(split.dataset.data_prefix.get('seg_map_path')), what)
    if not any(fault.split == name and fault.kind not in WARNINGS for fault in faults):
        _run_pipeline(leaf, whole, add)


def _find_missing(split: Split, infos: Sequence[Mapping[str, Any]], add: partial[None]) -> bool:
    """Whether files of a split do not exist."""
    images = [info['img_path'] for info in infos if not os.path.isfile(info['img_path'])]
    masks = [info['seg_map_path'] for info in infos if 'seg_map_path' in info]
    gone = [path for path in masks if not os.path.isfile(path)]
    for kind, paths, what, suffix in (
        ('missing image', images, 'no such file', 'img_suffix'),
        ('missing mask', gone, 'the image has no mask', 'seg_map_suffix'),
    ):
        hint = ''
        if len(paths) == len(infos):
            key = 'img_path' if suffix == 'img_suffix' else 'seg_map_path'
            folder = str(split.dataset.data_prefix.get(key))
            hint = other_suffixes(folder, getattr(split.dataset, suffix), suffix)
        for path in paths:
            add(kind, path, what + hint)
    return bool(images or gone)


def _spread(infos: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """That many samples, evenly spread."""
    places = np.linspace(0, len(infos) - 1, min(number, len(infos))).round().astype(int)
    return [infos[place] for place in places]


def _looks_right(info: Mapping[str, Any], add: partial[None]) -> bool:
    """Whether image and mask have the same size by their headers. If not, the files are read."""
    try:
        image = read_header(Path(info['img_path']))
        mask = read_header(Path(info['seg_map_path'])) if info.get('seg_map_path') else image
    except (OSError, ValueError):
        return False
    if image is None or mask is None:  # Pillow cannot read the format
        return True
    if image.orientation >= 5:
        return False
    if image.orientation != 1:
        add('turned image', info['img_path'], describe_orientation(image.orientation))
    return image.size == mask.size


def _read_masks(
    split: Split, infos: Sequence[Mapping[str, Any]], reader: Reader, add: partial[None], until_other: bool = False
) -> None:
    for info in infos:
        if info.get('seg_map_path') is None:
            continue
        sample = Sample()
        inspect_mask(info['seg_map_path'], reader, sample)
        collect(split, info, sample, reader, add)
        if until_other and set(split.ids) != {0, 255}:
            return


def _run_pipeline(leaf: Mapping[str, Any], infos: Sequence[Mapping[str, Any]], add: partial[None]) -> None:
    """Pass samples through the pipeline, whose steps may fail on sizes that each file alone does not show."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the training repeats them
        pipeline = Compose(list(leaf.get('pipeline') or []))
        for info in infos:
            files = f'{info["img_path"]} with mask {info.get("seg_map_path")}'
            try:
                packed = pipeline({**info, 'seg_fields': []})
            except Exception as error:  # a transform may raise any exception
                add('pipeline', files, f'{type(error).__name__}: {error}')
                return
            sample = (packed or {}).get('data_samples')
            if sample is None or 'gt_sem_seg' not in sample:
                continue
            image, mask = tuple(packed['inputs'].shape[-2:]), tuple(sample.gt_sem_seg.data.shape[-2:])
            if mask not in (image, tuple(sample.ori_shape[:2])):  # a test pipeline keeps the truth's size
                add('pipeline', files, f'the image is {image} after the pipeline, its mask {mask} (height, width)')
                return


def _lines(faults: Sequence[Fault]) -> list[str]:
    """The first faults of each kind, and how many there are."""
    groups: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in dict.fromkeys(faults):
        groups[fault.kind, fault.split].append(fault)
    lines = []
    for (kind, split), rows in groups.items():
        lines += [f'{split}: {kind}: {fault.path}: {fault.what}' for fault in rows[:SHOWN]]
        if len(rows) > SHOWN:
            lines.append(f'{split}: {kind}: ... and {len(rows) - SHOWN:,} more')
    return lines
