r"""Draw the picture of the README: an image, its classes, attention to prompts, and classes against prompts.

python -m benchmarks.overview_picture CONFIG TASK IMAGE --trunk WEIGHTS --classes tree road

The stored picture shows generated scenes. The guided block has as many prompts as there are classes, so that each class
has one:

PROMPTS="model.backbone.prompts.num=[20,20,20,20,20,20,20,20,20,20,20,16]"
TRUNK=weights/vit_small_patch14_dinov2.safetensors
RUN=work_dirs/davpt_upernet_miniscenes
python tools/get_weights.py vit_small_patch14_dinov2
python tools/train.py configs/davpt_upernet_miniscenes.py --cfg-options $PROMPTS \
    default_hooks.checkpoint.type=TaskFileHook
python -m benchmarks.overview_picture configs/davpt_upernet_miniscenes.py $RUN/iter_500.task.safetensors \
    data/miniscenes/seed0/images/validation/0006.jpg --trunk $TRUNK --classes tree road --cfg-options $PROMPTS
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.runner import Runner
from PIL import Image

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt import TaskSegmenter
from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.command_line import DictAction
from mmseg_davpt.apis.inference import load_segmentor
from mmseg_davpt.reports import PromptAttention, measure_attention
from mmseg_davpt.reports.overlay import draw_heat

BATCHES = 60  # for the table; MiniScenes has 60 validation images


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of the training')
    parser.add_argument('task', help='task file of a model with guided prompts')
    parser.add_argument('image', help='image file')
    parser.add_argument('--trunk', required=True, help='file with the weights of the trunk')
    parser.add_argument('--classes', nargs=2, required=True, metavar='CLASS', help='whose prompts are shown')
    parser.add_argument('--out', type=Path, default=Path('docs/images/overview.png'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    """Draw the picture."""
    args = parse_args()
    segmenter = TaskSegmenter.load(args.task, trunk=args.trunk)
    result = segmenter(args.image)
    panels = {'image': result.image, 'prediction': result.overlay(opacity=0.75, legend=False)}
    for name in args.classes:
        panels[f'attention to the prompt of "{name}"'] = draw_heat(result.image, segmenter.attention(args.image, name))
    cfg = load_config(args.config, {**(args.cfg_options or {}), 'model.backbone.pretrained': args.trunk})
    model = load_segmentor(cfg, args.task, 'cpu')
    loader = Runner.build_dataloader(cfg.val_dataloader)
    (attention,) = measure_attention(model, islice(loader, BATCHES)).values()

    figure = Figure(figsize=(12, 5.6), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=[1.5, 1])
    for axis, (title, pixels) in zip(left.subplots(2, 2).ravel(), panels.items()):
        axis.imshow(pixels)
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
    draw_table(right.subplots(), attention, result.names, result.palette)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    picture = Image.open(args.out).convert('RGB')
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=5).save(args.out, optimize=True)
    print(f'{args.out}: {args.out.stat().st_size / 1000:.0f} kB')


def draw_table(
    axis: Axes, attention: PromptAttention, names: tuple[str, ...], palette: tuple[tuple[int, int, int], ...]
) -> None:
    """Draw the attention of classes to prompts; a column for each prompt, in the order of the classes."""
    assert attention.assignment is not None  # guided prompts
    assigned = attention.assignment.tolist()
    rows = [index for index in range(len(names)) if attention.patches[index] > 0 and assigned[index] >= 0]
    columns = list(dict.fromkeys(assigned[index] for index in rows))
    columns += [prompt for prompt in range(attention.table.shape[1]) if prompt not in columns]
    table = (attention.table / attention.table.sum(dim=1, keepdim=True).clamp(min=1e-12))[rows][:, columns].numpy()
    picture = axis.imshow(100 * table, cmap='viridis', vmin=0)
    axis.figure.colorbar(picture, ax=axis, shrink=0.7, label='% of the attention to prompts', pad=0.03)
    axis.set_title('attention of the pixels of a class', fontsize=11)
    axis.set_xlabel('to the prompt of a class', fontsize=11)
    axis.set_yticks(range(len(rows)), [f'{names[index]}   ' for index in rows], fontsize=9)
    titles = ['/'.join(names[index] for index in rows if assigned[index] == prompt) for prompt in columns]
    axis.set_xticks(range(len(columns)), titles, rotation=90, fontsize=9)
    axis.tick_params(length=0)
    for row, index in enumerate(rows):
        color = tuple(np.asarray(palette[index]) / 255)
        axis.add_patch(
            Rectangle((-1.15, row - 0.35), 0.5, 0.7, facecolor=color, edgecolor='gray', lw=0.5, clip_on=False)
        )


if __name__ == '__main__':
    main()
