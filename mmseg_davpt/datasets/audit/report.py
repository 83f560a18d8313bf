"""Text of an audit."""

from __future__ import annotations

from collections import defaultdict

from .audit import Audit
from .faults import WARNINGS, Fault
from .splits import Split


def format_audit(audit: Audit, show: int = 5) -> str:
    """Classes by split, ids in the files, then errors and warnings by kind.

    Args:
        audit: The result of :func:`~mmseg_davpt.datasets.audit.audit_config`.
        show: Number of paths to print of each kind.
    """
    warnings = [fault for fault in audit.faults if fault.kind in WARNINGS]
    parts = [format_classes(group) for group in _by_classes(audit.splits)]
    parts += [_format_ids(audit.splits)]
    parts += [
        _format_faults(title, faults, show) for title, faults in (('Errors', audit.errors), ('Warnings', warnings))
    ]
    parts += [f'{len(audit.errors)} errors, {len(warnings)} warnings in {sum(s.images for s in audit.splits)} images']
    return '\n\n'.join(part for part in parts if part)


def _by_classes(splits: list[Split]) -> list[list[Split]]:
    groups = defaultdict(list)
    for split in splits:
        groups[split.classes].append(split)
    return list(groups.values())


def format_classes(splits: list[Split]) -> str:
    """Table of the classes: percent of the labeled pixels, and number of masks.

    Args:
        splits: Splits with the same classes.
    """
    rows = [['id', 'class', *(cell for split in splits for cell in (f'{split.name}: % of pixels', 'masks'))]]
    labeled = [sum(split.pixels[index] for index in range(len(split.classes))) for split in splits]
    for index, name in enumerate(splits[0].classes):
        row = [str(index), name]
        for split, total in zip(splits, labeled):
            row += [f'{100 * split.pixels[index] / total:.3f}' if total else '-', f'{split.masks[index]:,}']
        rows.append(row)
    ignored = [split.dataset.ignore_index for split in splits]
    row = [str(ignored[0]), '(ignored, of all)']
    for split, value, total in zip(splits, ignored, labeled):
        whole = total + split.pixels[value]
        row += [f'{100 * split.pixels[value] / whole:.3f}' if whole else '-', f'{split.masks[value]:,}']
    rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        '  '.join([row[0].rjust(widths[0]), row[1].ljust(widths[1]), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    ]
    line = '-' * len(lines[0])
    return '\n'.join([lines[0], line, *lines[1:-1], line, lines[-1]])


def _format_ids(splits: list[Split]) -> str:
    lines = []
    for split in splits:
        total = sum(split.ids.values())
        edge = [value for value in (0, len(split.classes) - 1, len(split.classes), 255) if value in split.ids]
        shares = ', '.join(f'{value}: {100 * split.ids[value] / total:.2f} %' for value in edge)
        lines.append(
            f'{split.name}: {split.images:,} images; ids in the files {_ranges(sorted(split.ids))} ({shares}); '
            f'{len(split.classes)} classes, reduce_zero_label={split.dataset.reduce_zero_label}'
        )
    return '\n'.join(lines)


def _ranges(values: list[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ', '.join(str(a) if a == b else f'{a}-{b}' for a, b in runs) or 'none'


def _format_faults(title: str, faults: list[Fault], show: int) -> str:
    kinds = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    lines = [title] if faults else []
    for kind, rows in kinds.items():
        lines.append(f'  {kind}: {len(rows)}')
        lines += [f'    {fault.split}: {fault.path}: {fault.what}' for fault in rows[:show]]
        if len(rows) > show:
            lines.append(f'    ... and {len(rows) - show} more (--json FILE lists all)')
    return '\n'.join(lines)
