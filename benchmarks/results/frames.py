"""Tables of the frames and of the search from the stored rows: in ``docs/results.md`` and the notes beside this file.

python -m benchmarks.results.frames
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.compare.table import paired_interval

RESULTS = Path(__file__).resolve().parent
NOTES = ('comparison', 'search_residual', 'speed_half_precision')
PAGES = (RESULTS.parents[1] / 'docs/results.md', *(RESULTS / f'{name}.md' for name in NOTES))
# Frame -> its title, and its rows files. The first file is complete for a method that it has.
FRAMES = {
    'A': ('CamVid, linear', ('frame_camvid_linear', 'camvid_main')),
    'B': ('CamVid, UPerNet', ('frame_camvid_upernet',)),
    'C': ('CCP, linear', ('frame_ccp_linear',)),
    'D': ('CCP, UPerNet', ('frame_ccp_upernet',)),
}
METHODS = (
    'head only', 'VPT-Deep', 'gated DA-VPT', 'residual prompts', 'residual DA-VPT', 'residual DA-VPT + LoRA',
    'bias', 'LoRA q,v', 'LoRA q,v, guided', 'AdaptFormer', 'DoRA q,v', 'Convpass', 'full',
)  # fmt: skip
# Differences of the short table: a method, and the one that it is compared with.
PAIRS = (
    ('residual DA-VPT', 'VPT-Deep'),
    ('residual DA-VPT', 'gated DA-VPT'),
    ('residual DA-VPT', 'residual prompts'),
    ('residual DA-VPT', 'LoRA q,v'),
    ('residual DA-VPT + LoRA', 'LoRA q,v'),
    ('residual DA-VPT', 'full'),
)
BASELINE = 'LoRA q,v'
# Variants with a cheaper step, in frame A: method -> variants.
CHEAPER = {
    'residual DA-VPT': ('bfloat16 trunk', 'last half', 'last third'),
    'LoRA q,v': ('last half', 'last third'),
    'AdaptFormer': ('last half', 'last third'),
}
# How classes share prompts, in frame C.
SHARING = {
    'residual DA-VPT': (
        'a prompt per class', '10 clusters', 'fixed assignment', 'not centered', 'balanced prototypes',
    ),
}  # fmt: skip
# Tables of ``search_residual.md``: marker -> methods of the suite camvid_search_residual; the first is the baseline.
SEARCH = {
    'search values': (
        'recipe', 'after the MLP', 'after both', 'scaled scores and heads', 'null prompt', 'top 4', 'sigmoid', 'ReLU',
        'free keys', 'values of rank 16, shared', 'semantic values, 0.03', 'semantic values, 0.3',
    ),
    'search guidance': (
        'recipe', 'unguided, random prompts', 'unguided', 'random prompts', 'weight 0.005', 'weight 0.5',
        'last four blocks guided', 'all blocks guided', 'attn_out - query', 'not centered',
    ),
    'search numbers': ('recipe', '5 prompts', '10 prompts', '50 prompts', 'last 6 blocks', 'last 4 blocks'),
    'search mixtures': (
        'recipe', '+ LoRA 4', '+ LoRA 8', '10 prompts + LoRA 6', 'last 6 blocks + LoRA 6', '+ LoRA 8, unguided',
        '10 prompts + LoRA 6, unguided', '+ AdaptFormer 8', '+ AdaptFormer', '+ bias', '+ bias and norm',
    ),
    'search LoRA': (
        'LoRA 8 at 0.002', 'recipe', '+ LoRA 8', '10 prompts + LoRA 6', 'LoRA 8, guided proxies',
    ),
    'search rates': (
        'recipe', 'all at 5e-4', 'all at 1e-3', 'all at 4e-3', 'values at 5e-4', 'prompts at 5e-4', 'prompts at 8e-3',
        'values decayed', 'warm-up of 80',
    ),
    'search other rates': tuple(
        f'{method} at {rate:g}'
        for method in ('LoRA 8', 'AdaptFormer', 'bias', 'DoRA 8', 'Convpass')
        for rate in (2e-3, 1e-3, 4e-3)
    ),
}  # fmt: skip
Rows = dict[str, dict[int, Mapping[str, Any]]]  # method -> seed -> row


def load_rows(frame: str) -> Rows:
    """Rows of a frame, for the methods of :data:`METHODS`."""
    found: Rows = {}
    for name in reversed(FRAMES[frame][1]):
        found |= {method: runs for method, runs in _read(name).items() if method in METHODS}
    return found


def _read(name: str) -> Rows:
    rows: Rows = {}
    path = RESULTS / f'{name}.jsonl'
    for row in map(json.loads, path.read_text().splitlines() if path.is_file() else ()):
        rows.setdefault(row['method'], {})[row['seed']] = row
    return rows


def _measured() -> dict[str, Rows]:
    return {frame: rows for frame in FRAMES if (rows := load_rows(frame))}


def format_scores(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Mean and standard deviation of mIoU over the seeds; their number, unless it is 3."""
    scores = [row['mIoU'] for row in rows.values()]
    if not scores:
        return '-'
    spread = f' ± {stdev(scores):.2f}' if len(scores) > 1 else ''
    number = '' if len(scores) == 3 else f' ({len(scores)})'
    return f'{mean(scores):.2f}{spread}{number}'


