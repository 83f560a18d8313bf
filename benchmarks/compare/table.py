"""Rows -> what they say: means, spread, paired differences, a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats


def summarise(rows: Sequence[Mapping], baseline: str) -> list[dict]:
    """One summary a method, in the order in which they appear.

    Args:
        rows: Rows of :func:`~mmseg_davpt.compare.run_cell`, one for each method and seed.
        baseline: The method that differences are taken from.

    Returns:
        For each method: ``seeds``, mean and standard deviation of ``mIoU``, means of the other figures, and over the
        seeds that it shares with the baseline the mean paired difference in mIoU with its 95 % interval (Student's t;
        ``None`` for fewer than two).
    """
    by_method: dict[str, dict[int, Mapping]] = {}
    for row in rows:
        by_method.setdefault(row['method'], {})[row['seed']] = row
    base = by_method.get(baseline, {})
    summaries = []
    for method, runs in by_method.items():
        scores = np.array([row['mIoU'] for row in runs.values()])
        pairs = np.array([row['mIoU'] - base[seed]['mIoU'] for seed, row in runs.items() if seed in base])
        keys = ('frequent_mIoU', 'aAcc', 'tuned_trunk', 'tuned_heads', 'trunk_share', 'peak_memory_mb')
        summaries.append(
            dict(
                method=method,
                seeds=len(scores),
                mIoU=scores.mean(),
                sd=scores.std(ddof=1) if len(scores) > 1 else None,
                difference=pairs.mean() if len(pairs) and method != baseline else None,
                interval=paired_interval(pairs) if method != baseline else None,
                seconds_per_iteration=np.median([row['seconds_per_iteration'] for row in runs.values()]),
                **{key: np.mean([row[key] for row in runs.values()]) for key in keys},
            )
        )
    return summaries


def paired_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; ``None`` for fewer than two differences."""
    if len(differences) < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return differences.mean() - half, differences.mean() + half


def format_table(summaries: Sequence[Mapping], baseline: str) -> str:
    """A Markdown table of summaries."""
    head = ['method', 'seeds', 'mIoU', f'against {baseline} [95 %]', 'frequent mIoU', 'aAcc', 'tuned in trunk']
    head += ['% of trunk', 'heads', 's / iteration', 'peak MB']
    lines = [f'| {" | ".join(head)} |', f'|{" --- |" * len(head)}']
    for part in summaries:
        spread = '' if part['sd'] is None else f' ± {part["sd"]:.2f}'
        difference = '-' if part['difference'] is None else f'{part["difference"]:+.2f}'
        if part['interval'] is not None:
            difference += ' [{:+.2f}, {:+.2f}]'.format(*part['interval'])
        cells = [
            part['method'],
            part['seeds'],
            f'{part["mIoU"]:.2f}{spread}',
            difference,
            f'{part["frequent_mIoU"]:.2f}',
            f'{part["aAcc"]:.2f}',
            f'{part["tuned_trunk"] / 1e6:.3f} M',
            f'{part["trunk_share"]:.2f}',
            f'{part["tuned_heads"] / 1e6:.3f} M',
            f'{part["seconds_per_iteration"]:.2f}',
            f'{part["peak_memory_mb"]:.0f}',
        ]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def plot(summaries: Sequence[Mapping], path: str | Path) -> None:
    """Plot mIoU against tuned parameters of the trunk, and against seconds an iteration, with standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for index, part in enumerate(summaries):
        color, marker = f'C{index % 10}', 'os^Dv'[index // 10 % 5]
        for axis, x in zip(axes, (part['tuned_trunk'] / 1e6, part['seconds_per_iteration'])):
            axis.errorbar(
                x, part['mIoU'], yerr=part['sd'] or 0, fmt=marker, color=color, capsize=3, label=part['method']
            )
    axes[0].set_xscale('symlog', linthresh=1e-3)
    axes[0].set(xlabel='tuned parameters in the trunk, millions (symlog)', ylabel='mIoU, mean ± sd')
    axes[1].set(xlabel='seconds an iteration, median')
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=8)
    figure.savefig(path, dpi=120)
