"""What the class -> prompt assignment costs, and what ranks exchange."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope
from torch.utils import benchmark

from mmseg_davpt.apis import leave_process_group, load_config
from mmseg_davpt.guidance.assignment import PromptAssignment
from mmseg_davpt.reports import build_shapes, count_parameters
from mmseg_davpt.reports.parameters import IN_BACKBONE

from .components import PROMPTS, segmentor
from .goals import table
from .measure import MB, Timed, fresh_processes, measurement
from .workload import Workload, samples

ITERATIONS, WARM_UP = 160_000, 200  # of a run, and batches of its hook
FLOAT32 = 4
REFRESH_GOALS = {150: 0.05, 3000: 1.0}  # classes -> seconds


def refresh_case(classes: int, dims: int, first: bool, device: str = 'cpu') -> Callable[[], int]:
    """A refresh from class means in loose groups: the first clustering, or one after the means have drifted."""
    part, draw = PromptAssignment(classes, PROMPTS, dims).to(device), torch.Generator().manual_seed(1)
    groups = torch.randn(2 * PROMPTS, dims, generator=draw)
    means = groups[torch.arange(classes) % len(groups)] + 0.5 * torch.randn(classes, dims, generator=draw)
    drifted = itertools.cycle([(means + 0.1 * torch.randn(means.shape, generator=draw)).to(device) for _ in range(4)])

    def refresh() -> int:
        if first:
            part.reset()
        part.sums.copy_(next(drifted))
        part.weights.fill_(1)
        return part.refresh(seed=0)

    refresh()
    return refresh


def assignment_cost(load: Workload, classes: Sequence[int], timed: Timed, ranks: int) -> dict:
    """Time of a refresh, alone and over gloo ranks, and of the warm-up before training.

    Returns:
        ``refresh``: ``classes``, ``first``, ``later`` and ``later_over_ranks`` seconds; ``ranks``.
        ``warm_up``: seconds a batch and a training step, and the share that 200 batches have in 160k iterations.
    """
    refreshes = {(c, first): refresh_case(c, load.dims, first, load.device) for c in classes for first in (True, False)}
    model = segmentor(load, guidance=dict(type='MetricGuidance'))
    for part in model.guidance.assignments:
        part.assignment.copy_(torch.arange(load.classes) % PROMPTS)
    images, data = load.images(), samples(load.labels())

    def step() -> None:
        with load.autocast():
            losses = model.train().loss(images, data)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        model.zero_grad()

    def warm_up() -> None:
        with load.autocast():
            model.eval().collect_prototypes(images, data)

    times = timed({**refreshes, 'step': step, 'warm-up': warm_up})
    over_ranks = refresh_over_ranks(classes, load.dims, ranks)
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
        start = fresh_processes('cpu').get_start_method()
        arguments = ranks, folder, tuple(classes), dims
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=ranks, start_method=start)
        return json.loads(Path(folder, 'seconds.json').read_text())


def _rank(rank: int, ranks: int, folder: str, classes: Sequence[int], dims: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    seconds = {}
    for number in classes:
        # Every rank must refresh equally often: no number that each finds by its own clock.
        timer = benchmark.Timer('refresh()', globals=dict(refresh=refresh_case(number, dims, first=False)))
        rows = [timer.timeit(1).median for _ in range(10)]
        seconds[number] = measurement('refresh', rows).median
    if rank == 0:
        Path(folder, 'seconds.json').write_text(json.dumps(seconds))
    leave_process_group()


def exchanged_bytes(config: str | Path) -> dict[str, int]:
    """Bytes that a training step of a config all-reduces: gradients of what learns, in float32, and class statistics.

    The few statistics of synchronised batch norms are not counted.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = build_shapes(cfg.model)
    tuned = {part: FLOAT32 * own for part, (own, _) in count_parameters(model).items()}
    trunk = sum(tuned[part] for part in IN_BACKBONE)
    guidance = getattr(model, 'guidance', None)
    parts = [] if guidance is None else guidance.assignments
    statistics = sum(FLOAT32 * (part.sums.numel() + part.weights.numel()) for part in parts)
    return dict(trunk=trunk, heads=sum(tuned.values()) - trunk, statistics=statistics)


def ring_seconds(size: float, gpus: int, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of ``size`` bytes at ``bandwidth`` bytes a second, without latency."""
    return 2 * (gpus - 1) / gpus * size / bandwidth


def exchange(configs: Sequence[str | Path], bandwidth: float, gpus: Sequence[int]) -> list[dict]:
    """For each config its bytes a step and the projected seconds, with and without the heads' gradients."""
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


def format_assignment(found: Mapping) -> str:
    """In Markdown."""
    rows = []
    for own in found['refresh']:
        goal = REFRESH_GOALS.get(own['classes'])
        met = goal and f'< {1e3 * goal:.0f} ms: {"yes" if own["later"] < goal else "no"}'
        rows.append((own['classes'], *(1e3 * own[key] for key in ('first', 'later', 'later_over_ranks')), met))
    head = ('C', 'first, ms', 'later, ms', f'later over {found["ranks"]} gloo ranks, ms', 'goal (later), met')
    warm = found['warm_up']
    return (
        f'{table(head, rows)}\n\nWarm-up: {1e3 * warm["batch_seconds"]:.3g} ms a batch; a training step with a light '
        f'head takes {1e3 * warm["step_seconds"]:.3g} ms. {WARM_UP} batches are {100 * warm["share"]:.3f} % of '
        f'{ITERATIONS} iterations (goal: 1 %, met: {"yes" if warm["share"] <= 0.01 else "no"}).\n\n'
        + format_exchange(found['exchange'])
    )


def format_exchange(rows: Sequence[Mapping]) -> str:
    """The projection in Markdown."""
    parts = ('trunk', 'heads', 'statistics')
    head = ['config', *(f'{part}, MB' for part in parts), *(f'{number} GPUs, ms' for number in rows[0]['seconds'])]
    lines = []
    for row in rows:
        times = [f'{1e3 * own["all"]:.3g} ({1e3 * own["without heads"]:.3g})' for own in row['seconds'].values()]
        lines.append((row['config'], *(f'{row["bytes"][part] / MB:.3f}' for part in parts), *times))
    return (
        f'{table(head, lines)}\n\n**A projection, not measured**: ring all-reduce, 2 (n - 1) / n of the bytes a step '
        f'at {rows[0]["bandwidth"] / 1e9:g} GB/s, without latency and without overlap with the backward pass. '
        'In parentheses: without the heads.'
    )
