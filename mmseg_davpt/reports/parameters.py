"""Parameters by part: which are trainable, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import nn

HEADS = ('neck', 'heads', 'other')


def build_shapes(model: Mapping[str, Any]) -> nn.Module:
    """Build a model from its config for its shapes alone: on the meta device, without memory or random numbers.

    Args:
        model: Config of a segmentor, any registered one.
    """
    try:
        with torch.device('meta'):
            return MODELS.build(model)
    except (RuntimeError, NotImplementedError):  # a constructor that reads values, as Segmenter's does
        return MODELS.build(model)


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Count the parameters of a segmentor by part.

    Args:
        model: A segmentor with ``backbone`` and, if any, ``neck``, ``decode_head``, ``auxiliary_head``.

    Returns:
        Part -> (trainable, all). The parts are the tuning methods of the backbone by name (with the parameters of the
        trunk that a method trains in place), ``frozen trunk`` for the rest of the backbone, then :data:`HEADS`.
    """
    backbone: Any = model.backbone
    methods: dict[int, str] = {}
    if hasattr(backbone, 'trainable_parameters'):
        methods = {id(parameter): method for _, method, parameter in backbone.trainable_parameters()}
    table = {part: [0, 0] for part in (*getattr(backbone, 'tuned', {}), 'frozen trunk', *HEADS)}
    for name, parameter in model.named_parameters():
        row = table[methods.get(id(parameter)) or _part(name)]
        row[0] += parameter.numel() * parameter.requires_grad
        row[1] += parameter.numel()
    return {part: (trainable, every) for part, (trainable, every) in table.items()}


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Count trainable parameters in the backbone, and in neck and heads.

    Args:
        model: A segmentor, as for :func:`count_parameters`.
    """
    counts = count_parameters(model)
    backbone = sum(trainable for part, (trainable, _) in counts.items() if part not in HEADS)
    return backbone, sum(trainable for trainable, _ in counts.values()) - backbone


def _part(name: str) -> str:
    root = name.partition('.')[0]
    parts = dict(backbone='frozen trunk', neck='neck', decode_head='heads', auxiliary_head='heads')
    return parts.get(root, 'other')


def format_report(model: nn.Module) -> str:
    """A table of :func:`count_parameters`, with the trainable share of the pretrained trunk and of the whole model."""
    counts = count_parameters(model)
    trunk = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith('backbone.trunk.'))
    whole = sum(every for _, every in counts.values())
    rows = [('part', 'trainable', 'all', '% of trunk', '% of model')]

    def add(part: str, trainable: int, every: int) -> None:
        share = f'{100 * trainable / trunk:.3f}' if trunk and part not in (*HEADS, 'total') else '-'
        rows.append((part, f'{trainable:,}', f'{every:,}', share, f'{100 * trainable / whole:.3f}'))

    for part, (trainable, every) in counts.items():
        if every:
            add(part, trainable, every)
    backbone = [count for part, count in counts.items() if part not in HEADS]
    add('backbone', sum(trainable for trainable, _ in backbone), sum(every for _, every in backbone))
    add('total', sum(trainable for trainable, _ in counts.values()), whole)
    lines = _align(rows)
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:-2], '-' * len(lines[0]), *lines[-2:]])


def format_comparison(models: Mapping[str, nn.Module]) -> str:
    """A table of what is trainable in several models.

    Args:
        models: Name -> segmentor.
    """
    rows = [('model', 'trainable in the backbone', 'neck and heads', 'total', 'in millions')]
    for name, model in models.items():
        backbone, heads = count_trainable(model)
        total = backbone + heads
        rows.append((name, f'{backbone:,}', f'{heads:,}', f'{total:,}', f'{total / 1e6:.1f}'))
    lines = _align(rows)
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join([row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], widths))]) for row in rows]
