"""Faults of datasets, and the checks that compare files: classes, ids, suffixes, names, duplicates."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mmengine.dataset import BaseDataset

from .splits import Split

# Kinds of faults that are no errors.
WARNINGS = ('empty class', 'all ignored', 'duplicate image', 'turned image')


@dataclass(frozen=True)
class Fault:
    """An error, or a warning if its kind is in :data:`WARNINGS`."""

    kind: str
    split: str
    path: str
    what: str


def add_fault(faults: list[Fault], split: str, kind: str, path: str, what: str) -> None:
    """Append a fault to ``faults``."""
    faults.append(Fault(kind, split, path, what))


def explain_missing_masks(split: Split, faults: list[Fault]) -> None:
    """If every mask of a split is missing, list the files that are there instead, in its first fault.

    Args:
        split: The split.
        faults: Faults of all splits; one may be replaced.
    """
    missing = [place for place, fault in enumerate(faults) if (fault.kind, fault.split) == ('missing mask', split.name)]
    if missing and len(missing) == split.images:
        folder = str(split.dataset.data_prefix.get('seg_map_path'))
        hint = other_suffixes(folder, split.dataset.seg_map_suffix, 'seg_map_suffix')
        faults[missing[0]] = replace(faults[missing[0]], what=faults[missing[0]].what + hint)


def mask_folder(split: Split) -> str:
    """Folder of the masks of a split; ``.`` if it has none."""
    return os.path.normpath(split.dataset.data_prefix.get('seg_map_path') or '')


def masks_alone(split: Split, listed: Mapping[str, set[str]]) -> list[str]:
    """Masks without an image, if the dataset takes every image of a folder.

    Args:
        split: The split.
        listed: Folder of masks -> masks that belong to an image.
    """
    folder = split.dataset.data_prefix.get('seg_map_path')
    if not folder or not split.whole_folder or not Path(folder).is_dir():
        return []
    masks = (path for path in sorted(Path(folder).rglob(f'*{split.dataset.seg_map_suffix}')) if path.name[0] != '.')
    return [str(path) for path in masks if os.path.normpath(path) not in listed[mask_folder(split)]]


def check_classes(splits: list[Split], allow_missing: Collection[str], faults: list[Fault]) -> None:
    """Find classes that occur in no split, and classes that a split lacks.

    Args:
        splits: Splits whose ids have been counted.
        allow_missing: Names of classes that may occur in no split.
        faults: The list to extend.

    Raises:
        ValueError: ``allow_missing`` names an unknown class.
    """
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
    """List the files that a folder holds instead of those with ``suffix``; empty if there are none.

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


def check_zero_label(splits: list[Split], faults: list[Fault]) -> None:
    """Find a wrong ``reduce_zero_label`` from the ids that occur, over all splits that share a setting.

    With C classes ids are 0 to C-1, or 1 to C and 0 = ignored.

    Args:
        splits: Splits whose ids have been counted.
        faults: The list to extend.
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
                f'False, but ids run to {classes} with {classes} classes: set it True if 0 is unlabeled, '
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


def check_duplicates(digests: Mapping[bytes, list[tuple[str, str]]], faults: list[Fault]) -> None:
    """Find the same bytes under two names: leakage between splits, or a repeated image within one.

    Args:
        digests: Hash of an image file -> (split, path) of each file that has it.
        faults: The list to extend.
    """
    for places in digests.values():
        first, path = places[0]
        for split, other in places[1:]:
            if os.path.normpath(other) == os.path.normpath(path) and split == first:
                continue
            kind = 'duplicate image' if split == first else 'leakage'
            faults.append(Fault(kind, split, other, f'the same file as {path} of {first}'))
