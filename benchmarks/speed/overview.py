"""One table of a device within a time budget. Finished cells are kept: a second call goes on where one stopped."""

from __future__ import annotations

import functools
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmseg_davpt.files import write_atomically

from .components import MMSEG, evaluation_cost
from .goals import table
from .measure import Timed, environment, peak_memory, ratio
from .trunk import build_case
from .workload import TINY, Workload

PLAIN, FULL = 'timm trunk, inference', 'full tuning'
INFERENCE = (PLAIN, '20 prompts, inference', '20 residual prompts, inference')
STEPS = (
    FULL,
    'mmseg ViT, full',
    'VPT-Deep k/v, M=20',
    'residual DA-VPT',
    'residual DA-VPT, bfloat16 trunk',
    'residual DA-VPT, last third, bfloat16 trunk',
)
COMPILED = (FULL, 'residual DA-VPT', 'residual DA-VPT, bfloat16 trunk')
COMPILER = dict(cuda='inductor', cpu='aot_eager')  # on a CPU it shows that a case compiles, not that it gets faster
GOALS = {'20 residual prompts, inference': 1.02, 'residual DA-VPT, bfloat16 trunk': 0.9}
EVALUATION_GOAL = 1.5  # times mmseg's loop
Row = dict[str, Any]  # part, case, seconds, iqr, ratio, ratio_iqr, to, memory, memory_adamw, images


def run_overview(
    workload: Workload,
    image: tuple[int, int],
    slide_batches: Sequence[int],
    timed: Timed,
    seconds: float,
    out: Path,
    command: str,
) -> bool:
    """Measure the cells that ``out`` does not hold yet, and write ``overview.json`` and ``overview.md`` after each.

    No cell starts after the budget, or if one of its kind (the text before the colon) has taken longer than what is
    left. The first one always starts.

    Args:
        workload: Model size, images, precision and device.
        image: Height and width of the images of the evaluation, in pixels.
        slide_batches: Windows at a time in the evaluation.
        timed: Measures runs in turn.
        seconds: The budget.
        out: Folder of the results.
        command: The command line, recorded with the results.

    Returns:
        Whether all cells are done.

    Raises:
        ValueError: The folder holds results of another device or of other settings.
    """
    path = out / 'overview.json'
    settings = json.loads(json.dumps(asdict(workload) | dict(image=image, slide_batches=slide_batches)))
    machine = environment(workload.device)
    record: dict[str, Any] = dict(command=command, **machine, settings=settings, cells={})
    if path.exists():
        record = json.loads(path.read_text())
        if record['settings'] != settings or record['device'] != machine['device']:
            raise ValueError(f'{path} holds results of another device or of other settings: choose another --out')
    cells = overview_cells(workload, image, slide_batches, timed)
    start, longest = time.monotonic(), dict[str, float]()
    for name, measure in cells.items():
        begin, kind = time.monotonic(), name.partition(':')[0]
        if name in record['cells']:
            continue
        if longest and begin - start + longest.get(kind, 0.0) > seconds:
            break
        record['cells'][name] = measure()
        _clear(workload.device)
        longest[kind] = max(longest.get(kind, 0.0), time.monotonic() - begin)
        write_atomically(path, json.dumps(record, indent=1).encode())
        write_atomically(out / 'overview.md', format_overview(record, cells).encode())
        print(f'{name}: {time.monotonic() - begin:.0f} s', flush=True)
    done = len(record['cells']) == len(cells)
    print(format_overview(record, cells))
    return done


def overview_cells(
    workload: Workload, image: tuple[int, int], slide_batches: Sequence[int], timed: Timed
) -> dict[str, Callable[[], list[Row]]]:
    """Name of a cell -> what measures it, the most wanted first."""
    return {
        'step': lambda: _together(workload, 'step, eager', STEPS, FULL, timed),
        'inference': lambda: _together(workload, 'inference', INFERENCE, PLAIN, timed),
        **{f'memory: {name}': functools.partial(_memory, workload, name) for name in STEPS},
        'evaluation': lambda: _evaluation(workload, image, slide_batches, timed),
        **{f'compile: {name}': functools.partial(_compiled, workload, name, timed) for name in COMPILED},
    }


def _together(workload: Workload, part: str, names: Sequence[str], base: str, timed: Timed) -> list[Row]:
    """Cases on shared weights, in turn, against one of them."""
    weights: dict[object, Any] = {}
    times = timed({name: build_case(name, workload, weights) for name in names})
    return [
        dict(
            part=part,
            case=name,
            seconds=times[name].median,
            iqr=times[name].iqr,
            to=base,
            ratio=ratio(times[name].times, times[base].times),
            images=workload.batch / times[name].median,
        )
        for name in names
    ]


