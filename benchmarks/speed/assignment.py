"""Cost of the class -> prompt assignment, and of the exchange between ranks."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope
from torch.utils import benchmark

from mmseg_davpt.apis import leave_process_group, load_config
from mmseg_davpt.guidance.assignment import PromptAssignment
from mmseg_davpt.reports import build_shapes, count_trainable

from .components import PROMPTS, segmentor
from .goals import table
from .measure import MB, Timed, fresh_processes, measurement
from .workload import Workload, samples

ITERATIONS, WARM_UP = 160_000, 200  # iterations of a run, and batches of its warm-up
FLOAT32 = 4
REFRESH_GOALS = {150: 0.05, 3000: 1.0}  # classes -> seconds


def refresh_case(classes: int, dims: int, first: bool, device: str = 'cpu') -> Callable[[], int]:
    """A refresh from class means in loose groups: the first clustering, or one after the means have drifted."""
    assignment, generator = PromptAssignment(classes, PROMPTS, dims).to(device), torch.Generator().manual_seed(1)
    groups = torch.randn(2 * PROMPTS, dims, generator=generator)
    means = groups[torch.arange(classes) % len(groups)] + 0.5 * torch.randn(classes, dims, generator=generator)
    drifts = [0.1 * torch.randn(means.shape, generator=generator) for _ in range(4)]
    drifted = itertools.cycle([(means + drift).to(device) for drift in drifts])

    def refresh() -> int:
        if first:
            assignment.reset()
        assignment.sums.copy_(next(drifted))
        assignment.weights.fill_(1)
        return assignment.refresh(seed=0)

    refresh()
    return refresh


def assignment_cost(workload: Workload, classes: Sequence[int], timed: Timed, ranks: int) -> dict[str, Any]:
    """Time of a refresh, alone and over gloo ranks, and of the warm-up before training.

    Returns:
        ``refresh``: ``classes``, ``first``, ``later`` and ``later_over_ranks`` seconds; ``ranks``.
        ``warm_up``: seconds per batch and per training step, and the share that 200 batches have in 160k iterations.
    """
    refreshes = {
        (c, first): refresh_case(c, workload.dims, first, workload.device) for c in classes for first in (True, False)
    }
    model = segmentor(workload, guidance=dict(type='MetricGuidance'))
    for assignment in model.guidance.assignments:
        assignment.assignment.copy_(torch.arange(workload.classes) % PROMPTS)
    images, data = workload.images(), samples(workload.labels())

    def step() -> None:
        with workload.autocast():
            losses = model.train().loss(images, data)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        model.zero_grad()

    def warm_up() -> None:
        with workload.autocast():
            model.eval().collect_prototypes(images, data)

    times = timed({**refreshes, 'step': step, 'warm-up': warm_up})
    over_ranks = refresh_over_ranks(classes, workload.dims, ranks)
    return dict(
        refresh=[
            dict(
                classes=c,
                first=times[c, True].median,
                later=times[c, False].median,
                later_over_ranks=over_ranks[str(c)],
            )
            for c in classes
        ],
        ranks=ranks,
        warm_up=dict(
            batch_seconds=times['warm-up'].median,
            step_seconds=times['step'].median,
            share=WARM_UP * times['warm-up'].median / (ITERATIONS * times['step'].median),
        ),
    )


def refresh_over_ranks(classes: Sequence[int], dims: int, ranks: int) -> dict[str, float]:
    """Median seconds of a later refresh over gloo processes on this CPU, by number of classes."""
    with tempfile.TemporaryDirectory() as folder:
        start = fresh_processes().get_start_method()
        arguments = ranks, folder, tuple(classes), dims
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=ranks, start_method=start)
        return json.loads(Path(folder, 'seconds.json').read_text())


def _rank(rank: int, ranks: int, folder: str, classes: Sequence[int], dims: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    seconds = {}
    for number in classes:
        # A fixed number of calls: every rank must refresh equally often.
        timer = benchmark.Timer('refresh()', globals=dict(refresh=refresh_case(number, dims, first=False)))
        times = [timer.timeit(1).median for _ in range(10)]
        seconds[number] = measurement('refresh', times).median
    if rank == 0:
        Path(folder, 'seconds.json').write_text(json.dumps(seconds))
    leave_process_group()


def exchanged_bytes(config: str | Path) -> dict[str, int]:
    """Bytes that a training step of a config all-reduces: float32 gradients of trainable parameters, class statistics.

    The few statistics of synchronized batch norms are not counted.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = build_shapes(cfg.model)
    trunk, heads = (FLOAT32 * number for number in count_trainable(model))
    guidance = getattr(model, 'guidance', None)
    assignments = [] if guidance is None else guidance.assignments
    statistics = sum(FLOAT32 * (each.sums.numel() + each.weights.numel()) for each in assignments)
    return dict(trunk=trunk, heads=heads, statistics=statistics)


