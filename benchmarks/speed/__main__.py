"""The command line: ``python -m benchmarks.speed [--parts PART ...]``, or ``--device cuda --budget 8m``."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import torch

from benchmarks.speed import CASES, PARTS, Options, run_benchmark, run_overview
from mmseg_davpt.apis.command_line import DictAction


def parse_args() -> argparse.Namespace:
    """Read the command line."""
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
    add('--cpu-time', action='store_true', help='CPU time in place of wall time, for a machine with other work')
    add('--head', action='store_true', help='trunk: the same light head behind every case')
    add('--only', nargs='+', choices=CASES, metavar='CASE', help='trunk, profile: these cases')
    add('--no-memory', dest='memory', action='store_false', help='trunk: time only')
    add('--image', type=int, nargs=2, default=default.image, help='evaluation, prediction: height, width')
    add('--slide-batch', type=int, nargs='+', default=default.slide_batch, help='evaluation: windows at a time')
    add('--ranks', type=int, default=default.ranks, help='assignment: gloo processes')
    add('--bandwidth', type=float, default=default.bandwidth, help='assignment: of the projection, GB/s per GPU')
    add('--config', default=default.config, help='data: the config with the pipeline')
    add('--cfg-options', nargs='+', action=DictAction, help='data: override settings of the config')
    add('--out', default=default.out, help='folder')
    add('--doc', dest='document', help='put the tables of --out into this Markdown file')
    add('--budget', type=read_budget, help='one table in bfloat16 autocast, in about this time, such as 8m; resumes')
    add('--quick', action='store_true', help='a tiny trunk, two rounds: shows that it runs')
    return parser.parse_args()


def read_budget(text: str) -> float:
    """``90``, ``90s`` or ``8m`` -> seconds."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([sm]?)', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text!r}: expected a time such as 8m or 480s')
    return float(match[1]) * (60 if match[2] == 'm' else 1)


def main(program: str = 'python -m benchmarks.speed') -> None:
    """Run the command line.

    Args:
        program: How it was called, recorded with the results.
    """
    values = vars(parse_args())
    quick, budget = values.pop('quick'), values.pop('budget')
    command = f'{program} {shlex.join(sys.argv[1:])}'
    if budget is None:
        options = Options(**values)
        run_benchmark(options.quick() if quick else options, command)
        return
    options = Options(**values | dict(dtype='bfloat16'))
    options = options.quick() if quick else options
    torch.set_num_threads(options.threads or torch.get_num_threads())
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    height, width = options.image
    done = run_overview(options.workload, (height, width), options.slide_batch, options.timed, budget, out, command)
    sys.exit(0 if done else 'The budget is used up: run the same command again to go on')


if __name__ == '__main__':
    main()
