"""Show what prompts attend to: python tools/visualize_prompts.py CONFIG CHECKPOINT IMAGES... --out FOLDER"""

import argparse
from itertools import islice
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.runner import Runner

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.command_line import DictAction
from mmseg_davpt.apis.inference import find_images, load_segmentor
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.models import PromptedEncoderDecoder
from mmseg_davpt.reports import (
    attention_maps,
    draw_class_table,
    draw_prompt_maps,
    draw_prompt_space,
    measure_attention,
    prompt_space,
    prompt_titles,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Draw the attention of patches to prompts')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='*', help='images or folders of images for the maps')
    parser.add_argument('--compare', metavar='CHECKPOINT', help='a second checkpoint, drawn beside the first')
    parser.add_argument('--compare-config', metavar='CONFIG', help='its config, if it is another one')
    parser.add_argument('--names', nargs=2, metavar='NAME', help='titles of the two checkpoints')
    parser.add_argument(
        '--blocks', type=int, nargs='+', default=[-1], help='which of the prompted blocks (default: -1)'
    )
    parser.add_argument('--batches', type=int, default=20, help='validation batches for classes and prototypes')
    parser.add_argument('--projection', choices=['pca', 'umap'], default='pca', help='of prompts and prototypes')
    parser.add_argument('--out', default='prompt_attention', help='folder for the figures')
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that the checkpoints hold')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    files = [(args.config, args.checkpoint)]
    if args.compare:
        files.append((args.compare_config or args.config, args.compare))
    configs = [load_config(config, args.cfg_options) for config, _ in files]
    check_data_roots(configs[0])
    images, out = find_images(args.images, skip=args.out), Path(args.out)
    models = {}
    for cfg, (_, file), name in zip(configs, files, args.names or ('checkpoint', 'compared')):
        models[name] = load_segmentor(cfg, file, args.device, args.trust_checkpoint)
    classes = models[next(iter(models))].dataset_meta['classes']
    loader = Runner.build_dataloader(configs[0].val_dataloader)
    for block in args.blocks:
        tables = {}
        for name, model in models.items():
            (tables[name],) = measure_attention(model, islice(loader, args.batches), [block]).values()
            figures = ', '.join(f'{key} {value:.2f}' for key, value in tables[name].describe().items())
            print(f'{name}, block {block}: {figures}')
        draw_class_table(tables, classes, out / f'classes_block{block}.png')
        spaces = {name: prompt_space(model, islice(loader, args.batches), block) for name, model in models.items()}
        draw_prompt_space(spaces, classes, out / f'space_block{block}.png', args.projection)
        for path, place in images.items():
            panels = {}
            for name, model in models.items():
                picture, inputs = read_image(model, path)
                (maps,) = attention_maps(model, inputs, [block]).values()
                panels[name] = maps[0], prompt_titles(len(maps[0]), tables[name].assignment, classes)
            draw_prompt_maps(picture, panels, out / place.with_name(f'{place.stem}_block{block}.png'))
    print(f'Figures: {out}')


def read_image(model: PromptedEncoderDecoder, path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """The image as the model gets it: RGB ``(H, W, 3)`` and normalized ``(1, 3, H, W)``, padded to whole patches."""
    steps = [step for step in model.cfg.test_pipeline if 'LoadAnnotations' not in step.type]
    data = Compose(steps)(dict(img_path=str(path)))
    pixels = data['inputs']  # BGR, uint8
    padding = (0, -pixels.shape[2] % model.backbone.patch_size[1], 0, -pixels.shape[1] % model.backbone.patch_size[0])
    batch = model.data_preprocessor(dict(inputs=[pixels], data_samples=[data['data_samples']]))
    return F.pad(pixels, padding).flip(0).permute(1, 2, 0).numpy(), F.pad(batch['inputs'], padding)


if __name__ == '__main__':
    main()
