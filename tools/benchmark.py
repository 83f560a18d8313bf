"""Measure speed and memory: python tools/benchmark.py [--parts trunk guidance assignment evaluation data profile]"""

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is not installed
import mmseg_davpt  # noqa: F401  (first: its shims)
import torch
from mmseg_davpt.apis.command_line import DictAction

from benchmarks.speed import CASES, PARTS, Options, run_benchmark


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time and peak memory on the same work in one run, against goals')
    add, default = parser.add_argument, Options(())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--parts', nargs='*', choices=PARTS, default=list(PARTS), help='default: all; none: only --doc')
    add('--arch', nargs='+', default=default.arch, help='timm names; parts other than trunk take the last')
    add('--size', type=int, default=default.size, help='height and width of images and windows, pixels')
    add('--batch', type=int, nargs='+', default=default.batch, help='parts other than trunk take the last')
    add('--dtype', choices=['float32', 'bfloat16'], default=default.dtype, help='bfloat16: autocast')
    add('--device', choices=['cpu', 'cuda'], default=device)
    add('--threads', type=int, default=torch.get_num_threads(), help='of the CPU')
    add('--rounds', type=int, default=default.rounds, help='measured rounds, after one that warms up')
    add('--head', action='store_true', help='trunk: the same light head behind every case')
    add('--only', nargs='+', choices=CASES, metavar='CASE', help='trunk, profile: these cases')
    add('--no-memory', dest='memory', action='store_false', help='trunk: time only')
    add('--image', type=int, nargs=2, default=default.image, help='evaluation: height, width')
    add('--slide-batch', type=int, nargs='+', default=default.slide_batch, help='evaluation: windows at a time')
    add('--ranks', type=int, default=default.ranks, help='assignment: gloo processes')
    add('--bandwidth', type=float, default=default.bandwidth, help='assignment: of the projection, GB/s per GPU')
    add('--config', default=default.config, help='data: the config with the pipeline')
    add('--cfg-options', nargs='+', action=DictAction, help='data: override settings of the config')
    add('--out', default=default.out, help='folder')
    add('--doc', dest='document', help='put the tables of --out into this Markdown file')
    add('--quick', action='store_true', help='a tiny trunk, two rounds: shows that it runs')
    return parser.parse_args()


def main() -> None:
    values = vars(parse_args())
    quick = values.pop('quick')
    options = Options(**values)
    run_benchmark(options.quick() if quick else options, f'python tools/benchmark.py {shlex.join(sys.argv[1:])}')


if __name__ == '__main__':
    main()
