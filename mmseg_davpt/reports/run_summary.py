"""What a training is about, in a few lines before it; how it ended, in a few lines after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..packaged import tool_command
from .parameters import count_trainable

_WIDTH = 118


@dataclass(frozen=True)
class GroupRate:
    """The learning rate of a part of the model over the training.

    Attributes:
        part: A tuning method, or ``neck``, ``heads``, ``other``.
        first: Of the first iteration; after a resume, of the next one.
        highest: Of any iteration.
        last: Of the last iteration.
    """

    part: str
    first: float
    highest: float
    last: float


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        done: Iterations that are done.
        total: Iterations of the whole training.
        per_epoch: Iterations of one pass over the training images.
        validation_every: Iterations (``by_epoch``: epochs) between validations; ``None`` without validation.
        checkpoint_every: Iterations (``by_epoch``: epochs) between checkpoints.
        by_epoch: Whether the loop counts epochs.
        source: File that the training continues or starts from.
    """

    done: int
    total: int
    per_epoch: int
    validation_every: int | None = None
    checkpoint_every: int | None = None
    by_epoch: bool = False
    source: str | None = None


def start_lines(
    cfg: Mapping[str, Any],
    model: nn.Module,
    datasets: Mapping[str, Any],
    rates: Sequence[GroupRate],
    progress: Progress,
    images_per_step: int,
    precision: str = '',
) -> list[str]:
    """At most 12 lines about a training, each at most 118 characters long without its path.

    Args:
        cfg: The full config.
        model: The segmentor, unwrapped.
        datasets: ``training`` and, if any, ``validation``: datasets of mmseg.
        rates: Of each part that is trained.
        progress: Where the training stands.
        images_per_step: Images in an iteration, of all ranks.
        precision: Data type of the forward, if known.
    """
    classes = list(datasets['training'].metainfo.get('classes') or ())
    counts = ', '.join(f'{len(dataset)} {name}' for name, dataset in datasets.items())
    size = getattr(getattr(model, 'data_preprocessor', None), 'size', None)
    crops = '' if size is None else f', crops of {size[0]}x{size[1]}'
    epochs = progress.total / progress.per_epoch
    unit = 'epochs' if progress.by_epoch else 'iterations'
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    saves = [f'every {progress.checkpoint_every} {unit}' if progress.checkpoint_every else '', 'the last']
    if checkpoint.get('max_keep_ckpts', -1) > 0:
        saves[0] += f' (the newest {checkpoint["max_keep_ckpts"]} are kept)'
    if best := checkpoint.get('save_best'):
        saves.append(f'the best {best if isinstance(best, str) else " and ".join(best)}')
    every = progress.validation_every
    rows = [
        ('Data', f'{_dataset_name(datasets["training"])}: {counts} images, {len(classes)} classes{crops}'),
        ('Classes', _fitting(classes, _WIDTH - 13)),
        *_model_rows(model),
        (
            'Schedule',
            f'{progress.total} iterations = {epochs:.3g} epochs of {progress.per_epoch} iterations, '
            f'{images_per_step} images each' + (f', {precision}' if precision else ''),
        ),
        ('Rates', _fitting([_rate(rate) for rate in rates], _WIDTH - 13, '; ')),
        ('Validation', f'every {every} {unit}' if every else 'none'),
        ('Checkpoints', ', '.join(filter(None, saves))),
        ('Folder', str(cfg.get('work_dir'))),
    ]
    if progress.source is not None:
        verb = f'continues after iteration {progress.done}, from' if progress.done else 'weights of'
        rows.append(('Start', f'{verb} {progress.source}'))
    return [f'{name:<12} {text}' for name, text in rows]


