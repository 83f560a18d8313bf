"""Compare tuning methods: python tools/compare.py SUITE.py"""

import argparse
import fcntl
import json
import os
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is not installed
import mmseg_davpt  # noqa: F401  (first: its shims)
import torch
from mmengine.config import DictAction
from tqdm import tqdm

from benchmarks.compare import Cell, Suite, format_table, load_suite, plot, run_cell, summarise
from mmseg_davpt.datasets import check_data_roots

QUICK = Path(__file__).parents[1] / 'benchmarks/suites/quick.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Run methods x seeds, resumable, and tabulate them')
    parser.add_argument('suite', nargs='?', help='suite file, e.g. benchmarks/suites/camvid_search_lr.py')
    parser.add_argument('--quick', action='store_true', help='instead: a tiny trunk on MiniScenes, in minutes')
    parser.add_argument('--jobs', type=int, default=1, help='cells at a time; the CPU threads are shared among them')
    parser.add_argument('--out', help='folder (default: work_dirs/compare/SUITE)')
    parser.add_argument('--only', nargs='+', help='run only these methods; the table holds all that have finished')
    parser.add_argument('--keep', action='store_true', help='keep the checkpoints')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='for all cells: key=value ...')
    return parser.parse_args()


def work(cell: Cell, options: dict, folder: Path, threads: int, keep: bool) -> dict:
    """Run one cell in a process of its own, silently: what it prints goes to its folder."""
    torch.set_num_threads(threads)
    log = os.open(folder / 'cell.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError as error:
        raise RuntimeError('another process is running this cell') from error
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    return run_cell(cell.config(options), cell.method, folder, keep)


def main() -> None:
    args = parse_args()
    if bool(args.suite) == args.quick:
        raise SystemExit('give a suite file, or --quick')
    path = QUICK if args.quick else Path(args.suite)
    suite = load_suite(path)
    if unknown := set(args.only or ()) - set(suite.methods):
        raise SystemExit(f'--only: {", ".join(unknown)} is none of {", ".join(suite.methods)}')
    out = Path(args.out or Path('work_dirs/compare', path.stem))
    rows, todo = {}, []
    for cell in suite.cells():
        cfg = cell.config(args.cfg_options)
        if not (rows or todo):
            check_data_roots(cfg)
        folder = out / 'cells' / cell.key(cfg)
        if (folder / 'row.json').is_file():
            rows[cell.method, cell.seed] = json.loads((folder / 'row.json').read_text())
        elif args.only is None or cell.method in args.only:
            folder.mkdir(parents=True, exist_ok=True)
            todo.append((cell, folder))
    print(f'{path.stem}: {len(rows)} cells have finished, {len(todo)} to run; {out}')
    failed = run_all(todo, args, rows)
    report(suite, rows, out)
    if failed:
        raise SystemExit('Failed:\n' + '\n'.join(f'  {folder}/cell.log: {error}' for folder, error in failed))


def run_all(todo: list[tuple[Cell, Path]], args: argparse.Namespace, rows: dict) -> list[tuple[Path, str]]:
    """Run the cells, ``--jobs`` at a time; adds their rows and returns what failed."""
    failed, threads = [], max(1, (os.cpu_count() or 1) // args.jobs)
    # A fresh process for each cell: its peak memory is its own.
    pool = ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn'), max_tasks_per_child=1)
    with pool, tqdm(total=len(todo), unit='cell', disable=not todo) as progress:
        running = {
            pool.submit(work, cell, args.cfg_options, folder, threads, args.keep): (cell, folder)
            for cell, folder in todo
        }
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, folder = running.pop(future)
                if error := future.exception():
                    failed.append((folder, f'{type(error).__name__}: {error}'))
                else:
                    rows[cell.method, cell.seed] = row = future.result()
                    progress.write(f'{cell.method}, seed {cell.seed}: mIoU {row["mIoU"]:.2f}')
                progress.update()
    return failed


def report(suite: Suite, rows: dict, out: Path) -> None:
    """Write rows, table and plot of what has finished, in the suite's order."""
    done = [rows[cell.method, cell.seed] for cell in suite.cells() if (cell.method, cell.seed) in rows]
    if not done:
        return
    summaries = summarise(done, suite.baseline)
    table = format_table(summaries, suite.baseline)
    (out / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in done))
    (out / 'table.md').write_text(table + '\n')
    plot(summaries, out / 'plot.png')
    print(f'\n{table}\n\n{out}/rows.jsonl, table.md, plot.png')


if __name__ == '__main__':
    main()
