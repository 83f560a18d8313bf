"""Check every image and mask of a config before training."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
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
WARNINGS = ('empty class', 'all ignored', 'duplicate image', 'turned image')


class UnknownDatasetError(ValueError):
    """A dataset that is no segmentation dataset of mmseg with classes and image files."""


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


def audit_config(cfg: Mapping[str, Any], workers: int | None = None, allow_missing: Collection[str] = ()) -> Audit:
    """Read every sample of the train, val and test data of a config.

    Args:
        cfg: A full config. The datasets inside of wrappers such as ``RepeatDataset`` are read; no model is built.
        workers: Number of threads; the number of CPUs by default.
        allow_missing: Names of classes that may occur in no split.

    Raises:
        ValueError: A dataset cannot be built, or is not a segmentation dataset with classes; ``allow_missing`` names
            an unknown class.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    splits: list[Split] = []
    faults: list[Fault] = []
    listed: dict[str, set[str]] = defaultdict(set)  # folder -> masks that belong to an image
    digests: dict[bytes, list[tuple[str, str]]] = defaultdict(list)  # of an image file -> (split, path)
    for name, leaf in named_leaves(cfg):
        split = Split(name, build_dataset(name, leaf), not leaf.get('ann_file') and leaf.get('indices') is None)
        splits.append(split)
        add = partial(add_fault, faults, name)
        infos = sample_infos(split)
        if not infos:
            add('no images', *no_images(split.dataset))
            continue
        reader = make_reader(leaf, split, infos[0], add)
        split.images = len(infos)
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            samples = pool.map(partial(inspect_sample, reader=reader), infos)
            for sample, info in zip(tqdm(samples, f'check {name}', len(infos), mininterval=1), infos):
                collect(split, info, sample, reader, add)
                if sample.digest is not None:
                    digests[sample.digest].append((name, info['img_path']))
        masks = (info.get('seg_map_path') for info in infos)
        listed[_mask_folder(split)] |= {os.path.normpath(path) for path in masks if path}
        _explain_missing_masks(split, faults)
    _check_classes(splits, allow_missing, faults)
    for split in splits:
        add = partial(add_fault, faults, split.name)
        for path in _masks_alone(split, listed):
            add('mask without image', path, f'there is no image *{split.dataset.img_suffix} of this name')
    _check_zero_label(splits, faults)
    check_binary(splits, faults)
    _check_duplicates(digests, faults)
    return Audit(splits, list(dict.fromkeys(faults)))


def add_fault(faults: list[Fault], split: str, kind: str, path: str, what: str) -> None:
    """Append a fault to ``faults``."""
    faults.append(Fault(kind, split, path, what))


