"""The report of one or several runs as one HTML file, without anything from outside."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import torch
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .prompt_attention import PromptAttention
from .prompt_figures import COLORS, plot_class_table
from .run_report import RunReport, paired_differences

_GREY = '#8a8a8a'
_LINES = ('-', '--', ':', '-.')  # beside colors: runs can be told apart in grey as well
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


def make_page(runs: Sequence[RunReport]) -> str:
    """Make the page.

    Args:
        runs: At least one; several stand side by side.

    Returns:
        HTML with style, script, figures (SVG) and images (base64) inside.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('mmseg_davpt.reports'), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template('report.html.jinja')
    return template.render(
        title=runs[0].name if len(runs) == 1 else f'{len(runs)} runs',
        headline=[_headline(run) for run in runs],
        facts=_facts(runs),
        names=[run.name for run in runs],
        curves=_curves(runs),
        classes=_class_bars(runs),
        pairs=paired_differences(runs),
        details=[_details(run) for run in runs],
    )


def _headline(run: RunReport) -> str:
    scores = run.scores()
    if not scores:
        return f'{run.name}: no validation yet, {run.record["done"]} of {run.record["iterations"]} iterations.'
    best = max(scores, key=lambda one: one[1])
    counts = run.record['parameters'].items()
    trainable = sum(part[0] for _, part in counts)
    return (
        f'{run.name}: mIoU {scores[-1][1]:.2f} % after {scores[-1][0]} iterations (best {best[1]:.2f} % after '
        f'{best[0]}), with {trainable:,} trainable parameters.'
    )


def _facts(runs: Sequence[RunReport]) -> list[tuple[str, list[str]]]:
    """Rows of the table of runs: what, and the text for each run."""
    rows: list[tuple[str, Callable[[RunReport], str]]] = [
        ('Config', lambda run: Path(run.record.get('config') or '?').name),
        ('Data', _data),
        ('Trunk', lambda run: f'{run.record["trunk"]["name"]} ({_weights(run.record["trunk"]["pretrained"])})'),
        ('Method', _method),
        ('Trainable, backbone', lambda run: f'{_trainable(run, backbone=True):,}'),
        ('Trainable, neck and heads', lambda run: f'{_trainable(run, backbone=False):,}'),
        ('Iterations', lambda run: f'{run.record["done"]} of {run.record["iterations"]}'),
        ('Images per iteration', lambda run: str((run.record['batch_size'] or 1) * run.record['ranks'])),
        ('Seed', lambda run: str(run.record['seed'])),
        ('Last mIoU', lambda run: f'{run.scores()[-1][1]:.2f} %' if run.scores() else '-'),
        ('Best mIoU', lambda run: f'{max(score for _, score in run.scores()):.2f} %' if run.scores() else '-'),
        ('Time', lambda run: str(timedelta(seconds=round(run.record['seconds'])))),
        ('Time per iteration', _step_time),
        ('Peak memory', _memory),
    ]
    return [(name, [text(run) for run in runs]) for name, text in rows]


def _data(run: RunReport) -> str:
    validation = len(run.record.get('images', ()))
    training, classes = run.record['training_images'], len(run.record['classes'])
    return f'{training} training, {validation} validation images, {classes} classes'


def _weights(pretrained: Any) -> str:
    return "timm's hub" if pretrained is True else Path(pretrained).name if pretrained else 'random'


def _method(run: RunReport) -> str:
    trunk = run.record['trunk']
    text = ', '.join(trunk['methods']) or 'frozen'
    if any(trunk['prompts']):
        text += f', {sum(trunk["prompts"])} prompts'
    return text + (f', guided at block {", ".join(map(str, trunk["guided"]))}' if trunk['guided'] else '')


def _trainable(run: RunReport, backbone: bool) -> int:
    heads = ('neck', 'heads', 'other')
    return sum(count for part, (count, _) in run.record['parameters'].items() if (part not in heads) == backbone)


def _step_time(run: RunReport) -> str:
    times = [value for _, value in run.scalars.get('time', ())]
    return f'{sorted(times)[len(times) // 2]:.2f} s (median)' if times else '-'


def _memory(run: RunReport) -> str:
    gpu = run.record.get('peak_gpu_memory')
    text = f'{run.record["peak_memory"] / 2**30:.1f} GiB'
    return f'{gpu / 2**30:.1f} GiB of the GPU, {text} of the process' if gpu else text


def _curves(runs: Sequence[RunReport]) -> list[tuple[str, Markup]]:
    """Caption and figure: losses, mIoU, learning rates, guidance terms, assignment changes."""
    parts: list[tuple[str, str, Markup]] = []

    def add(caption: str, label: str, series: dict[str, list[Sequence[tuple[int, float]]]]) -> None:
        if any(any(points) for points in series.values()):
            parts.append((caption, label, _draw_lines(runs, series, label)))

    names = {name for run in runs for name in run.scalars}
    add('Loss', 'loss', {'': [run.scalars.get('loss', ()) for run in runs]})
    scores: list[Sequence[tuple[int, float]]] = [run.scores() for run in runs]
    add('mIoU of the validations', 'mIoU in percent', {'': scores})
    add(
        'Learning rate of the first parameter group', 'learning rate', {'': [run.scalars.get('lr', ()) for run in runs]}
    )
    guidance = sorted(name for name in names if name.startswith('loss_guide'))
    add('Guidance terms', 'loss', {name: [run.scalars.get(name, ()) for run in runs] for name in guidance})
    moved: list[Sequence[tuple[int, float]]] = [_moves(run) for run in runs]
    add('Classes that changed their prompt, at each refresh of the assignment', 'classes', {'': moved})
    shares = sorted(name for name in names if name.startswith('own_prompt_share'))
    add('Own-prompt attention share', 'percent', {name: [run.scalars.get(name, ()) for run in runs] for name in shares})
    return [(caption, figure) for caption, _, figure in parts]


