"""The report of one or several runs as one HTML file, without anything from outside."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from .report_figures import draw_attention, draw_class_bars, draw_confusion, draw_lines
from .run_report import RunReport, paired_differences


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
        classes=draw_class_bars(runs),
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
            parts.append((caption, label, draw_lines(runs, series, label)))

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


def _details(run: RunReport) -> dict[str, Any]:
    """What belongs to one run alone."""
    record = run.record
    return dict(
        name=run.name,
        folder=str(run.folder),
        confusion=draw_confusion(run),
        shown=[
            (group, [_slide(run, one) for one in record.get('shown', {}).get(group, ())]) for group in ('worst', 'best')
        ],
        legend=[
            (name, f'rgb({color[0]}, {color[1]}, {color[2]})')
            for name, color in zip(record['classes'], record['palette'])
        ],
        attention=[
            (f'Block {block}', draw_attention(run, int(block), one))
            for block, one in record.get('attention', {}).items()
        ],
        parameters=[
            (part, f'{trained:,}', f'{every:,}') for part, (trained, every) in record['parameters'].items() if every
        ],
        environment=[*record['versions'].items(), *record['environment'].items()],
        command=shlex.join(['python', *map(str, record['command'])]),
        config=run.config,
        images=sorted(record.get('images', ()), key=lambda one: one['mIoU']),
    )


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
