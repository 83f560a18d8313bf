"""Write a project: masks with other ids, lists of names, the table of classes, the config."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .labels import IGNORED, Labels, class_weights
from .pairing import shared_length
from .plan import METHOD, Plan
from .scan import DataSummary, Pair, read_mask

TEMPLATE = """# {images} and {masks}: {train} training and {val} validation images, {number} classes.
# Written by tools/init_project.py; change what you like. Classes and ids: {table}
_base_ = [
    'mmseg_davpt::_base_/models/davpt-residual_upernet_vit-s14.py',
    'mmseg_davpt::_base_/datasets/own_masks.py',
    'mmseg_davpt::_base_/schedules/adamw_cpu_amp.py',
    'mmseg_davpt::_base_/default_runtime.py',
]
classes = (
{classes}
)
palette = {palette}
files = dict(
    data_prefix=dict(img_path={img_path!r}, seg_map_path={seg_map_path!r}),
    img_suffix={img_suffix!r},  # what follows a name of {lists}/*.txt
    seg_map_suffix={seg_map_suffix!r},
    reduce_zero_label={reduce_zero_label},
)
{choices}
class_weight = {class_weight}  # in the loss: 1 / sqrt(share of the pixels), mean 1; None: all equal
pretrained = {pretrained!r}  # DINOv2's ViT-S/14 stays frozen
tuning = {tuning!r}  # what is trained in the trunk; others: docs/tuning.md
# Nothing to edit below.
dataset = dict(metainfo=dict(classes=classes, palette=palette), **files)
train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline
train_pipeline[2].update(num_classes=len(classes))  # CheckedLoadAnnotations
train_pipeline[3].update(scale=scale, ratio_range=ratio_range)  # RandomResize
train_pipeline[4].update(crop_size=(crop, crop))  # RandomCrop
test_pipeline[1].update(scale=scale)  # Resize
test_pipeline[2].update(num_classes=len(classes))
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(scale[0] * r), int(scale[1] * r)), keep_ratio=True) for r in (0.75, 1.0, 1.25)
]
tta_pipeline[1].transforms[2][0].update(num_classes=len(classes))
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=workers,
    dataset=dict(ann_file={train_list!r}, pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(dataset=dict(ann_file={val_list!r}, pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=(crop, crop)),
    backbone=dict(pretrained=pretrained, tuning=tuning),
    guidance=dict(num_classes=len(classes)),
    decode_head=dict(num_classes=len(classes), loss_decode=dict(class_weight=class_weight)),
    test_cfg={test_cfg},
)
optim_wrapper = dict(dtype=dtype, optimizer=dict(lr=lr))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=warmup),
    dict(type='PolyLR', power=0.9, eta_min=0.0, begin=warmup, by_epoch=False),  # to the end of the training
]
train_cfg = dict(max_iters=max_iters, val_interval=interval)
default_hooks = dict(checkpoint=dict(interval=interval, max_keep_ckpts=1, save_best='mIoU'))
custom_hooks = [
    dict(hook, num_batches={batches}) if hook.type == 'PromptAssignmentHook' else hook for hook in _base_.custom_hooks
]
"""


def write_project(
    path: Path, summary: DataSummary, labels: Labels, split: tuple[Sequence[Pair], Sequence[Pair]], plan: Plan,
    pretrained: str,
) -> str:  # fmt: skip
    """Write the config, and beside it a folder of its name with lists, table and, if needed, masks.

    Args:
        path: The config to write.
        summary: The data.
        labels: The classes.
        split: Training and validation pairs.
        plan: The settings.
        pretrained: File of the trunk's weights.

    Returns:
        What was done about the masks, in one sentence.

    Raises:
        FileExistsError: The config exists.
    """
    if path.exists():
        raise FileExistsError(f'{path} exists and may hold your changes: remove it, or choose another --out')
    folder = path.with_suffix('')
    folder.mkdir(parents=True, exist_ok=True)
    ends = None if labels.rewrite else _common_ends(summary)
    if ends is None:
        img_suffix, seg_map_suffix, masks = '', '.png', folder / 'masks'
        _write_masks(summary, labels, masks)
        done = f'{len(summary.pairs)} masks were written to {masks}: {labels.rewrite or "their names vary"}'
    else:
        (img_suffix, seg_map_suffix), masks = ends, summary.masks
        done = 'The masks are used as they are'
    reduce = ends is not None and labels.reduce_zero_label
    for name, pairs in zip(('train', 'val'), split):
        lines = [pair.image.relative_to(summary.images).as_posix().removesuffix(img_suffix) for pair in pairs]
        (folder / f'{name}.txt').write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    (folder / 'classes.txt').write_text(describe_labels(summary, labels, split), encoding='utf-8')
    test_cfg = "dict(mode='whole')"
    if plan.test.value == 'slide':
        test_cfg = "dict(mode='slide', crop_size=(crop, crop), stride=(crop * 2 // 3, crop * 2 // 3))"
    choices = [(field.name, getattr(plan, field.name)) for field in fields(plan) if field.name != 'test']
    test = f'# Test: {plan.test.value}, {plan.test.reason}.'
    text = TEMPLATE.format(
        images=summary.images, masks=summary.masks, train=len(split[0]), val=len(split[1]), number=len(labels.classes),
        table=(folder / 'classes.txt').as_posix(), classes='\n'.join(f'    {name!r},' for name in labels.classes),
        palette=_format_palette(labels), img_path=summary.images.as_posix(), seg_map_path=masks.as_posix(),
        img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce, lists=folder.as_posix(),
        choices='\n'.join([*(f'{name} = {choice.value!r}  # {choice.reason}' for name, choice in choices), test]),
        class_weight=class_weights(split[0], labels), pretrained=pretrained, tuning=METHOD,
        train_list=(folder / 'train.txt').as_posix(), val_list=(folder / 'val.txt').as_posix(), test_cfg=test_cfg,
        batches=min(max(len(split[0]) // plan.batch_size.value, 1), 50),
    )  # fmt: skip
    path.write_text(text, encoding='utf-8')
    return done


def describe_labels(summary: DataSummary, labels: Labels, split: tuple[Sequence[Pair], Sequence[Pair]]) -> str:
    """Table of values in the masks, ids, classes, their share of the pixels and in how many images they are.

    Args:
        summary: The data.
        labels: The classes.
        split: Training and validation pairs.
    """
    total = sum(summary.values.values())
    rows = ['value        id  pixels   train   val  class']
    images = [_count_images(pairs, labels) for pairs in split]
    for value, number in sorted(summary.values.items(), key=lambda item: (labels.table[item[0]], str(item[0]))):
        index = labels.table[value]
        name = 'ignored' if index == IGNORED else labels.classes[index]
        shown = '#{:02x}{:02x}{:02x}'.format(*value) if isinstance(value, tuple) else str(value)
        counts = [images[part][index] for part in (0, 1)]
        rows.append(f'{shown:<11}{index:>4}{number / total:>8.2%}{counts[0]:>8}{counts[1]:>6}  {name}')
    found = set(labels.table.values())
    rows += [
        f'-{index:>14}{0:>8.2%}{0:>8}{0:>6}  {name}' for index, name in enumerate(labels.classes) if index not in found
    ]
    return '\n'.join(rows) + '\n'


def _count_images(pairs: Sequence[Pair], labels: Labels) -> Counter[int]:
    return Counter(index for pair in pairs for index in {labels.table[value] for value in pair.pixels})


def _common_ends(summary: DataSummary) -> tuple[str, str] | None:
    """The suffixes of images and masks if they make every mask's path from its image's."""
    first = summary.pairs[0]
    image, mask = first.image.relative_to(summary.images).as_posix(), first.mask.relative_to(summary.masks).as_posix()
    length = min(shared_length(image, mask), len(image) - len(first.image.suffix))
    ends = image[length:], mask[length:]
    for pair in summary.pairs:
        image, mask = pair.image.relative_to(summary.images).as_posix(), pair.mask.relative_to(summary.masks).as_posix()
        base = image.removesuffix(ends[0])
        if not image.endswith(ends[0]) or base + ends[1] != mask or base != base.strip():
            return None
    return ends


def _write_masks(summary: DataSummary, labels: Labels, folder: Path) -> None:
    convert = _converter(labels)

    def write(pair: Pair) -> None:
        target = folder / f'{pair.image.relative_to(summary.images).as_posix()}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'.part-{target.name}')
        Image.fromarray(convert(read_mask(pair.mask)[0])).save(partial)
        os.replace(partial, target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(write, summary.pairs), 'write masks', total=len(summary.pairs), mininterval=1):
            pass


def _converter(labels: Labels) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the values of a mask to ids, uint8."""
    values = {(v[0] << 16 | v[1] << 8 | v[2] if isinstance(v, tuple) else v): new for v, new in labels.table.items()}
    known = np.array(sorted(values))
    ids = np.array([values[value] for value in known.tolist()], np.uint8)

    def convert(mask: np.ndarray) -> np.ndarray:
        if mask.ndim == 3:
            mask = mask.astype(np.int64) @ np.array([65536, 256, 1])
        found: np.ndarray = ids[np.searchsorted(known, mask)]
        return found

    return convert


def _format_palette(labels: Labels) -> str:
    if not labels.colors:
        return '[]  # mmseg draws random colors'
    return '[' + ', '.join(str(list(color)) for color in labels.colors) + ']'