def _moves(run: RunReport) -> list[tuple[int, float]]:
    """Summed over the blocks; the first assignment, before the training, moves nothing."""
    moved: dict[int, float] = {}
    for one in run.record.get('assignments', ()):
        if one['iteration'] > 0:
            moved[one['iteration']] = moved.get(one['iteration'], 0) + one['moved']
    return sorted(moved.items())


def _draw_lines(runs: Sequence[RunReport], series: dict[str, list[Sequence[tuple[int, float]]]], label: str) -> Markup:
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


def _class_bars(runs: Sequence[RunReport]) -> Markup | None:
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
        bars.invert_yaxis()
        frequency.barh(rows, [share.get(name, 0.0) for name in names], 0.75, color=_GREY)
        frequency.set(xlabel='percent of pixels')
        for axis in (bars, frequency):
            axis.grid(axis='y', visible=False)
        if len(runs) > 1:
            figure.legend(*bars.get_legend_handles_labels(), loc='outside upper center', ncols=3, frameon=False)

    return _svg(draw, 10, 1.4 + len(names) * max(0.27, 0.17 * len(runs)))


def _details(run: RunReport) -> dict[str, Any]:
    """What belongs to one run alone."""
    record = run.record
    return dict(
        name=run.name,
        folder=str(run.folder),
        confusion=_confusion(run),
        shown=[
            (group, [_slide(run, one) for one in record.get('shown', {}).get(group, ())]) for group in ('worst', 'best')
        ],
        legend=[
            (name, f'rgb({color[0]}, {color[1]}, {color[2]})')
            for name, color in zip(record['classes'], record['palette'])
        ],
        attention=[_attention(run, int(block), one) for block, one in record.get('attention', {}).items()],
        parameters=[
            (part, f'{trained:,}', f'{every:,}') for part, (trained, every) in record['parameters'].items() if every
        ],
        environment=[*record['versions'].items(), *record['environment'].items()],
        command=shlex.join(['python', *map(str, record['command'])]),
        config=run.config,
        images=sorted(record.get('images', ()), key=lambda one: one['mIoU']),
    )


def _confusion(run: RunReport) -> Markup | None:
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
        size = 9 if few else 5
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


def _attention(run: RunReport, block: int, one: dict[str, Any]) -> tuple[str, Markup]:
    """Heading and table of classes and prompts of a block."""
    assignment = None if one['assignment'] is None else torch.tensor(one['assignment'])
    attention = PromptAttention(torch.tensor(one['table']), torch.tensor(one['patches']), assignment)

    def draw(figure: Figure) -> None:
        with rc_context({'axes.grid': False}):
            plot_class_table(figure, {f'block {block}': attention}, run.record['classes'])

    rows = int((attention.patches > 0).sum())
    return f'Block {block}', _svg(draw, 10, 0.26 * rows + 1.8)


def _slide(run: RunReport, one: dict[str, Any]) -> dict[str, Any]:
    """An image with truth and prediction laid over it, as data URLs; without them if their files are gone."""
    slide: dict[str, Any] = dict(name=Path(one['path']).name, score=f'{one["mIoU"]:.1f}', views=[])
    image = _read(run, one.get('image'), cv2.IMREAD_COLOR)
    if image is None:
        return slide
    palette = np.asarray(run.record['palette'], np.uint8).reshape(-1, 3)[:, ::-1]
    slide['views'].append(('image', _data_url(image)))
    for kind in ('truth', 'prediction'):
        labels = _read(run, one.get(kind), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.shape != image.shape[:2]:
            continue
        known = labels < len(palette)
        colors = np.where(known[..., None], palette[np.where(known, labels, 0)], np.uint8(0))
        slide['views'].append((kind, _data_url(cv2.addWeighted(image, 0.35, colors, 0.65, 0))))
    return slide


def _read(run: RunReport, name: str | None, mode: int) -> Any | None:
    path = None if name is None else run.folder / name
    return cv2.imread(str(path), mode) if path is not None and path.is_file() else None


def _data_url(picture: Any) -> str:
    return (
        'data:image/jpeg;base64,'
        + base64.b64encode(cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()).decode()
    )


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> Markup:
    """Draw a figure of a size in inches; returns it for use inside of HTML."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    text = re.sub(r'<metadata>.*?</metadata>', '', buffer.getvalue(), flags=re.DOTALL)
    return Markup(text[text.index('<svg') :])  # matplotlib escapes what it writes