def _model_rows(model: nn.Module) -> list[tuple[str, str]]:
    backbone: Any = model.backbone
    trunk = getattr(backbone, 'trunk', backbone)
    size = sum(parameter.numel() for parameter in trunk.parameters())
    name = getattr(backbone, 'arch', type(backbone).__name__)
    rows = [('Trunk', f'{name}, {size / 1e6:.1f} M parameters; weights: {_source(backbone)}')]
    if check := getattr(backbone, 'weights_check', ''):
        rows.append(('Weights', check))
    methods = ', '.join(getattr(backbone, 'tuned', {})) or 'none'
    if any(counts := getattr(backbone, 'prompt_counts', ())):
        methods += f' ({sum(counts)} prompts in {sum(map(bool, counts))} blocks)'
    guidance = getattr(model, 'guidance', None)
    if guidance is not None:
        methods += f'; guided at block {", ".join(map(str, guidance.blocks))}'
    in_backbone, in_heads = count_trainable(model)
    rows.append(('Method', methods))
    share = f' ({100 * in_backbone / size:.2f} % of the trunk)' if size else ''
    rows.append(('Trainable', f'{in_backbone:,} parameters in the backbone{share}, {in_heads:,} in neck and heads'))
    return rows


def _source(backbone: Any) -> str:
    pretrained = getattr(backbone, 'pretrained', None)
    if pretrained is True:
        return "timm's hub"
    if pretrained:
        return str(pretrained)
    initial = getattr(backbone, 'init_cfg', None)
    return str((initial.get('checkpoint') if isinstance(initial, Mapping) else None) or 'random')


def _dataset_name(dataset: Any) -> str:
    while hasattr(dataset, 'dataset') and not hasattr(dataset, 'data_root'):  # wrappers
        dataset = dataset.dataset
    name = type(dataset).__name__
    root = getattr(dataset, 'data_root', None)
    return f'{name} in {root}' if root else name


def _rate(rate: GroupRate) -> str:
    top = '' if rate.highest <= max(rate.first, rate.last) else f' (highest {rate.highest:.3g})'
    return f'{rate.part} {rate.first:.3g} to {rate.last:.3g}{top}'


def _fitting(words: Sequence[str], width: int, separator: str = ', ') -> str:
    """As many words as fit, and how many more there are."""
    text = separator.join(words)
    shown = len(words)
    while len(text) > width and shown > 1:
        shown -= 1
        text = separator.join(words[:shown]) + f' and {len(words) - shown} more'
    return text


@dataclass(frozen=True)
class Validation:
    """The result of one validation.

    Attributes:
        iteration: After which iteration.
        metrics: Name -> value.
        classes: IoU of each class in percent, ``None`` for one that does not occur; empty if it was not measured.
    """

    iteration: int
    metrics: Mapping[str, float]
    classes: Mapping[str, float | None]


def end_lines(
    validations: Sequence[Validation],
    iterations: int,
    work_dir: str | Path,
    config: str | Path,
    checkpoints: Mapping[str, str],
    metric: str = 'mIoU',
) -> list[str]:
    """How a training ended: best and last score, IoU of each class, paths, and the commands that come next.

    Args:
        validations: In the order of the training; those without ``metric`` are left out.
        iterations: Number of iterations that are done.
        work_dir: Folder of the run.
        config: Config for the next command.
        checkpoints: ``best`` and ``last``, as far as they exist.
        metric: What is compared; higher is better.
    """
    lines = [f'Training finished: {iterations} iterations.']
    scored = [validation for validation in validations if metric in validation.metrics]
    if scored:
        best, last = max(scored, key=lambda one: one.metrics[metric]), scored[-1]
        lines.append(
            f'Best {metric} {best.metrics[metric]:.2f} after iteration {best.iteration}, '
            f'last {last.metrics[metric]:.2f} after iteration {last.iteration}'
        )
        lines += _class_table(best, last)
    lines += [f'{name.capitalize()} checkpoint: {path}' for name, path in checkpoints.items()]
    lines.append(f'Folder: {work_dir}')
    if checkpoint := checkpoints.get('best') or checkpoints.get('last'):
        lines.append(f'Next: {tool_command("test", config, checkpoint)}')
    lines.append(f'      {tool_command("report", work_dir)}')
    return lines


def _class_table(best: Validation, last: Validation) -> list[str]:
    if not last.classes:
        return []
    width = max(map(len, ('class', *last.classes)))
    rows = [f'{"class":<{width}}  IoU best  IoU last']
    for name, iou in last.classes.items():
        cells = ['-' if value is None else f'{value:.2f}' for value in (best.classes.get(name), iou)]
        rows.append(f'{name:<{width}}  {cells[0]:>8}  {cells[1]:>8}')
    return rows
