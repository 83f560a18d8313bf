"""Export a segmentor: python tools/export.py CONFIG CHECKPOINT --to full|task|timm|onnx|torch --out FILE"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.inference import load_segmentor
from mmseg_davpt.export import export_onnx, export_torch, save_full, save_task, save_timm


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--to', choices=['full', 'task', 'timm', 'onnx', 'torch'], required=True, help='what to write')
    parser.add_argument('--out', required=True, help='file to write')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='onnx, torch: size of the images')
    sizes.add_argument('--dynamic', action='store_true', help='onnx, torch: any multiple of the patch size')
    parser.add_argument('--no-normalize', action='store_true', help='onnx, torch: the input is normalized already')
    parser.add_argument('--trust-checkpoint', action='store_true', help='run the code that the checkpoint holds')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings: key=value ...')
    args = parser.parse_args()
    if args.to in ('onnx', 'torch') and not (args.size or args.dynamic):
        parser.error(f'--to {args.to} needs --size H W or --dynamic')
    if args.to in ('full', 'task', 'timm') and (args.size or args.dynamic or args.no_normalize):
        parser.error(f'--size, --dynamic and --no-normalize do not go with --to {args.to}')
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    model = load_segmentor(cfg, args.checkpoint, trust_checkpoint=args.trust_checkpoint)
    if args.to == 'full':
        save_full(model, cfg, args.out)
    elif args.to == 'task':
        save_task(model, cfg, args.out)
    elif args.to == 'timm':
        print(f'Load it with: {save_timm(model.backbone, args.out)}')
    else:
        export = dict(onnx=export_onnx, torch=export_torch)[args.to]
        errors = export(model, args.out, args.size, normalize=not args.no_normalize)
        for shape, error in errors.items():
            print(f'images {"x".join(map(str, shape))}: largest error of the logits {error:.1e}')
    print(f'Written: {args.out}')


if __name__ == '__main__':
    main()