def ring_seconds(size: float, gpus: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes at ``bandwidth`` bytes per second, without latency."""
    return 2 * (gpus - 1) / gpus * size / bandwidth


def exchange(configs: Sequence[str | Path], bandwidth: float, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """For each config its bytes per step and the projected seconds, with and without the heads' gradients."""
    rows = []
    for config in configs:
        sizes = exchanged_bytes(config)
        seconds = {
            str(number): {
                'all': ring_seconds(sum(sizes.values()), number, bandwidth),
                'without heads': ring_seconds(sizes['trunk'] + sizes['statistics'], number, bandwidth),
            }
            for number in gpus
        }
        rows.append(dict(config=Path(config).stem, bytes=sizes, bandwidth=bandwidth, seconds=seconds))
    return rows


def format_assignment(results: Mapping[str, Any]) -> str:
    """Results of :func:`assignment_cost` and :func:`exchange` as Markdown."""
    rows = []
    for refresh in results['refresh']:
        goal = REFRESH_GOALS.get(refresh['classes'])
        met = goal and f'< {1e3 * goal:.0f} ms: {"yes" if refresh["later"] < goal else "no"}'
        rows.append((refresh['classes'], *(1e3 * refresh[key] for key in ('first', 'later', 'later_over_ranks')), met))
    head = ('C', 'first, ms', 'later, ms', f'later over {results["ranks"]} gloo ranks, ms', 'goal (later), met')
    warm = results['warm_up']
    return (
        f'{table(head, rows)}\n\nWarm-up: {1e3 * warm["batch_seconds"]:.3g} ms per batch; a training step with a light '
        f'head takes {1e3 * warm["step_seconds"]:.3g} ms. {WARM_UP} batches are {100 * warm["share"]:.3f} % of '
        f'{ITERATIONS} iterations (goal: 1 %, met: {"yes" if warm["share"] <= 0.01 else "no"}).\n\n'
        + format_exchange(results['exchange'])
    )


def format_exchange(rows: Sequence[Mapping[str, Any]]) -> str:
    """The projected exchange as Markdown."""
    kinds = ('trunk', 'heads', 'statistics')
    head = ['config', *(f'{kind}, MB' for kind in kinds), *(f'{number} GPUs, ms' for number in rows[0]['seconds'])]
    lines = []
    for row in rows:
        times = [f'{1e3 * each["all"]:.3g} ({1e3 * each["without heads"]:.3g})' for each in row['seconds'].values()]
        lines.append((row['config'], *(f'{row["bytes"][kind] / MB:.3f}' for kind in kinds), *times))
    return (
        f'{table(head, lines)}\n\n**A projection, not measured**: ring all-reduce, 2 (n - 1) / n of the bytes per step '
        f'at {rows[0]["bandwidth"] / 1e9:g} GB/s, without latency and without overlap with the backward pass. '
        'In parentheses: without the heads.'
    )
