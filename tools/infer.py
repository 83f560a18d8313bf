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
    parser = argparse.ArgumentParser(description='Segment images: index masks, overlays and scores')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', help='images, or folders that are searched with all subfolders')
    parser.add_argument('--out', default='predictions', help='folder for masks/, overlays/ and scores/')
    parser.add_argument('--opacity', type=float, default=0.5, help='opacity of the classes in an overlay, 0 to 1')
    parser.add_argument('--no-legend', action='store_true', help='no names of classes below the overlays')
    parser.add_argument('--palette', action='store_true', help='masks that viewers show in the colors of the classes')
    parser.add_argument(
        '--scores', action='store_true', help='also write the probability of each class chosen, 0 to 255'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images of the same size that run at once')
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
    images = find_images(args.images, skip=args.out)
    failed = segment_images(
        cfg,
        args.checkpoint,
        images,
        Path(args.out),
        opacity=args.opacity,
        device=args.device,
        max_pixels=args.max_pixels,
        trust_checkpoint=args.trust_checkpoint,
        batch_size=args.batch_size,
        palette=args.palette,
        scores=args.scores,
        legend=not args.no_legend,
    )
    folders = ['masks', 'overlays', *(['scores'] if args.scores else [])]
    print(f'{len(images) - len(failed)} of {len(images)} images segmented: {args.out}/{{{",".join(folders)}}}')
    if failed:
        raise SystemExit('Not segmented:\n' + '\n'.join(f'  {path}: {why}' for path, why in failed.items()))


if __name__ == '__main__':
    main()