def named_leaves(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def build_dataset(name: str, leaf: Mapping[str, Any]) -> BaseDataset:
    """Build a dataset without its pipeline.

    Args:
        name: Name of the split.
        leaf: Config of the dataset.

    Raises:
        ValueError: It cannot be built.
        UnknownDatasetError: It is not a segmentation dataset with classes.
    """
    cfg = ConfigDict({**leaf, 'pipeline': [], 'serialize_data': False, 'lazy_init': False, 'test_mode': False})
    try:
        dataset = DATASETS.build(cfg)
    except Exception as error:  # a dataset may raise any exception
        raise ValueError(f'{name}: {leaf.get("type")} cannot be built: {type(error).__name__}: {error}') from error
    if not hasattr(dataset, 'reduce_zero_label') or not dataset.metainfo.get('classes'):
        raise UnknownDatasetError(f'{name}: {leaf.get("type")} is not a segmentation dataset of mmseg with classes')
    return dataset


def sample_infos(split: Split) -> list[dict[str, Any]]:
    """Information of the dataset on all samples, with ``img_path``.

    Raises:
        UnknownDatasetError: Samples have no ``img_path``.
    """
    infos = [split.dataset.get_data_info(index) for index in range(len(split.dataset))]
    if infos and 'img_path' not in infos[0]:
        raise UnknownDatasetError(f'{split.name}: samples of {type(split.dataset).__name__} have no img_path')
    return infos


def make_reader(leaf: Mapping[str, Any], split: Split, info: Mapping[str, Any], add: partial[None]) -> Reader:
    """How the samples of a dataset are read.

    Args:
        leaf: Config of the dataset.
        split: The dataset.
        info: Information on any sample.
        add: Called with kind, path and description if pipeline and dataset disagree on ``reduce_zero_label``.
    """
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


def collect(split: Split, info: Mapping[str, Any], sample: Sample, reader: Reader, add: partial[None]) -> None:
    """Add ids and faults of a sample to those of its split.

    Args:
        split: The dataset, whose counts are increased.
        info: Information on the sample.
        sample: What was found in it.
        reader: How it was read.
        add: Called with kind, path and description of each fault.
    """
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


def _explain_missing_masks(split: Split, faults: list[Fault]) -> None:
    """If every mask is missing, say which files are there instead, in the first fault."""
    missing = [place for place, fault in enumerate(faults) if (fault.kind, fault.split) == ('missing mask', split.name)]
    if missing and len(missing) == split.images:
        folder = str(split.dataset.data_prefix.get('seg_map_path'))
        hint = other_suffixes(folder, split.dataset.seg_map_suffix, 'seg_map_suffix')
        faults[missing[0]] = replace(faults[missing[0]], what=faults[missing[0]].what + hint)


def _mask_folder(split: Split) -> str:
    return os.path.normpath(split.dataset.data_prefix.get('seg_map_path') or '')


def _masks_alone(split: Split, listed: Mapping[str, set[str]]) -> list[str]:
    """Masks without an image, if the dataset takes every image of a folder."""
    folder = split.dataset.data_prefix.get('seg_map_path')
    if not folder or not split.whole_folder or not Path(folder).is_dir():
        return []
    masks = (path for path in sorted(Path(folder).rglob(f'*{split.dataset.seg_map_suffix}')) if path.name[0] != '.')
    return [str(path) for path in masks if os.path.normpath(path) not in listed[_mask_folder(split)]]


def _check_classes(splits: list[Split], allow_missing: Collection[str], faults: list[Fault]) -> None:
    """Find classes that occur in no split, and classes that a split lacks."""
    groups = defaultdict(list)
    for split in splits:
        groups[split.classes].append(split)
    if unknown := set(allow_missing) - {name for classes in groups for name in classes}:
        raise ValueError(f'no class is called {sorted(unknown)[0]!r}; the classes are {", ".join(next(iter(groups)))}')
    for classes, group in groups.items():
        group = [split for split in group if split.ids]
        for index, name in enumerate(classes):
            without = [split for split in group if not split.masks[index]]
            what = f'class {index} ({name}) never occurs'
            if group and len(without) == len(group) and name not in allow_missing:
                places = ' and '.join(split.name for split in group)
                what += ' in any split: wrong ids in the masks, or a class too many; --allow-missing NAME permits it'
                faults.append(Fault('missing class', places, str(group[0].dataset.data_root), what))
                continue
            for split in without:
                faults.append(Fault('empty class', split.name, str(split.dataset.data_root), what))


def check_binary(splits: list[Split], faults: list[Fault]) -> None:
    """Find masks of 0 and 255, as drawing programs save them, whose 255 mmseg would ignore.

    Args:
        splits: Splits whose ids have been counted.
        faults: The list to extend.
    """
    groups = defaultdict(list)
    for split in splits:
        if len(split.classes) > 1 and split.ids:
            groups[split.classes, split.dataset.reduce_zero_label].append(split)
    for group in groups.values():
        if set().union(*(split.ids for split in group)) == {0, 255}:
            what = (
                'ids are 0 and 255: a binary mask; use 0/1 or --map 255=1 (python tools/check_dataset.py CONFIG '
                '--map 255=1 --out FOLDER writes such masks). 255 is read as ignored'
            )
            name = ' and '.join(split.name for split in group)
            faults.append(Fault('binary mask', name, str(group[0].dataset.data_root), what))


def no_images(dataset: BaseDataset) -> tuple[str, str]:
    """Path and description of the fault of a dataset without images."""
    folder = str(dataset.data_prefix.get('img_path'))
    if dataset.ann_file:
        return str(dataset.ann_file), 'the list of the images is empty'
    return folder, f'no *{dataset.img_suffix} there{other_suffixes(folder, dataset.img_suffix, "img_suffix")}'


def other_suffixes(folder: str, suffix: str, option: str) -> str:
    """Say which files a folder holds instead of those with ``suffix``; empty if there are none.

    Args:
        folder: Folder to search, with subfolders.
        suffix: Suffix that the dataset looks for.
        option: Option of the dataset that sets it.
    """
    if not Path(folder).is_dir():
        return ''
    found = Counter(path.suffix for path in islice(Path(folder).rglob('*.*'), 10_000) if not path.name.startswith('.'))
    found.pop(Path(suffix).suffix, None)
    if not found:
        return ''
    (other, number), *_ = found.most_common(1)
    return f', but {number:,} files *{other}: set {option}={other!r} in the dataset'


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
