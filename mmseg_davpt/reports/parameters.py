"""Parameters by part: what learns, where, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmseg.registry import MODELS
from torch import nn

from ..tuning import norm_parameters

PARTS = ('prompts', 'lora', 'adapters', 'biases', 'norms', 'trunk, other', 'neck', 'heads', 'other')
IN_BACKBONE = PARTS[:6]


def build_shapes(model: Mapping) -> nn.Module:
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
    """Count parameters of a segmentor by part.

    Args:
        model: A segmentor with ``backbone`` and, if any, ``neck``, ``decode_head``, ``auxiliary_head``.

    Returns:
        Part -> (tuned, all). The parts are :data:`PARTS`; :data:`IN_BACKBONE` belong to the backbone. Offsets of split
        biases count as tuned biases.
    """
    table = {part: [0, 0] for part in PARTS}
    norms = norm_parameters(model)
    for name, parameter in model.named_parameters():
        row = table[_part(name, norms)]
        row[0] += parameter.numel() * parameter.requires_grad
        row[1] += parameter.numel()
    return {part: (tuned, every) for part, (tuned, every) in table.items()}


def _part(name: str, norms: set[str]) -> str:
    top, _, rest = name.partition('.')
    if top == 'neck':
        return 'neck'
    if top in ('decode_head', 'auxiliary_head'):
        return 'heads'
    if top != 'backbone':
        return 'other'
    for part in ('prompts', 'lora', 'adapters'):
        if rest.startswith(f'{part}.'):
            return part
    if name in norms:
        return 'norms'
    if rest.startswith('biases.') or rest.endswith('bias'):
        return 'biases'
    return 'trunk, other'


def format_report(model: nn.Module) -> str:
    """A table of :func:`count_parameters`, with the tuned share of the pretrained trunk and of the whole model."""
    counts = count_parameters(model)
    trunk = sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith('backbone.trunk.'))
    whole = sum(every for _, every in counts.values())
    rows = [('part', 'tuned', 'all', '% of trunk', '% of model')]

    def add(part: str, tuned: int, every: int) -> None:
        share = f'{100 * tuned / trunk:.3f}' if trunk and part not in ('neck', 'heads', 'other', 'total') else '-'
        rows.append((part, f'{tuned:,}', f'{every:,}', share, f'{100 * tuned / whole:.3f}'))

    for part in PARTS:
        if counts[part][1]:
            add(part, *counts[part])
    backbone = [counts[part] for part in IN_BACKBONE]
    add('backbone', sum(tuned for tuned, _ in backbone), sum(every for _, every in backbone))
    add('total', sum(tuned for tuned, _ in counts.values()), whole)
    lines = _align(rows)
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:-2], '-' * len(lines[0]), *lines[-2:]])


def format_comparison(models: Mapping[str, nn.Module]) -> str:
    """A table of what learns in several models.

    Args:
        models: Name -> segmentor.
    """
    rows = [('model', 'tuned in the trunk', 'neck and heads', 'tuned in all', 'in millions')]
    for name, model in models.items():
        counts = {part: tuned for part, (tuned, _) in count_parameters(model).items()}
        trunk, total = sum(counts[part] for part in IN_BACKBONE), sum(counts.values())
        rows.append((name, f'{trunk:,}', f'{total - trunk:,}', f'{total:,}', f'{total / 1e6:.1f}'))
    lines = _align(rows)
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join([row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], widths))]) for row in rows]
