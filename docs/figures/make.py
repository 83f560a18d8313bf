"""Draw the figures of the docs with ``python docs/figures/make.py``.

``block.svg`` and ``guidance.svg`` show the method. ``front.svg`` and ``speed.svg`` are drawn from the measured rows and
tables in ``benchmarks/results``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev

from svg import BLUE, GRAY, GREEN, ORANGE, PURPLE, Drawing

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / 'benchmarks' / 'results'


def block() -> Drawing:
    """A prompted block, and the three forms in which prompts join its attention."""
    d = Drawing(
        1080, 610, 'A prompted block: prompts pass LN1 and the key and value projections and join the attention'
    )
    d.text(20, 30, 'A block with prompts (VPT-Deep, DA-VPT)', 18, 'start', bold=True)
    d.legend(560, 30, {'trained': 'trained', 'frozen': 'frozen', 'computed': 'computed'}, 130)

    # The tokens of the image.
    d.box(20, 95, 110, 70, ['tokens x', '(B, T + N, D)'], 'computed', 14)
    d.box(170, 110, 60, 40, 'LN1', 'frozen')
    d.arrow((130, 130), (170, 130))
    d.line((230, 130), (255, 130), (255, 230))
    for y, name in ((90, 'q'), (150, 'k'), (210, 'v')):
        d.box(285, y, 62, 40, f'W_{name}', 'frozen')
        d.arrow((255, y + 20), (285, y + 20))
    d.line((255, 130), (255, 110))
    # The prompts.
    d.box(20, 275, 110, 70, ['prompts P', '(M, D)'], 'trained', 14)
    d.box(170, 290, 60, 40, 'LN1', 'frozen')
    d.arrow((130, 310), (170, 310))
    d.line((230, 310), (255, 310))
    d.line((255, 290), (255, 350))
    for y, name in ((270, 'k'), (330, 'v')):
        d.box(285, y, 62, 40, f'W_{name}', 'frozen')
        d.arrow((255, y + 20), (285, y + 20))
    d.text(20, 390, 'the same LN1, W_k and W_v as above; no W_q and no MLP for prompts', 13, 'start', GRAY)
    # Attention.
    d.box(430, 90, 210, 280, [], 'computed')
    d.text(535, 200, 'attention', 16, bold=True)
    d.text(535, 230, 'softmax(Q [K_p; K]ᵀ / √d) [V_p; V]', 12.5)
    for y, name in ((110, 'Q'), (170, 'K'), (230, 'V'), (290, 'K_p'), (350, 'V_p')):
        color = ORANGE if 'p' in name else '#333333'
        d.arrow((347, y), (430, y), color=color, width=2.4 if 'p' in name else 1.8)
        d.text(388, y - 8, name, 15)
    # The rest of the block.
    x = 690
    for name, width in (('W_o', 55), ('LS1', 50)):
        d.box(x, 210, width, 40, name, 'frozen')
        d.arrow((x - 50 if x == 690 else x - 20, 230), (x, 230))
        x += width + 20
    d.arrow((x - 20, 230), (x + 4, 230))
    d.circle(x + 16, 230, 12, '#ffffff')
    d.text(x + 16, 236, '+', 17)
    d.arrow((150, 130), (150, 68), (x + 16, 68), (x + 16, 218))
    d.circle(150, 130, 2.5, '#333333')
    d.text(470, 60, 'residual stream', 13, color=GRAY)
    x += 28
    d.arrow((x, 230), (x + 24, 230))
    d.box(x + 24, 190, 72, 80, ['LN2', 'MLP', 'LS2'], 'frozen', 14)
    d.arrow((x + 96, 230), (x + 114, 230))
    d.circle(x + 126, 230, 12, '#ffffff')
    d.text(x + 126, 236, '+', 17)
    d.circle(x + 10, 230, 2.5, '#333333')
    d.arrow((x + 10, 230), (x + 10, 168), (x + 126, 168), (x + 126, 218))
    d.arrow((x + 138, 230), (x + 164, 230))
    d.text(x + 148, 285, 'next block', 13)
    d.text(x + 148, 302, '(its own prompts)', 13)

    # The three forms.
    d.text(20, 432, 'Three forms of the attention', 18, 'start', bold=True)
    forms = [
        (
            'VPT-Deep, DA-VPT',
            ['one softmax over prompts and tokens', 'softmax(Q [K_p; K]ᵀ / √d) [V_p; V]', 'trained: P'],
        ),
        (
            'gated (davpt_{}gated)',
            [
                'softmax(Q Kᵀ / √d) V',
                '+ g · softmax(Q K_pᵀ / √d) V_p',
                'trained: P and g per block; g = 0 at the start',
            ],
        ),
        (
            'residual values (davpt_{}residual)',
            [
                'a = mean over heads of softmax(Q K_pᵀ / √d)',
                'x_n += LS1(attention output) + Σ_m a_{nm} V_m',
                'trained: P and V_m per block; V_m = 0 at the start',
            ],
        ),
    ]
    for number, (title, lines) in enumerate(forms):
        left = 20 + number * 350
        d.box(left, 445, 335, 125, [], 'computed')
        d.text(left + 168, 472, title, 15, bold=True)
        for row, line in enumerate(lines):
            d.text(left + 168, 500 + 24 * row, line, 14, color=GRAY if row == 2 else '#1a1a1a')
    d.text(
        20, 597, 'T: class token and registers; N: patches; LS: LayerScale, where the trunk has it.', 13, 'start', GRAY
    )
    return d


CLASSES = {'sky': BLUE, 'tree': GREEN, 'road': PURPLE}
MASK = ['sssss', 'sstts', 'ttttr', 'rrrrr']


def guidance() -> Drawing:
    """From masks and tokens to prototypes, from class means to the assignment, and the metric loss."""
    d = Drawing(
        1080, 600, 'Guidance: class prototypes of the patches pull the prompt of their class and push the others'
    )
    d.text(20, 30, 'Guidance of a block', 18, 'start', bold=True)
    d.legend(560, 30, {'trained': 'trained', 'frozen': 'frozen', 'computed': 'computed', 'loss': 'loss'}, 120)

    # Masks -> fractions.
    for row, line in enumerate(MASK):
        for column, letter in enumerate(line):
            color = {'s': BLUE, 't': GREEN, 'r': PURPLE}[letter]
            d.rectangle(30 + 20 * column, 62 + 20 * row, 20, 20, color, '#ffffff')
    d.text(80, 162, 'mask, in patches', 13)
    d.box(190, 72, 170, 60, ['class fractions A', '(B, N, C)'], 'computed')
    d.arrow((130, 102), (190, 102))
    d.box(190, 195, 170, 60, ['tokens of the block Z', '(B, N, D)'], 'computed')
    d.box(20, 205, 110, 40, 'image', 'computed')
    d.arrow((130, 225), (190, 225))
    # Prototypes.
    d.box(
        430,
        110,
        200,
        110,
        ['prototypes', 'Σ_n A_{nc} Z_n / Σ_n A_{nc}', 'of each image,', 'of the whole batch'],
        'computed',
        14,
    )
    d.arrow((360, 102), (395, 102), (395, 150), (430, 150))
    d.arrow((360, 225), (395, 225), (395, 180), (430, 180))
    # Assignment.
    d.box(430, 275, 200, 55, ['class means S (C, D)', 'of all batches so far'], 'computed', 14)
    d.box(430, 365, 200, 55, ['spherical k-means:', 'prompt a(c) of class c'], 'computed', 14)
    d.arrow((530, 220), (530, 275), dashed=True)
    d.text(540, 252, 'no gradient', 13, 'start', GRAY)
    d.arrow((530, 330), (530, 365))
    # Prompts.
    d.box(20, 455, 110, 60, ['prompts P', '(M, D)'], 'trained', 14)
    d.box(190, 455, 170, 60, ['LN1, then W_q (paper)', 'or W_k (recipe)'], 'frozen', 14)
    d.arrow((130, 485), (190, 485), color=ORANGE, width=2.4)

    # The metric space.
    cx, cy, radius = 855, 205, 118
    d.text(cx, 68, 'metric loss on cosines', 15, bold=True)
    d.circle(cx, cy, radius, '#fbfbfb', GRAY)

    def place(angle: float, r: float = radius) -> tuple[float, float]:
        """A point at an angle in degrees, ``r`` from the center."""
        return cx + r * math.cos(math.radians(angle)), cy - r * math.sin(math.radians(angle))

    angles = {'sky': (120, 160), 'tree': (20, -22), 'road': (262, 232)}
    for name, (sample, prompt) in angles.items():
        x, y = place(sample)
        px, py = place(prompt)
        ax, ay = place(prompt + (sample - prompt) * 0.24, radius + 16)
        bx, by = place(prompt + (sample - prompt) * 0.72, radius + 16)
        d.arrow((ax, ay), (bx, by), color=CLASSES[name], width=2.4)
        d.circle(x, y, 8, CLASSES[name])
        d.rectangle(px - 8, py - 8, 16, 16, '#FDF0D5', ORANGE)
        d.rectangle(px - 4, py - 4, 8, 8, CLASSES[name])
    for near, far in (('sky', 'tree'), ('tree', 'road'), ('road', 'sky')):
        x, y = place(angles[near][0], radius - 14)
        px, py = place(angles[far][1], radius - 16)
        d.arrow(
            (x + 0.55 * (px - x), y + 0.55 * (py - y)),
            (x + 0.93 * (px - x), y + 0.93 * (py - y)),
            color=GRAY,
            dashed=True,
        )
    d.circle(720, 352, 7, '#bbbbbb')
    d.text(735, 357, 'prototype of a class', 13, 'start')
    d.rectangle(713, 368, 14, 14, '#FDF0D5', ORANGE)
    d.text(735, 380, 'prompt with that class', 13, 'start')
    d.line((895, 352), (930, 352), width=2.4)
    d.text(938, 357, 'pull together', 13, 'start')
    d.line((895, 375), (930, 375), dashed=True, color=GRAY)
    d.text(938, 380, 'push apart', 13, 'start')
    d.arrow((630, 165), (712, 165))
    d.arrow((630, 392), (660, 392), (660, 245), (712, 245))
    d.arrow((360, 485), (690, 485), (690, 300), (745, 300), color=ORANGE, width=2.4)
    d.box(715, 415, 345, 46, 'L = L_{decode} + L_{aux} + β L(X, P) + λ L(proto, P)', 'loss', 14)
    d.arrow((cx + 20, 392), (cx + 20, 415), color=GREEN)
    for row, line in enumerate(
        (
            'L(X, P): prototypes of each image; Z is the attention output (paper) or the queries (recipe).',
            'L(proto, P): prototypes of the batch; Z is the input of the attention, projected to queries.',
        )
    ):
        d.text(20, 555 + 22 * row, line, 14, 'start', GRAY)
    return d


# Method of frame A -> its label, the place of the label in both panels, and its case in the table of step times.
FRONT = {
    'head only': ('head only', (12, 5, 'start'), (12, 5, 'start'), 'head only'),
    'VPT-Deep': ('VPT-Deep', (12, 5, 'start'), (-12, 5, 'end'), 'VPT-Deep k/v, M=20'),
    'gated DA-VPT': ('gated DA-VPT', (-12, 12, 'end'), (-12, 12, 'end'), 'gated DA-VPT'),
    'bias': ('bias', (-12, 5, 'end'), (12, 10, 'start'), 'bias'),
    'residual DA-VPT': ('residual DA-VPT', (12, 24, 'start'), (-18, 14, 'end'), 'residual DA-VPT'),
    'residual DA-VPT + LoRA': (
        'residual DA-VPT + LoRA',
        (10, -10, 'start'),
        (12, 5, 'start'),
        'residual DA-VPT, M=10, and LoRA 6',
    ),
    'LoRA q,v': ('LoRA', (-12, -8, 'end'), (10, -14, 'start'), 'LoRA'),
    'AdaptFormer': ('AdaptFormer', (12, 8, 'start'), (-12, -6, 'end'), 'AdaptFormer'),
    'full': ('full tuning', (-14, 5, 'end'), (-14, 5, 'end'), 'full tuning'),
}
OURS = ('gated DA-VPT', 'residual DA-VPT', 'residual DA-VPT + LoRA')


def front() -> Drawing:
    """MIoU in frame A against trainable parameters in the trunk, and against the time of a step."""
    rows: dict[str, list[dict]] = {}
    for name in ('frame_camvid_linear', 'camvid_main'):  # the first file is complete for a method that it has
        known = set(rows)
        for row in map(json.loads, (RESULTS / f'{name}.jsonl').read_text().splitlines()):
            if row['method'] not in known:
                rows.setdefault(row['method'], []).append(row)
    points = {
        name: (
            mean(row['tuned_trunk'] for row in rows[name]),
            mean(row['mIoU'] for row in rows[name]),
            stdev(row['mIoU'] for row in rows[name]),
        )
        for name in FRONT
    }
    steps = _measured('speed.md', 'vit_small_patch14_dinov2, 512x512, B=1, float32, no head', 'methods')
    d = Drawing(1200, 480, 'CamVid: mIoU against trainable parameters in the trunk, and against the time of a step')
    top, bottom, lowest, highest = 20, 410, 51.0, 69.0
    left, right = (80, 580), (650, 1130)
    slowest = steps['full tuning'][0]

    def place_count(count: float) -> float:
        """Logarithmic from 20,000 on; 0 has a separate place on the left."""
        if count == 0:
            return left[0] + 40
        return left[0] + 90 + (left[1] - left[0] - 110) * math.log(count / 2e4) / math.log(3e7 / 2e4)

    def place_share(share: float) -> float:
        return right[0] + (right[1] - right[0]) * (share - 0.25) / 0.85

    def place_y(value: float) -> float:
        return bottom - (bottom - top) * (value - lowest) / (highest - lowest)

    for start, end in (left, right):
        d.line((start, top), (start, bottom), (end, bottom), width=1.2)
        for value in range(52, 69, 4):
            d.line((start, place_y(value)), (end, place_y(value)), color='#e5e5e5', width=1)
            d.text(start - 10, place_y(value) + 5, f'{value}', 14, 'end')
    for count, label in ((0, '0'), (1e5, '0.1 M'), (1e6, '1 M'), (1e7, '10 M')):
        x = place_count(count)
        d.line((x, bottom), (x, bottom + 6), width=1.2)
        d.text(x, bottom + 24, label, 14)
    for share in (0.4, 0.6, 0.8, 1.0):
        x = place_share(share)
        d.line((x, bottom), (x, bottom + 6), width=1.2)
        d.text(x, bottom + 24, f'{share:g}', 14)
    d.text(sum(left) / 2, bottom + 54, 'trainable parameters in the trunk (logarithmic)', 15)
    d.text(sum(right) / 2, bottom + 54, 'time of a step / full tuning', 15)
    d.text(left[0] + 10, top + 10, 'mIoU, mean of seeds ± standard deviation', 15, 'start')
    for name, (count, score, spread) in points.items():
        label, *labels, case = FRONT[name]
        color = ORANGE if name in OURS else BLUE
        for x, (dx, dy, anchor) in zip((place_count(count), place_share(steps[case][0] / slowest)), labels):
            y = place_y(score)
            d.line((x, place_y(score - spread)), (x, place_y(score + spread)), color=color)
            if name in OURS:
                d.rectangle(x - 6, y - 6, 12, 12, color, '#333333')
            else:
                d.circle(x, y, 6, color, color, 2)
            d.text(x + dx, y + dy, label, 14, anchor, bold=name in OURS, rim=True)
    d.text(right[1], bottom - 14, 'squares: methods of this project', 13, 'end', GRAY)
    return d


def _measured(page: str, title: str, marker: str) -> dict[str, tuple[float, float]]:
    """Case -> seconds and MB with AdamW's state, from a table of stored measurements."""
    text = (RESULTS / page).read_text().split(f'<!-- {marker}/trunk -->')[1].split(f'### {title}\n')[1]
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.strip().split('\n\n')[0].splitlines()
    ]
    return {row[0]: (float(row[2]), float(row[5].replace('-', 'nan'))) for row in cells[2:]}


