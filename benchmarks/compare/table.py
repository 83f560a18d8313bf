"""Rows -> summaries: means, spread, paired differences; as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats


def summarize(rows: Sequence[Mapping[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One summary per method, in the order in which the methods appear.

    Args:
        rows: Rows of :func:`~benchmarks.compare.run_cell`, one for each method and seed.
        baseline: The method that differences are taken from.

    Returns:
        For each method: ``seeds`` (their number), mean and standard deviation of ``mIoU``, means of the other figures,
        and over the seeds that the method shares with the baseline the mean paired difference in mIoU with its 95 %
        interval (Student's t; ``None`` for fewer than two seeds).
    """
    by_method: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row['method'], {})[row['seed']] = row
    base = by_method.get(baseline, {})
    summaries = []
    for method, runs in by_method.items():
        scores = np.array([row['mIoU'] for row in runs.values()])
        differences = np.array([row['mIoU'] - base[seed]['mIoU'] for seed, row in runs.items() if seed in base])
        keys = ('frequent_mIoU', 'aAcc', 'tuned_trunk', 'tuned_heads', 'trunk_share', 'peak_memory_mb')
        summaries.append(
            dict(
                method=method,
                seeds=len(scores),
                mIoU=scores.mean(),
                sd=scores.std(ddof=1) if len(scores) > 1 else None,
                difference=differences.mean() if len(differences) and method != baseline else None,
                interval=paired_interval(differences) if method != baseline else None,
                seconds_per_iteration=np.median([row['seconds_per_iteration'] for row in runs.values()]),
                **{key: np.mean([row[key] for row in runs.values()]) for key in keys},
            )
        )
    return summaries


def paired_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; ``None`` for fewer than two differences.

    Args:
        differences: One per seed.
        level: Confidence level in (0, 1).
    """
    if len(differences) < 2:
        return None
    half = stats.t.ppf((1 + level) / 2, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return differences.mean() - half, differences.mean() + half


def format_table(summaries: Sequence[Mapping[str, Any]], baseline: str, titles: Mapping[str, str] | None = None) -> str:
    """A Markdown table of summaries.

    Args:
        summaries: From :func:`summarize`.
        baseline: The method that differences were taken from.
        titles: Method -> its name in the table, if it is not the method itself.
    """
    titles = titles or {}
    head = ['method', 'seeds', 'mIoU', f'against {titles.get(baseline, baseline)} [95 %]', 'frequent mIoU', 'aAcc']
    head += ['tuned in trunk', '% of trunk', 'heads', 's / iteration', 'peak MB']
    lines = [f'| {" | ".join(head)} |', f'|{" --- |" * len(head)}']
    for summary in summaries:
        spread = '' if summary['sd'] is None else f' ± {summary["sd"]:.2f}'
        difference = '-' if summary['difference'] is None else f'{summary["difference"]:+.2f}'
        if summary['interval'] is not None:
            difference += ' [{:+.2f}, {:+.2f}]'.format(*summary['interval'])
        columns = [
            titles.get(summary['method'], summary['method']),
            str(summary['seeds']),
            f'{summary["mIoU"]:.2f}{spread}',
            difference,
            f'{summary["frequent_mIoU"]:.2f}',
            f'{summary["aAcc"]:.2f}',
            f'{summary["tuned_trunk"] / 1e6:.3f} M',
            f'{summary["trunk_share"]:.2f}',
            f'{summary["tuned_heads"] / 1e6:.3f} M',
            f'{summary["seconds_per_iteration"]:.2f}',
            f'{summary["peak_memory_mb"]:.0f}',
        ]
        lines.append(f'| {" | ".join(columns)} |')
    return '\n'.join(lines)


def plot(summaries: Sequence[Mapping[str, Any]], path: str | Path, titles: Mapping[str, str] | None = None) -> None:
    """Plot mIoU against tuned parameters of the trunk and against seconds per iteration, with standard deviations.

    Args:
        summaries: From :func:`summarize`.
        path: Path of the picture.
        titles: Method -> its name in the legend, if it is not the method itself.
    """
    from matplotlib.figure import Figure

    titles = titles or {}
    figure = Figure(figsize=(13, 4.5), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for index, summary in enumerate(summaries):
        style = dict(color=f'C{index % 10}', fmt='os^Dv'[index // 10 % 5], capsize=3)
        label = titles.get(summary['method'], summary['method'])
        for axis, x in zip(axes, (summary['tuned_trunk'] / 1e6, summary['seconds_per_iteration'])):
            axis.errorbar(x, summary['mIoU'], yerr=summary['sd'] or 0, label=label, **style)
    axes[0].set_xscale('symlog', linthresh=1e-3)
    axes[0].set(xlabel='tuned parameters in the trunk, millions (symlog)', ylabel='mIoU, mean ± sd')
    axes[1].set(xlabel='seconds per iteration, median')
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=8)
    figure.savefig(path, dpi=120)
