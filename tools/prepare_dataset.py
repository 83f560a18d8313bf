"""Download and prepare a dataset: python tools/prepare_dataset.py ade20k"""

import argparse

import mmseg_davpt  # noqa: F401  (first: its shims)

from mmseg_davpt.datasets.prepare import SOURCES, DataError, prepare


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Download, check, unpack, convert and count; run it again to continue after an interruption'
    )
    parser.add_argument('name', choices=SOURCES, help='dataset')
    parser.add_argument('--root', default='data', help='folder of all datasets (default: data)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    source = SOURCES[args.name]
    print(f'{source.title}. License: {source.license}')
    try:
        folder = prepare(source, args.root)
    except (DataError, OSError, ValueError) as error:
        raise SystemExit(f'prepare_dataset: {error}') from error
    for pattern, number in source.counts.items():
        print(f'  {number:>7,}  {folder}/{pattern}')
    print(f'Ready: data_root={folder}')


if __name__ == '__main__':
    main()
