"""Write a report of one or several runs: python tools/report.py WORK_DIR... --out report.html"""

import argparse
from pathlib import Path

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.files import write_atomically
from mmseg_davpt.reports.report_page import make_page
from mmseg_davpt.reports.run_report import ReportError, read_run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write a report of one or several runs as one HTML file')
    parser.add_argument('work_dirs', nargs='+', help='work folders of trainings; the first is compared with the others')
    parser.add_argument('--out', default='report.html', help='file to write (default: report.html)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        runs = [read_run(folder) for folder in args.work_dirs]
    except ReportError as error:
        raise SystemExit(str(error)) from None
    write_atomically(args.out, make_page(runs).encode())
    print(f'Report: {args.out} ({Path(args.out).stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
