"""Goals for ratios of cases, and tables and plots of the measured ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measure import ratio


@dataclass(frozen=True)
class Goal:
    """One ratio of two cases.

    Attributes:
        name: First column of the table.
        measure: ``seconds`` of a call, or ``growth`` (peak memory) or ``growth_adamw`` (with AdamW's state).
        numerator: A case.
        denominator: A case.
        most: Largest ratio that meets the goal.
        limit: Smallest ratio that the number of operations allows, if known.
        arch: Start of the names of the trunks that have this goal; empty for all.
    """

    name: str
    measure: str
    numerator: str
    denominator: str
    most: float
    limit: float | None = None
    arch: str = ''


_CONCATENATION = 'keys/values against concatenation'
_HALF = 'bfloat16 trunk against full tuning'
_FULL, _BASE = 'DA-VPT against full tuning', 'vit_base_patch16'
_STOCK = "keys/values against mmseg's ViT with prompt tokens"
_TOKENS, _KV = 'VPT-Deep tokens, M={}', 'VPT-Deep k/v, M={}'
GOALS = (
    Goal('20 prompts against none', 'seconds', '20 prompts, inference', 'timm trunk, inference', 1.02, 1.004),
    Goal(
        '20 residual prompts against none',
        'seconds',
        '20 residual prompts, inference',
        'timm trunk, inference',
        1.02,
        1.004,
    ),
    Goal('DA-VPT against VPT-Deep', 'seconds', 'DA-VPT', _KV.format(20), 1.02, 1.0),
    Goal('DA-VPT against VPT-Deep', 'growth', 'DA-VPT', _KV.format(20), 1.02, 1.0),
    Goal('residual DA-VPT against VPT-Deep', 'seconds', 'residual DA-VPT', _KV.format(20), 1.02, 1.0),
    Goal('residual DA-VPT against VPT-Deep', 'growth', 'residual DA-VPT', _KV.format(20), 1.02, 1.0),
    Goal(f'{_CONCATENATION}, M=100', 'seconds', _KV.format(100), _TOKENS.format(100), 0.94, 0.91),
    Goal(f'{_CONCATENATION}, M=100', 'growth', _KV.format(100), _TOKENS.format(100), 1.0),
    Goal(f'{_CONCATENATION}, M=20', 'growth', _KV.format(20), _TOKENS.format(20), 1.0),
    Goal(_FULL, 'seconds', 'DA-VPT', 'full tuning', 0.70, 0.67, _BASE),
    Goal(_FULL, 'growth', 'DA-VPT', 'full tuning', 0.65, None, _BASE),
    Goal(_FULL, 'growth_adamw', 'DA-VPT', 'full tuning', 0.45, None, _BASE),
    Goal(_HALF, 'growth', 'residual DA-VPT, bfloat16 trunk', 'full tuning', 0.55, None, _BASE),
    Goal(_HALF, 'growth_adamw', 'residual DA-VPT, bfloat16 trunk', 'full tuning', 0.35, None, _BASE),
    Goal('bfloat16 against float32 trunk', 'seconds', 'residual DA-VPT, bfloat16 trunk', 'residual DA-VPT', 1.0),
    *(
        Goal(f'{name}: last {part} against all blocks', 'seconds', f'{name}, last {part}', name, most, limit)
        for name in ('residual DA-VPT', 'LoRA', 'AdaptFormer')
        for part, most, limit in (('half', 0.8, 0.72), ('third', 0.6, 0.62))
    ),
    Goal(_STOCK, 'seconds', _KV.format(20), 'mmseg ViT, tokens, M=20', 1 / 1.3),
    Goal(_STOCK, 'growth', _KV.format(20), 'mmseg ViT, tokens, M=20', 1.0),
)
MEASURES = dict(seconds='time', growth='peak memory', growth_adamw="peak memory with AdamW's state")


def check_goals(arch: str, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ratios of the goals whose cases were measured.

    Args:
        arch: timm name of the trunk.
        results: Case -> ``times`` (seconds of each round) and ``memory`` (figures in MB), as from ``trunk_cost``.

    Returns:
        For each goal ``ratio``, its interquartile range ``iqr`` over the rounds (``None`` for memory, which does not
        vary by the moment), ``most``, ``limit`` and ``met`` (``None`` where the goal is not for this trunk).
    """
    rows = []
    for goal in GOALS:
        a, b = results.get(goal.numerator), results.get(goal.denominator)
        if a is None or b is None:
            continue
        if goal.measure == 'seconds':
            measured = ratio(a['times'], b['times'])
        elif goal.measure in (a['memory'] or {}) and goal.measure in (b['memory'] or {}):
            measured = dict(median=a['memory'][goal.measure] / b['memory'][goal.measure], iqr=None)
        else:
            continue
        met = measured['median'] <= goal.most if arch.startswith(goal.arch) else None
        row = dict(name=goal.name, measure=goal.measure, numerator=goal.numerator, denominator=goal.denominator)
        rows.append(
            row | dict(ratio=measured['median'], iqr=measured['iqr'], most=goal.most, limit=goal.limit, met=met)
        )
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats get three digits, ``None`` a dash."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}'
        return '-' if value is None else str(value)

    lines = [head, ['---'] * len(head), *([cell(value) for value in row] for row in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def goal_table(goals: Sequence[Mapping[str, Any]]) -> str:
    """Ratios against goals as Markdown."""
    verdict = {True: 'yes', False: 'no', None: 'no goal for this trunk'}
    rows = []
    for goal in goals:
        spread = '' if goal['iqr'] is None else f' (IQR {goal["iqr"]:.3f})'
        limit = None if goal['limit'] is None else f'{goal["limit"]:.3f}'
        measured = f'{goal["ratio"]:.3f}{spread}'
        most = f'<= {goal["most"]:.2f}'
        rows.append((goal['name'], MEASURES[goal['measure']], measured, most, limit, verdict[goal['met']]))
    return table(('cases', 'measure', 'ratio', 'goal', 'arithmetic limit', 'met'), rows)


def case_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Time and memory of every case as Markdown."""
    rows = []
    for name, case in results.items():
        memory = case['memory'] or {}
        figures = [memory.get(key) and f'{memory[key]:.0f}' for key in ('growth', 'growth_adamw', 'peak')]
        rows.append((name, case['trainable'], f'{case["seconds"]:.4g}', f'{case["iqr"]:.2g}', *figures))
    return table(('case', 'tuned', 's', 'IQR', 'memory, MB', 'with AdamW, MB', 'whole process, MB'), rows)


def plot(runs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Bars of time and memory, one row of panels per run.

    Args:
        runs: ``title`` and ``results``, as for :func:`check_goals`.
        path: Path of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2 * len(runs)), layout='constrained')
    for axes, run in zip(figure.subplots(len(runs), 2, sharey='row', squeeze=False), runs):
        names = list(run['results'])
        results = [run['results'][name] for name in names]
        axes[0].barh(names, [case['seconds'] for case in results], xerr=[case['iqr'] / 2 for case in results])
        axes[0].set(xlabel='seconds, median and interquartile range', title=run['title'])
        for label, key, alpha in (("with AdamW's state", 'growth_adamw', 0.4), ('without', 'growth', 1.0)):
            values = [(case['memory'] or {}).get(key, 0) for case in results]
            axes[1].barh(names, values, alpha=alpha, label=label, color='tab:orange')
        axes[1].set(xlabel='peak memory, MB')
        axes[1].legend()
        axes[0].invert_yaxis()
        for axis in axes:
            axis.grid(axis='x', alpha=0.3)
    figure.savefig(path, dpi=110)
