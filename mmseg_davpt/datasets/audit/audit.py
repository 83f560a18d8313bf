"""Check every image and mask of a config before training."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmengine.registry import init_default_scope
from tqdm import tqdm

from .faults import (
    WARNINGS,
    Fault,
    add_fault,
    check_binary,
    check_classes,
    check_duplicates,
    check_zero_label,
    explain_missing_masks,
    mask_folder,
    masks_alone,
    no_images,
)
from .samples import inspect_sample
from .splits import Split, build_dataset, collect, make_reader, named_leaves, sample_infos


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
        listed[mask_folder(split)] |= {os.path.normpath(path) for path in masks if path}
        explain_missing_masks(split, faults)
    check_classes(splits, allow_missing, faults)
    for split in splits:
        add = partial(add_fault, faults, split.name)
        for path in masks_alone(split, listed):
            add('mask without image', path, f'there is no image *{split.dataset.img_suffix} of this name')
    check_zero_label(splits, faults)
    check_binary(splits, faults)
    check_duplicates(digests, faults)
    return Audit(splits, list(dict.fromkeys(faults)))
