"""Figures of the report, as SVG for use inside of HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .prompt_attention import PromptAttention
from .prompt_figures import COLORS, plot_class_table
from .run_report import RunReport

_GREY = '#8a8a8a'
_LINES = ('-', '--', ':', '-.')  # beside colors: runs can be told apart in gray as well
_STYLE: dict[Any, Any] = {
    'svg.fonttype': 'none',  # text stays text: it can be read out, found and copied
    'svg.hashsalt': 'mmseg_davpt',  # the same figure is the same file
    'font.family': 'sans-serif',
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.color': '#e3e3e3',
    'axes.axisbelow': True,
}


def draw_lines(runs: Sequence[RunReport], series: dict[str, list[Sequence[tuple[int, float]]]], label: str) -> Markup:
    """Lines over iterations, of one run or several.

    Args:
        runs: The runs.
        series: Name of a quantity -> for each run, its (iteration, value) pairs.
        label: Label of the value axis.
    """

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for rank, (name, of_runs) in enumerate(series.items()):
            for index, (run, points) in enumerate(zip(runs, of_runs)):
                if not points:
                    continue
                words = ([run.name] if len(runs) > 1 else []) + ([name] if name else [])
                axis.plot(
                    *zip(*points),
                    color=COLORS[(index if len(runs) > 1 else rank) % len(COLORS)],
                    linestyle=_LINES[(rank if len(runs) > 1 else 0) % len(_LINES)],
                    marker='o' if len(points) < 30 else '',
                    markersize=4,
                    label=', '.join(words) or None,
                )
        axis.set(xlabel='iteration', ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9)

    return _svg(draw, 6.4, 3.4)


def draw_class_bars(runs: Sequence[RunReport]) -> Markup | None:
    """IoU of each class, the most frequent first, beside the share of its pixels."""
    share = runs[0].class_share
    occurring = [name for name, iou in runs[0].final_classes.items() if iou is not None]
    names = sorted(occurring, key=lambda name: -share.get(name, 0.0))
    if not names:
        return None

    def draw(figure: Figure) -> None:
        bars, frequency = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        rows, height = np.arange(len(names)), 0.8 / len(runs)
        for index, run in enumerate(runs):
            ious = run.final_classes
            values = [ious.get(name) or 0.0 for name in names]
            offsets = rows + (index - (len(runs) - 1) / 2) * height
            bars.barh(offsets, values, height * 0.92, color=COLORS[index % len(COLORS)], label=run.name)
            for offset, name, value in zip(offsets, names, values):
                text = '-' if ious.get(name) is None else f'{value:.1f}'
                bars.annotate(text, (value, offset), (3, 0), textcoords='offset points', va='center', fontsize=8)
        bars.set(xlim=(0, 108), xlabel='IoU in percent', yticks=rows, yticklabels=names)
        bars.set_ylim(len(names) - 0.4, -0.6)  # the first name on top
        frequency.barh(rows, [share.get(name, 0.0) for name in names], 0.75, color=_GREY)
        frequency.set(xlabel='percent of pixels')
        for axis in (bars, frequency):
            axis.grid(axis='y', visible=False)
        if len(runs) > 1:
            figure.legend(*bars.get_legend_handles_labels(), loc='outside upper center', ncols=3, frameon=False)

    return _svg(draw, 10, 1.4 + len(names) * max(0.27, 0.17 * len(runs)))


def draw_confusion(run: RunReport) -> Markup | None:
    """Share of the pixels of each class (row) that were taken for each class (column)."""
    if not run.record.get('confusion'):
        return None
    counts = np.asarray(run.record['confusion'], float)
    present = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    counts, names = counts[np.ix_(present, present)], [run.record['classes'][index] for index in present]
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(1)
    few = len(names) <= 25

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        axis.grid(visible=False)
        picture = axis.imshow(shares, cmap='cividis', vmin=0, vmax=100)
        figure.colorbar(picture, ax=axis, shrink=0.8, label='percent of the pixels of the true class')
        size = min(9.0, 650 / len(names))  # the side of the largest figure has 864 points
        ticks = range(len(names))
        axis.set_xticks(ticks, names, rotation=90, fontsize=size)
        axis.set_yticks(ticks, names, fontsize=size)
        axis.set(xlabel='prediction', ylabel='truth')
        if few:
            for row, column in np.argwhere(shares >= 1):
                value = shares[row, column]
                color = 'black' if value > 55 else 'white'
                axis.text(column, row, f'{value:.0f}', ha='center', va='center', color=color, fontsize=8)

    side = min(12.0, 3.2 + 0.42 * len(names)) if few else 12.0
    return _svg(draw, side + 1.2, side)


def draw_attention(run: RunReport, block: int, one: dict[str, Any]) -> Markup:
    """Attention of the classes' patches to the prompts of one block.

    Args:
        run: The run.
        block: Index of the block.
        one: Entry of the block in the record: ``table``, ``patches``, ``assignment``.
    """
    assignment = None if one['assignment'] is None else torch.tensor(one['assignment'])
    attention = PromptAttention(torch.tensor(one['table']), torch.tensor(one['patches']), assignment)

    def draw(figure: Figure) -> None:
        with rc_context({'axes.grid': False}):
            plot_class_table(figure, {f'block {block}': attention}, run.record['classes'])

    rows = int((attention.patches > 0).sum())
    return _svg(draw, 10, 0.26 * rows + 1.8)


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> Markup:
    """Draw a figure of a size in inches; returns it for use inside of HTML."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    text = re.sub(r'<metadata>.*?</metadata>', '', buffer.getvalue(), flags=re.DOTALL)
    return Markup(text[text.index('<svg') :])  # matplotlib escapes what it writes