SPEED = {
    'full tuning': 'full tuning, float32',
    'residual DA-VPT': 'residual DA-VPT',
    'residual DA-VPT, bfloat16 trunk': 'residual DA-VPT, bfloat16 trunk',
    'residual DA-VPT, last third': 'residual DA-VPT, last 4 blocks',
    'residual DA-VPT, last third, bfloat16 trunk': 'last 4 blocks, bfloat16 trunk',
}


def speed() -> Drawing:
    """Time and memory of a step on ViT-B/16, from the first table in ``speed_half_precision.md``."""
    measured = _measured('speed_half_precision.md', 'vit_base_patch16_224, 512x512, B=1, float32, no head', 'half')
    d = Drawing(900, 260, 'ViT-B/16: time and peak memory of a step')
    columns = ((300, 'seconds of a step', 0, 8.5), (610, 'peak memory with AdamW, MB', 1, 1850.0))
    for left, title, which, most in columns:
        d.text(left, 28, title, 15, 'start', bold=True)
        for number, (name, label) in enumerate(SPEED.items()):
            y = 44 + 34 * number
            value = measured[name][which]
            if which == 0:
                d.text(left - 12, y + 18, label, 14, 'end')
            d.rectangle(left, y, 230 * value / most, 24, ORANGE if 'bfloat16' in name else BLUE)
            d.text(left + 230 * value / most + 8, y + 18, f'{value:.2f}' if which == 0 else f'{value:.0f}', 14, 'start')
    d.text(
        20,
        245,
        'One image of 512x512, CPU time of one core; a step is forward and backward of the trunk. Orange: bfloat16.',
        13,
        'start',
        GRAY,
    )
    return d


def figures() -> dict[str, str]:
    """File name -> content."""
    return {f'{make.__name__}.svg': str(make()) for make in (block, guidance, front, speed)}


if __name__ == '__main__':
    for name, content in figures().items():
        (HERE / name).write_text(content)
        print(HERE / name)