def _memory(workload: Workload, name: str) -> list[Row]:
    small = Workload(TINY, 64, 1, workload.dtype, workload.device)
    builds = functools.partial(build_case, name, workload), functools.partial(build_case, name, small)
    memory = peak_memory(*builds, workload.device)
    return [dict(part='memory', case=name, memory=memory['growth'], memory_adamw=memory['growth_adamw'])]


def _compiled(workload: Workload, name: str, timed: Timed) -> list[Row]:
    return [compiled_step(workload, name, timed, COMPILER[workload.device])]


def compiled_step(workload: Workload, name: str, timed: Timed, backend: str) -> Row:
    """A compiled step against the same step, eager; ``compilation`` are the seconds of the first call."""
    torch._dynamo.reset()
    weights: dict[object, Any] = {}
    eager, case = (build_case(name, workload, weights) for _ in range(2))
    case.model.compile(backend=backend)
    begin = time.monotonic()
    case()
    compilation = time.monotonic() - begin
    times = timed(dict(eager=eager, compiled=case))
    row = dict(part=f'step, {backend}', case=name, to='the same, eager', compilation=compilation)
    measured = ratio(times['compiled'].times, times['eager'].times)
    seconds = times['compiled'].median
    return row | dict(seconds=seconds, iqr=times['compiled'].iqr, ratio=measured, images=workload.batch / seconds)


def format_compiled(rows: Sequence[Row]) -> str:
    """Results of :func:`compiled_step` as Markdown."""
    lines = []
    for row in rows:
        against = f'{row["ratio"]["median"]:.3f} (IQR {row["ratio"]["iqr"]:.3f})'
        lines.append((row['part'], row['case'], row['seconds'], against, f'{row["compilation"]:.0f}'))
    return table(('part', 'case', 's', 'against eager', 'first call, s of wall time'), lines)


def _evaluation(workload: Workload, image: tuple[int, int], slide_batches: Sequence[int], timed: Timed) -> list[Row]:
    results = evaluation_cost(workload, image, slide_batches, timed, memory=False)
    return [
        dict(
            part='evaluation',
            case=name,
            seconds=1 / case['images_per_second'],
            to=f'{MMSEG}, images / s',
            ratio=case['faster'],
            images=case['images_per_second'],
        )
        for name, case in results.items()
    ]


def _clear(device: str) -> None:
    gc.collect()  # hooks make cycles
    if device == 'cuda':
        torch.cuda.empty_cache()


def format_overview(record: Mapping[str, Any], cells: Mapping[str, object]) -> str:
    """The table, and what is missing."""
    rows = [row for name in cells if name in record['cells'] for row in record['cells'][name]]
    memory = {row['case']: row for row in rows if row['part'] == 'memory'}
    lines = []
    for row in rows:
        if row['part'] == 'memory':
            continue
        peaks = memory.get(row['case'], {}) if row['part'] == 'step, eager' else {}
        peak = [peaks.get(key) and f'{peaks[key]:.0f}' for key in ('memory', 'memory_adamw')]
        milliseconds = f'{1e3 * row["seconds"]:.4g}'
        against = f'{row["ratio"]["median"]:.3f} (IQR {row["ratio"]["iqr"]:.3f})'
        lines.append((row['part'], row['case'], milliseconds, against, row['to'], *peak, f'{row["images"]:.3g}'))
    head = ('part', 'case', 'ms', 'ratio', 'to', 'peak memory, MB', 'with AdamW, MB', 'images / s')
    settings, versions = record['settings'], record['versions']
    text = (
        f'{record["device"]}, {record["threads"]} threads of the CPU; '
        f'{", ".join(f"{name} {version}" for name, version in versions.items())}. {settings["arch"]}, '
        f'{settings["size"]}x{settings["size"]}, B={settings["batch"]}, {settings["dtype"]} autocast.\n'
        f'`{record["command"]}`\n\n{table(head, lines)}\n\n'
        'Images per second of a step are what the data loader must deliver. Ratios are medians over rounds that '
        'measure both sides in turn.\n'
    )
    missing = [name for name in cells if name not in record['cells']]
    return text + (f'\nNot measured yet: {", ".join(missing)}. Run the command again.\n' if missing else '')