def format_difference(rows: Rows, method: str, other: str) -> str:
    """Mean difference over the common seeds with Student's 95 % interval, and the number of seeds, unless it is 3."""
    ours, theirs = rows.get(method, {}), rows.get(other, {})
    differences = np.array([ours[seed]['mIoU'] - theirs[seed]['mIoU'] for seed in sorted(ours) if seed in theirs])
    if not len(differences):
        return '-'
    interval = paired_interval(differences)
    limits = '' if interval is None else f' [{interval[0]:+.2f}, {interval[1]:+.2f}]'
    number = '' if len(differences) == 3 else f' ({len(differences)})'
    return f'{differences.mean():+.2f}{limits}{number}'


def format_count(rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Trainable parameters of the trunk."""
    count = next(iter(rows.values()))['tuned_trunk']
    return f'{count / 1e6:.3f} M' if count else '0'


def scores_table() -> str:
    """Methods against frames."""
    frames = _measured()
    titles = [f'{frame}: {FRAMES[frame][0]}' for frame in frames]
    lines = [_line('method', 'trainable', *titles), _line(*['---'] * (2 + len(titles)))]
    for method in METHODS:
        cells = [rows.get(method, {}) for rows in frames.values()]
        if any(cells):
            count = format_count(next(filter(None, cells)))
            lines.append(_line(method, count, *map(format_scores, cells)))
    return '\n'.join(lines)


def pairs_table() -> str:
    """Differences of :data:`PAIRS` against frames."""
    frames = _measured()
    lines = [_line('difference', *frames), _line(*['---'] * (1 + len(frames)))]
    for method, other in PAIRS:
        cells = [format_difference(rows, method, other) for rows in frames.values()]
        if any(cell != '-' for cell in cells):
            lines.append(_line(f'{method} − {other}', *cells))
    return '\n'.join(lines)


def frame_table(frame: str) -> str:
    """All seeds of one frame."""
    rows = load_rows(frame)
    lines = [
        _line('method', 'trainable', 'seeds 0, 1, ...', 'mIoU', 'frequent', f'against {BASELINE}, 95 %'),
        _line(*['---'] * 6),
    ]
    for method in METHODS:
        if method in rows:
            runs = [rows[method][seed] for seed in sorted(rows[method])]
            scores = ', '.join(f'{run["mIoU"]:.2f}' for run in runs)
            frequent = f'{mean(run["frequent_mIoU"] for run in runs):.2f}'
            difference = '-' if method == BASELINE else format_difference(rows, method, BASELINE)
            count, mean_score = format_count(rows[method]), format_scores(rows[method])
            lines.append(_line(method, count, scores, mean_score, frequent, difference))
    return '\n'.join(lines)


def variants_table(rows: Rows, variants: Mapping[str, Sequence[str]], plain: str) -> str:
    """Variants of methods against the method itself, which the table calls ``plain``."""
    lines = [_line('method', 'variant', 'trainable', 'mIoU', 'difference, 95 %'), _line(*['---'] * 5)]
    for method, names in variants.items():
        lines.append(_line(method, plain, format_count(rows[method]), format_scores(rows[method]), '-'))
        for variant in names:
            name = f'{method}, {variant}'
            runs = rows.get(name, {})
            if runs:
                difference = format_difference(rows, name, method)
                lines.append(_line(method, variant, format_count(runs), format_scores(runs), difference))
    return '\n'.join(lines)


def search_table(methods: Sequence[str]) -> str:
    """Variants of the search against the first one."""
    rows, baseline = _read('camvid_search_residual'), methods[0]
    lines = [_line('variant', 'trainable', 'seeds 0, 1, ...', f'against {baseline}, 95 %'), _line(*['---'] * 4)]
    for method in methods:
        runs = rows.get(method, {})
        if runs:
            scores = ', '.join(f'{runs[seed]["mIoU"]:.2f}' for seed in sorted(runs))
            difference = '-' if method == baseline else format_difference(rows, method, baseline)
            lines.append(_line(method, format_count(runs), scores, difference))
    return '\n'.join(lines)


def tables() -> dict[str, str]:
    """Marker in a page -> table."""
    long = {f'frame {frame}': frame_table(frame) for frame in _measured()}
    search = {marker: search_table(methods) for marker, methods in SEARCH.items()}
    return {
        'scores': scores_table(),
        'differences': pairs_table(),
        'cheaper steps': variants_table(load_rows('A') | _read('camvid_speed'), CHEAPER, 'all blocks'),
        'sharing': variants_table(_read('frame_ccp_linear'), SHARING, '20 clusters'),
        **long,
        **search,
    }


def fill(text: str) -> str:
    """Put each table between ``<!-- NAME -->`` and ``<!-- end -->``."""
    known = tables()
    return re.sub(
        r'(<!-- ([\w ]+) -->\n).*?(<!-- end -->)',
        lambda match: f'{match[1]}{known[match[2]]}\n{match[3]}' if match[2] in known else match[0],
        text,
        flags=re.S,
    )


def _line(*cells: str) -> str:
    return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    for page in PAGES:
        page.write_text(fill(page.read_text()))
        print(page)
