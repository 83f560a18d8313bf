"""Segment images: python tools/infer.py CONFIG CHECKPOINT IMAGES... --out FOLDER"""

import argparse
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
import torch
from mmseg_davpt.apis.command_line import DictAction

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.inference import find_images, segment_images
from mmseg_davpt.datasets.image_files import MAX_PIXELS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Segment images: index masks and overlays')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', help='images or folders of images')
    parser.add_argument('--out', default='predictions', help='folder for masks/ and overlays/')
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the classes in an overlay, 0 to 1')
    parser.add_argument(
        '--max-pixels', type=int, default=MAX_PIXELS, help='largest image (default: %(default)s pixels)'
    )
    parser.add_argument('--device', default='cuda:0' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that the checkpoint holds')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    images = find_images(args.images)
    failed = segment_images(
        cfg,
        args.checkpoint,
        images,
        Path(args.out),
        opacity=args.opacity,
        device=args.device,
        max_pixels=args.max_pixels,
        trust_checkpoint=args.trust_checkpoint,
    )
    print(f'{len(images) - len(failed)} of {len(images)} images segmented: {args.out}/masks, {args.out}/overlays')
    if failed:
        raise SystemExit('Not segmented:\n' + '\n'.join(f'  {path}: {why}' for path, why in failed.items()))


if __name__ == '__main__':
    main()
