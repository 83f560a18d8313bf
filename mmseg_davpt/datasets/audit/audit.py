"""Check every image and mask of a config before training."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from tqdm import tqdm

from ..check import leaf_datasets
from .samples import Reader, Sample, find_steps, id_table, inspect_sample

# Kinds of faults that are no errors.
WARNINGS = ('empty class', 'all ignored', 'duplicate image')


@dataclass(frozen=True)
class Fault:
    """An error, or a warning if its kind is in :data:`WARNINGS`."""

    kind: str
    split: str
    path: str
    what: str


@dataclass
class Split:
    """One dataset of a config, with its contents.

    Attributes:
        name: ``train``, ``val``, ``test``, joined if the loaders share the dataset.
        dataset: The dataset.
        whole_folder: Whether it takes every image of a folder.
        images: Number of images.
        ids: Id in the masks' files -> number of its pixels.
        pixels: Class -> number of its pixels, after ``reduce_zero_label`` and ``label_map``.
        masks: Class -> number of masks with it.
    """

    name: str
    dataset: BaseDataset
    whole_folder: bool
    images: int = 0
    ids: Counter[int] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.dataset.metainfo.get('classes') or ())


@dataclass
class Audit:
    """The result of a check: the splits, and the faults in the order of the data."""

    splits: list[Split]
    faults: list[Fault]

    @property
    def errors(self) -> list[Fault]:
        """Faults that are no warnings."""
        return [fault for fault in self.faults if fault.kind not in WARNINGS]

    def as_dict(self) -> dict[str, Any]:
        """All splits and faults, for JSON."""
        splits = [
            dict(
                name=split.name, type=type(split.dataset).__name__, images=split.images,
                reduce_zero_label=split.dataset.reduce_zero_label,
                ids={str(value): split.ids[value] for value in sorted(split.ids)},
                classes=[
                    dict(name=name, pixels=split.pixels[index], masks=split.masks[index])
                    for index, name in enumerate(split.classes)
                ],
            )
            for split in self.splits
        ]  # fmt: skip
        rows = {'errors': self.errors, 'warnings': [fault for fault in self.faults if fault.kind in WARNINGS]}
        return dict(splits=splits, **{key: [vars(fault) for fault in faults] for key, faults in rows.items()})


def audit_config(cfg: Mapping[str, Any], workers: int | None = None) -> Audit:
    """Read every sample of the train, val and test data of a config.

    Args:
        cfg: A full config. The datasets inside of wrappers such as ``RepeatDataset`` are read; no model is built.
        workers: Number of threads; the number of CPUs by default.

    Raises:
        ValueError: A dataset cannot be built, or is not a segmentation dataset with classes.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    splits: list[Split] = []
    faults: list[Fault] = []
    listed: dict[str, set[str]] = defaultdict(set)  # folder -> masks that belong to an image
    digests: dict[bytes, list[tuple[str, str]]] = defaultdict(list)  # of an image file -> (split, path)
    for name, leaf in _leaves(cfg):
        split = Split(name, _build(name, leaf), not leaf.get('ann_file') and leaf.get('indices') is None)
        splits.append(split)
        add = partial(_add, faults, name)
        infos = _infos(split)
        if not infos:
            add('no images', str(split.dataset.data_prefix.get('img_path')), f'no *{split.dataset.img_suffix} there')
            continue
        reader = _reader(leaf, split, infos[0], add)
        split.images = len(infos)
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            samples = pool.map(partial(inspect_sample, reader=reader), infos)
            for sample, info in zip(tqdm(samples, f'check {name}', len(infos), mininterval=1), infos):
                _collect(split, info, sample, reader, add)
                if sample.digest is not None:
                    digests[sample.digest].append((name, info['img_path']))
        masks = (info.get('seg_map_path') for info in infos)
        listed[_mask_folder(split)] |= {os.path.normpath(path) for path in masks if path}
    for split in splits:
        add = partial(_add, faults, split.name)
        _check_classes(split, add)
        for path in _masks_alone(split, listed):
            add('mask without image', path, f'there is no image *{split.dataset.img_suffix} of this name')
    _check_zero_label(splits, faults)
    _check_duplicates(digests, faults)
    return Audit(splits, list(dict.fromkeys(faults)))


def _add(faults: list[Fault], split: str, kind: str, path: str, what: str) -> None:
    faults.append(Fault(kind, split, path, what))


