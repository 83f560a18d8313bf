"""Run the parts of the benchmark and write their results as JSON, Markdown and a plot."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets import check_data_roots

from .assignment import assignment_cost, exchange, format_assignment
from .components import (
    data_rate,
    evaluation_cost,
    format_data,
    format_evaluation,
    format_guidance,
    guidance_cost,
    workers,
)
from .goals import case_table, check_goals, goal_table, plot
from .measure import Timed, environment, time_rounds
from .overview import COMPILED, compiled_step, format_compiled
from .prediction import format_prediction, prediction_cost
from .profile import format_profile, profile_cases
from .scale import counted_exchange, format_scale, large_trunk, measured_step
from .trunk import CASES, available_cases, trunk_cost
from .workload import Workload

CONFIGS = Path(__file__).parents[2] / 'configs'
DATA_CONFIG = CONFIGS / 'davpt_upernet_miniscenes.py'
EXCHANGED = [
    CONFIGS / 'davpt_upernet_ade20k.py',
    CONFIGS / 'davpt-gated-plus_vit-b16_upernet_160k_ade20k-512x512.py',
    CONFIGS / 'full_vit-b16_upernet_160k_ade20k-512x512.py',
]
STEP_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
GPUS = (8, 64, 512)
PROFILED = ['VPT-Deep k/v, M=20', 'residual DA-VPT', 'residual DA-VPT, bfloat16 trunk', 'full tuning']
Save = Callable[[str, Any, str], None]  # part, results, Markdown


@dataclass(frozen=True)
class Options:
    """Options of a benchmark run.

    Attributes:
        parts: Names of :data:`PARTS`.
        arch: timm names. Parts other than ``trunk`` use the last one.
        size: Height and width of images and windows in pixels.
        batch: Batch sizes. Parts other than ``trunk`` use the last one.
        dtype: ``float32``, or ``bfloat16`` for autocast.
        device: ``cpu`` or ``cuda``.
        threads: Threads of the CPU; ``None`` for torch's default.
        rounds: Measured rounds, after one that warms up.
        min_seconds: Shorter calls are repeated within a round.
        cpu_time: CPU time of the process instead of wall time.
        head: ``trunk``: the same light head behind every case.
        only: ``trunk``, ``profile``: only these cases.
        memory: ``trunk``: measure memory, too.
        image: ``evaluation``, ``prediction``: height and width in pixels.
        slide_batch: ``evaluation``: windows at a time.
        compiler: ``compile``: backend of ``torch.compile``; on a CPU, inductor needs a C++ compiler.
        ranks: ``assignment``: gloo processes.
        bandwidth: ``assignment``: of the projection, in GB/s per GPU.
        config: ``data``: the config with the pipeline.
        cfg_options: ``data``: options that override the config.
        out: Folder of the results.
        document: Markdown file to put the tables into, if any.
        classes: ``guidance``: numbers of classes.
        patches: ``guidance``: numbers of patches per image, squares.
        refreshed: ``assignment``: numbers of classes.
        images: ``data``: images per call.
        counted_ranks: ``scale``: numbers of gloo processes whose exchange is counted.
        large: ``scale``: timm name of a large trunk.
        large_size: ``scale``: height and width of its images in pixels.
        large_batch: ``scale``: batch sizes.
        step_size: ``scale``: of the image of the measured step.
    """

    parts: Sequence[str]
    arch: Sequence[str] = ('vit_small_patch14_dinov2', 'vit_base_patch16_224')
    size: int = 512
    batch: Sequence[int] = (1, 2, 4)
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int | None = None
    rounds: int = 10
    min_seconds: float = 0.2
    cpu_time: bool = False
    head: bool = False
    only: Sequence[str] | None = None
    memory: bool = True
    image: Sequence[int] = (512, 683)
    slide_batch: Sequence[int] = (1, 2, 4)
    compiler: str = 'inductor'
    ranks: int = 2
    bandwidth: float = 25.0
    config: str | Path = DATA_CONFIG
    cfg_options: Mapping[str, Any] | None = None
    out: str | Path = 'work_dirs/benchmark'
    document: str | Path | None = None
    classes: Sequence[int] = (19, 150, 847, 3000)
    patches: Sequence[int] = (256, 1024, 4096)
    refreshed: Sequence[int] = (150, 3000)
    images: int = 64
    counted_ranks: Sequence[int] = (2, 4)
    large: str = 'vit_giant_patch14_dinov2'
    large_size: int = 518
    large_batch: Sequence[int] = (1, 4, 16)
    step_size: int = 224

    @property
    def workload(self) -> Workload:
        """The workload of the parts other than ``trunk``."""
        return Workload(self.arch[-1], self.size, self.batch[-1], self.dtype, self.device, self.head)

    @property
    def timed(self) -> Timed:
        """The timer with these rounds."""
        return functools.partial(time_rounds, rounds=self.rounds, min_seconds=self.min_seconds, cpu_time=self.cpu_time)

    def quick(self) -> Options:
        """The same parts with a tiny trunk and two rounds, to show that they run."""
        small = replace(self, arch=['vit_tiny_patch16_224'], size=64, batch=[1], image=(64, 96))
        small = replace(small, compiler='aot_eager', rounds=2, min_seconds=0.0, images=4, step_size=64)
        small = replace(small, counted_ranks=(), large='vit_tiny_patch16_224', large_size=64, large_batch=(1,))
        return replace(small, classes=(19, 150), patches=(16, 64), refreshed=(150,))


def run_benchmark(options: Options, command: str) -> None:
    """Run the parts; each writes ``PART.json`` and ``PART.md`` to the output folder, and ``trunk`` also ``trunk.png``.

    Args:
        options: The options.
        command: The command line, recorded with the results.

    Raises:
        ValueError: The document has no marks for a part.
    """
    torch.set_num_threads(options.threads or torch.get_num_threads())
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    machine = environment(options.device)

    def save(part: str, results: Any, text: str) -> None:
        settings = asdict(options.workload) | dict(rounds=options.rounds)
        record = dict(part=part, command=command, **machine, settings=settings, results=results)
        (out / f'{part}.json').write_text(json.dumps(record, indent=1) + '\n')
        (out / f'{part}.md').write_text(f'{_conditions(part, options, machine)}\n`{command}`\n\n{text}\n')
        if part != 'trunk':
            print(f'## {part}\n\n{text}\n')

    for part in options.parts:
        PARTS[part](options, save)
    print(f'{machine["device"]}: {out}/*.json, *.md')
    if options.document is not None:
        fill_document(Path(options.document), out)


def _conditions(part: str, options: Options, machine: Mapping[str, Any]) -> str:
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    attention = 'fused' if machine['fused_attention'] else 'written-out'
    text = f'{machine["device"]}, {machine["threads"]} threads; {attention} attention; {versions}; '
    text += f'{options.rounds} rounds{", CPU time" if options.cpu_time else ""}.'
    if part in ('guidance', 'assignment', 'evaluation', 'prediction', 'compile', 'profile'):
        workload = options.workload
        text += f' {workload.arch}, {workload.size}x{workload.size}, B={workload.batch}, {workload.dtype}.'
    return text


def _trunk(options: Options, save: Save) -> None:
    names = options.only or available_cases()
    if missing := set(CASES) - set(names):
        print(f'trunk: left out: {", ".join(sorted(missing))}' + ('' if options.only else ' (pip install peft)'))
    runs, texts = [], []
    for arch in options.arch:
        for batch in options.batch:
            workload = replace(options.workload, arch=arch, batch=batch)
            results = trunk_cost(workload, names, options.timed, options.memory)
            goals = check_goals(arch, results)
            head = 'light head' if options.head else 'no head'
            title = f'{arch}, {options.size}x{options.size}, B={batch}, {options.dtype}, {head}'
            runs.append(dict(title=title, arch=arch, batch=batch, results=results, goals=goals))
            texts.append(f'### {title}\n\n{case_table(results)}\n\n{goal_table(goals)}')
            print(f'{texts[-1]}\n')
            save('trunk', runs, '\n\n'.join(texts))  # after each run: the results survive if the next one is killed
            plot(runs, Path(options.out, 'trunk.png'))


def _guidance(options: Options, save: Save) -> None:
    results = guidance_cost(options.workload, options.classes, options.patches, options.timed)
    save('guidance', results, format_guidance(results))


def _assignment(options: Options, save: Save) -> None:
    results = assignment_cost(options.workload, options.refreshed, options.timed, options.ranks)
    results['exchange'] = exchange(EXCHANGED, options.bandwidth * 1e9, GPUS)
    save('assignment', results, format_assignment(results))


def _evaluation(options: Options, save: Save) -> None:
    height, width = options.image
    results = evaluation_cost(options.workload, (height, width), options.slide_batch, options.timed)
    save('evaluation', results, format_evaluation(results))


def _prediction(options: Options, save: Save) -> None:
    height, width = options.image
    results = prediction_cost(options.workload, (height, width), options.timed)
    save('prediction', results, format_prediction(results))


def _compile(options: Options, save: Save) -> None:
    rows = [compiled_step(options.workload, name, options.timed, options.compiler) for name in COMPILED]
    save('compile', rows, format_compiled(rows))


def _data(options: Options, save: Save) -> None:
    cfg = load_config(options.config, options.cfg_options)
    check_data_roots(cfg)
    results = data_rate(cfg, options.images, options.timed) | dict(config=Path(options.config).stem)
    results['workers'] = {
        f'{seconds:g}': workers(results['images_per_second'], results['batch'], seconds) for seconds in STEP_SECONDS
    }
    save('data', results, format_data(results))


def _profile(options: Options, save: Save) -> None:
    results = profile_cases(options.workload, options.only or PROFILED)
    save('profile', results, format_profile(results))


def _scale(options: Options, save: Save) -> None:
    results = dict(
        exchange=[counted_exchange(config, number) for config in EXCHANGED for number in options.counted_ranks],
        projection=exchange(EXCHANGED, options.bandwidth * 1e9, GPUS),
        trunk=large_trunk(options.large, options.large_size, options.large_batch),
        step=measured_step(options.large, options.step_size) if options.device == 'cpu' else None,
    )
    save('scale', results, format_scale(results))


PARTS: dict[str, Callable[[Options, Save], None]] = dict(
    trunk=_trunk,
    guidance=_guidance,
    assignment=_assignment,
    evaluation=_evaluation,
    prediction=_prediction,
    compile=_compile,
    data=_data,
    profile=_profile,
    scale=_scale,
)


def fill_document(document: Path, out: Path) -> None:
    """Put every part's Markdown between the document's marks ``<!-- FOLDER/PART -->`` and ``<!-- /FOLDER/PART -->``.

    Args:
        document: Markdown file, changed in place.
        out: Folder of results; its name is ``FOLDER``.

    Raises:
        ValueError: A part has results, but no marks in the document.
    """
    text = document.read_text()
    for part in PARTS:
        name, results = f'{out.name}/{part}', out / f'{part}.md'
        if not results.exists():
            continue
        if f'<!-- {name} -->' not in text:
            raise ValueError(f'{document}: no marks for {results}: write <!-- {name} --> and <!-- /{name} --> there')
        before, _, rest = text.partition(f'<!-- {name} -->\n')
        after = rest[rest.index(f'<!-- /{name} -->') :]
        text = f'{before}<!-- {name} -->\n{results.read_text()}{after}'
    document.write_text(text)
