"""Compare tuning methods: python tools/compare.py SUITE.py"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is not installed
import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.apis.command_line import DictAction

from benchmarks.compare import QUICK_SUITE, compare


def main() -> None:
    parser = argparse.ArgumentParser(description='Run methods x seeds, resumable, and tabulate them')
    parser.add_argument('suite', nargs='?', help='suite file, e.g. benchmarks/suites/camvid_search_lr.py')
    parser.add_argument('--quick', action='store_true', help='instead: a tiny trunk on MiniScenes, in minutes')
    parser.add_argument('--jobs', type=int, default=1, help='cells at a time; the CPU threads are shared among them')
    parser.add_argument('--out', help='folder (default: work_dirs/compare/SUITE)')
    parser.add_argument('--only', nargs='+', help='run only these methods; the table holds all finished cells')
    parser.add_argument('--seeds', nargs='+', type=int, help='run only these seeds')
    parser.add_argument('--minutes', type=float, help='stop after this time; the same command continues')
    parser.add_argument('--keep', action='store_true', help='keep the checkpoints')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='for all cells: key=value ...')
    args = parser.parse_args()
    if bool(args.suite) == args.quick:
        parser.error('give a suite file, or --quick')
    path = QUICK_SUITE if args.quick else args.suite
    compare(
        path,
        args.out,
        jobs=args.jobs,
        only=args.only,
        seeds=args.seeds,
        keep=args.keep,
        minutes=args.minutes,
        options=args.cfg_options,
    )


if __name__ == '__main__':
    main()