def _leaves(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each dataset once, named by the loaders that read it."""
    names: dict[str, list[str]] = defaultdict(list)
    leaves: dict[str, Mapping[str, Any]] = {}
    for split in ('train', 'val', 'test'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        for number, leaf in enumerate(leaf_datasets(dataset) if dataset else ()):
            plain = {key: value for key, value in leaf.items() if key not in ('pipeline', 'test_mode')}
            key = json.dumps(plain, sort_keys=True, default=str)
            leaves.setdefault(key, leaf)
            names[key].append(f'{split}[{number}]' if number else split)
    for key, leaf in leaves.items():
        yield '/'.join(dict.fromkeys(names[key])), leaf


def _build(name: str, leaf: Mapping[str, Any]) -> BaseDataset:
    cfg = ConfigDict({**leaf, 'pipeline': [], 'serialize_data': False, 'lazy_init': False, 'test_mode': False})
    try:
        dataset = DATASETS.build(cfg)
    except Exception as error:  # a dataset may raise any exception
        raise ValueError(f'{name}: {leaf.get("type")} cannot be built: {type(error).__name__}: {error}') from error
    if not hasattr(dataset, 'reduce_zero_label') or not dataset.metainfo.get('classes'):
        raise ValueError(f'{name}: {leaf.get("type")} is not a segmentation dataset of mmseg with classes')
    return dataset


def _infos(split: Split) -> list[dict[str, Any]]:
    infos = [split.dataset.get_data_info(index) for index in range(len(split.dataset))]
    if infos and 'img_path' not in infos[0]:
        raise ValueError(f'{split.name}: samples of {type(split.dataset).__name__} have no img_path')
    return infos


def _reader(leaf: Mapping[str, Any], split: Split, info: Mapping[str, Any], add: partial[None]) -> Reader:
    dataset, classes = split.dataset, len(split.classes)
    image_step, mask_step = find_steps(leaf.get('pipeline') or [])
    try:
        table = id_table(mask_step, info)
    except AssertionError:
        what = f'{dataset.reduce_zero_label} in the dataset, {mask_step.get("reduce_zero_label")} in LoadAnnotations'
        add('reduce_zero_label', str(dataset.data_root), what)
        table = id_table({**mask_step, 'reduce_zero_label': None}, info)
    valid = (table < classes) | (table == dataset.ignore_index)
    if dataset.label_map is not None:  # it leaves ids beyond the old classes unchanged
        old = np.arange(256) - bool(dataset.reduce_zero_label)
        valid &= np.isin(old, list(dataset.label_map)) | (table == dataset.ignore_index)
    return Reader(
        TRANSFORMS.build(image_step), mask_step.get('imdecode_backend', 'pillow'), dataset.backend_args, table, valid
    )


def _collect(split: Split, info: Mapping[str, Any], sample: Sample, reader: Reader, add: partial[None]) -> None:
    for kind, path, what in sample.faults:
        add(kind, path, what)
    if not sample.ids:
        return
    split.ids.update(sample.ids)
    pixels: Counter[int] = Counter()
    for value, count in sample.ids.items():
        pixels[int(reader.table[value & 255])] += count
    split.pixels.update(pixels)
    split.masks.update(pixels.keys())
    if set(pixels) == {split.dataset.ignore_index}:
        add('all ignored', info['seg_map_path'], 'no pixel of any class')


def _mask_folder(split: Split) -> str:
    return os.path.normpath(split.dataset.data_prefix.get('seg_map_path') or '')


def _masks_alone(split: Split, listed: Mapping[str, set[str]]) -> list[str]:
    """Masks without an image, if the dataset takes every image of a folder."""
    folder = split.dataset.data_prefix.get('seg_map_path')
    if not folder or not split.whole_folder or not Path(folder).is_dir():
        return []
    masks = (path for path in sorted(Path(folder).rglob(f'*{split.dataset.seg_map_suffix}')) if path.name[0] != '.')
    return [str(path) for path in masks if os.path.normpath(path) not in listed[_mask_folder(split)]]


def _check_classes(split: Split, add: partial[None]) -> None:
    if split.ids:
        for index, name in enumerate(split.classes):
            if not split.masks[index]:
                add('empty class', str(split.dataset.data_root), f'class {index} ({name}) never occurs')


def _check_zero_label(splits: list[Split], faults: list[Fault]) -> None:
    """Find a wrong ``reduce_zero_label`` from the ids that occur, over all splits that share a setting.

    With C classes ids are 0 to C-1, or 1 to C and 0 = ignored.
    """
    groups = defaultdict(list)
    for split in splits:
        classes = type(split.dataset).METAINFO.get('classes') if split.dataset.label_map else split.classes
        groups[split.dataset.reduce_zero_label, len(classes)].append(split)
    for (reduced, classes), group in groups.items():
        ids = set().union(*(split.ids for split in group))
        plain = {value for value in ids if value != 255 and (not reduced or value <= classes)}  # without stray ids
        if not plain:
            continue
        if not reduced and max(plain) == classes:
            what = (
                f'False, but ids run to {classes} with {classes} classes: set it True if 0 is unlabelled, '
                f'or name the class of id {classes}'
            )
        elif reduced and max(plain) == classes - 1 and (plain == set(range(classes)) or 255 in ids or 0 not in ids):
            what = (
                f'True, but ids are 0 to {classes - 1} with {classes} classes: id 0 would be ignored and every '
                'other class moved down by one: set it False'
            )
        else:
            continue
        name = ' and '.join(split.name for split in group)
        faults.append(Fault('reduce_zero_label', name, str(group[0].dataset.data_root), what))


def _check_duplicates(digests: Mapping[bytes, list[tuple[str, str]]], faults: list[Fault]) -> None:
    """The same bytes under two names: leakage between splits, or a repeated image within one."""
    for places in digests.values():
        first, path = places[0]
        for split, other in places[1:]:
            if os.path.normpath(other) == os.path.normpath(path) and split == first:
                continue
            kind = 'duplicate image' if split == first else 'leakage'
            faults.append(Fault(kind, split, other, f'the same file as {path} of {first}'))
