"""Run the cells of a suite, several at a time, and write their rows, table and plot."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmseg_davpt.apis.processes import die_with_parent
from mmseg_davpt.datasets import check_data_roots

from .cell import run_cell
from .suite import Cell, Suite, load_suite
from .table import format_table, plot, summarize

QUICK_SUITE = Path(__file__).parents[1] / 'suites/quick.py'
Row = dict[str, Any]


def compare(
    path: str | Path,
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    keep: bool = False,
    minutes: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Run a suite and tabulate it. Cells that have a row are not run again; unfinished cells are resumed.

    Args:
        path: Suite file.
        out: Folder for rows, table, plot and the cells' folders; ``work_dirs/compare/SUITE`` by default.
        jobs: Number of cells at a time; they share the CPU's threads.
        only: Run only these methods. The table holds every finished cell.
        seeds: Run only these seeds.
        keep: Keep the checkpoints.
        minutes: Stop after this time. Running cells are ended; the next call resumes them.
        options: Options for all cells, as for ``--cfg-options``.

    Raises:
        SystemExit: An unknown method in ``only`` or an unknown seed, or a cell failed. The other cells are run and
            written first.
    """
    suite = load_suite(path)
    if unknown := set(only or ()) - set(suite.methods):
        raise SystemExit(f'--only: {", ".join(unknown)} is none of {", ".join(suite.methods)}')
    if unknown_seeds := set(seeds or ()) - set(suite.seeds):
        raise SystemExit(f'--seeds: {sorted(unknown_seeds)} are not among the seeds of the suite, {suite.seeds}')
    out = Path(out or Path('work_dirs/compare', Path(path).stem))
    rows, pending = find_cells(suite, out, only, seeds, options)
    print(f'{Path(path).stem}: {len(rows)} cells have finished, {len(pending)} to run; {out}')
    failed = run_cells(pending, rows, jobs, keep, options, minutes)
    write_results(suite, rows, out)
    if failed:
        raise SystemExit('Failed:\n' + '\n'.join(f'  {folder}/cell.log: {error}' for folder, error in failed))


def find_cells(
    suite: Suite,
    out: Path,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[tuple[str, int], Row], list[tuple[Cell, Path]]]:
    """Rows of the finished cells by method and seed, and the cells to run with their folders, which are made.

    A cell's folder is named by its method, seed and config hash (:meth:`~benchmarks.compare.Cell.key`), so that a row
    is only found by the config that made it.
    """
    rows: dict[tuple[str, int], Row] = {}
    pending: list[tuple[Cell, Path]] = []
    for cell in suite.cells():
        cfg = cell.config(options)
        if not (rows or pending):
            check_data_roots(cfg)
        folder = out / 'cells' / cell.key(cfg)
        if (folder / 'row.json').is_file():
            rows[cell.method, cell.seed] = json.loads((folder / 'row.json').read_text())
        elif (only is None or cell.method in only) and (seeds is None or cell.seed in seeds):
            folder.mkdir(parents=True, exist_ok=True)
            pending.append((cell, folder))
    return rows, pending


def run_cells(
    pending: Sequence[tuple[Cell, Path]],
    rows: dict[tuple[str, int], Row],
    jobs: int = 1,
    keep: bool = False,
    options: Mapping[str, Any] | None = None,
    minutes: float | None = None,
) -> list[tuple[Path, str]]:
    """Run cells, ``jobs`` at a time; adds their rows to ``rows`` and returns folder and error of those that failed."""
    failed, threads = [], max(1, (os.cpu_count() or 1) // jobs)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    # A fresh process for each cell, because peak memory is measured per process.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context('spawn'), max_tasks_per_child=1)
    with pool, tqdm(total=len(pending), unit='cell', disable=not pending) as progress:
        running = {
            pool.submit(_run_in_process, cell, options, folder, threads, keep): (cell, folder)
            for cell, folder in pending
        }
        while running:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                print(f'Stopped after {minutes:g} minutes; the same command continues.')
                _end(pool)
                break
            for future in wait(running, left, FIRST_COMPLETED).done:
                cell, folder = running.pop(future)
                if error := future.exception():
                    failed.append((folder, f'{type(error).__name__}: {error}'))
                else:
                    rows[cell.method, cell.seed] = row = future.result()
                    progress.write(f'{cell.method}, seed {cell.seed}: mIoU {row["mIoU"]:.2f}')
                progress.update()
    return failed


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool and drop what waits."""
    processes = list(pool._processes.values())  # public from Python 3.14: terminate_workers
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _run_in_process(cell: Cell, options: Mapping[str, Any] | None, folder: Path, threads: int, keep: bool) -> Row:
    """Run one cell in a separate process; its output goes to ``cell.log`` in its folder."""
    die_with_parent()
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


def write_results(suite: Suite, rows: Mapping[tuple[str, int], Row], out: Path) -> None:
    """Write rows, table and plot of the finished cells, in the suite's order; print the table."""
    finished = [rows[cell.method, cell.seed] for cell in suite.cells() if (cell.method, cell.seed) in rows]
    if not finished:
        return
    summaries = summarize(finished, suite.baseline)
    table = format_table(summaries, suite.baseline, suite.titles)
    (out / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in finished))
    (out / 'table.md').write_text(table + '\n')
    plot(summaries, out / 'plot.png', suite.titles)
    print(f'\n{table}\n\n{out}/rows.jsonl, table.md, plot.png')
