"""Parameters by part: what learns, where, and how much of it."""

from __future__ import annotations

from torch import nn

from .policy import norm_parameters

PARTS = ('prompts', 'lora', 'adapters', 'biases', 'norms', 'trunk, other', 'neck', 'heads', 'other')
IN_BACKBONE = PARTS[:6]


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
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        '  '.join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows
    ]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:-2], '-' * len(lines[0]), *lines[-2:]])
