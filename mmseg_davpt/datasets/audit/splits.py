"""The datasets of a config, and what their files hold."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmseg.registry import DATASETS, TRANSFORMS

from ..check import leaf_datasets
from .samples import Reader, Sample, find_steps, id_table


class UnknownDatasetError(ValueError):
    """A dataset that is no segmentation dataset of mmseg with classes and image files."""


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
