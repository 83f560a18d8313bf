"""Measure speed and memory: python tools/benchmark.py [--parts trunk guidance assignment evaluation data profile]"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is not installed
import mmseg_davpt  # noqa: F401  (first: its shims)
import torch
from mmengine.config import DictAction

from benchmarks import speed as benchmark
from benchmarks.speed import Workload
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.apis import load_config

CONFIGS = Path(__file__).parents[1] / 'configs'
ARCHS = ['vit_small_patch14_dinov2', 'vit_base_patch16_224']
STEP_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
GPUS = (8, 64, 512)
PROFILED = ['VPT-Deep tokens, M=100', 'VPT-Deep k/v, M=100', 'DA-VPT', 'full tuning']


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time and peak memory on the same work in one run, against goals')
    parser.add_argument('--parts', nargs='*', choices=PARTS, default=list(PARTS), help='default: all; none: only --doc')
    parser.add_argument('--arch', nargs='+', default=ARCHS, help='timm names; parts other than trunk take the last')
    parser.add_argument('--size', type=int, default=512, help='height and width of images and windows, pixels')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 2, 4], help='parts other than trunk take the last')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help='bfloat16: autocast')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of the CPU')
    parser.add_argument('--rounds', type=int, default=10, help='rounds that count, after one that warms up')
    parser.add_argument('--head', action='store_true', help='trunk: the same light head behind every case')
    parser.add_argument(
        '--only', nargs='+', choices=benchmark.CASES, metavar='CASE', help='trunk, profile: these cases'
    )
    parser.add_argument('--no-memory', action='store_true', help='trunk: time only')
    parser.add_argument('--image', type=int, nargs=2, default=[512, 683], help='evaluation: height, width')
    parser.add_argument('--slide-batch', type=int, nargs='+', default=[1, 2, 4], help='evaluation: windows at a time')
    parser.add_argument('--ranks', type=int, default=2, help='assignment: gloo processes')
    parser.add_argument('--bandwidth', type=float, default=25.0, help='assignment: of the projection, GB/s a GPU')
    parser.add_argument('--config', default=str(CONFIGS / 'davpt_upernet_miniscenes.py'), help='data: whose pipeline')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='data: override settings of the config')
    parser.add_argument('--out', default='work_dirs/benchmark', help='folder')
    parser.add_argument('--doc', help='put the tables of --out into this Markdown file')
    parser.add_argument('--quick', action='store_true', help='a tiny trunk, two rounds: shows that it runs')
    args = parser.parse_args()
    args.classes, args.patches, args.refreshed, args.images = [19, 150, 847, 3000], [256, 1024, 4096], [150, 3000], 64
    if args.quick:
        args.arch, args.size, args.batch, args.rounds, args.image = ['vit_tiny_patch16_224'], 64, [1], 2, [64, 96]
        args.classes, args.patches, args.refreshed, args.images = [19, 150], [16, 64], [150], 4
    args.timed = partial(benchmark.time_rounds, rounds=args.rounds, min_seconds=0.0 if args.quick else 0.2)
    return args


def trunk(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    names = args.only or benchmark.available_cases()
    if missing := set(benchmark.CASES) - set(names):
        print(f'trunk: left out: {", ".join(sorted(missing))}' + ('' if args.only else ' (pip install peft)'))
    runs, text = [], []
    for arch in args.arch:
        for batch in args.batch:
            own = replace(load, arch=arch, batch=batch)
            results = benchmark.trunk_cost(own, names, args.timed, not args.no_memory)
            goals = benchmark.check_goals(arch, results)
            head = 'light head' if args.head else 'no head'
            title = f'{arch}, {args.size}x{args.size}, B={batch}, {args.dtype}, {head}'
            runs.append(dict(title=title, arch=arch, batch=batch, results=results, goals=goals))
            text.append(f'### {title}\n\n{benchmark.case_table(results)}\n\n{benchmark.goal_table(goals)}')
            print(f'{text[-1]}\n')
            save('trunk', runs, '\n\n'.join(text))  # each time: what was measured is kept if the next is killed
            benchmark.plot(runs, Path(args.out, 'trunk.png'))


def guidance(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    found = benchmark.guidance_cost(load, args.classes, args.patches, args.timed)
    save('guidance', found, benchmark.format_guidance(found))


def assignment(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    found = benchmark.assignment_cost(load, args.refreshed, args.timed, args.ranks)
    configs = [CONFIGS / f'{name}_upernet_ade20k.py' for name in ('davpt', 'davpt_plus', 'full')]
    found['exchange'] = benchmark.exchange(configs, args.bandwidth * 1e9, GPUS)
    save('assignment', found, benchmark.format_assignment(found))


def evaluation(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    found = benchmark.evaluation_cost(load, tuple(args.image), args.slide_batch, args.timed)
    save('evaluation', found, benchmark.format_evaluation(found))


def data(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    cfg = load_config(args.config, args.cfg_options)
    check_data_roots(cfg)
    found = benchmark.data_rate(cfg, args.images, args.timed) | dict(config=Path(args.config).stem)
    found['workers'] = {
        f'{seconds:g}': benchmark.workers(found['images_per_second'], found['batch'], seconds)
        for seconds in STEP_SECONDS
    }
    save('data', found, benchmark.format_data(found))


def profile(args: argparse.Namespace, load: Workload, save: Callable) -> None:
    found = benchmark.profile_cases(load, args.only or PROFILED)
    save('profile', found, benchmark.format_profile(found))


PARTS = dict(trunk=trunk, guidance=guidance, assignment=assignment, evaluation=evaluation, data=data, profile=profile)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    environment = benchmark.environment(args.device)
    command = f'python tools/benchmark.py {shlex.join(sys.argv[1:])}'
    load = Workload(args.arch[-1], args.size, args.batch[-1], args.dtype, args.device, args.head)

    def save(part: str, results: object, text: str) -> None:
        settings = asdict(load) | dict(rounds=args.rounds)
        record = dict(part=part, command=command, **environment, settings=settings, results=results)
        (out / f'{part}.json').write_text(json.dumps(record, indent=1) + '\n')
        versions = ', '.join(f'{name} {version}' for name, version in environment['versions'].items())
        attention = 'fused' if environment['fused_attention'] else 'written-out'
        about = f'{environment["device"]}, {environment["threads"]} threads; {attention} attention; {versions}; '
        about += f'{args.rounds} rounds.'
        if part in ('guidance', 'assignment', 'evaluation', 'profile'):
            about += f' {load.arch}, {load.size}x{load.size}, B={load.batch}, {load.dtype}.'
        (out / f'{part}.md').write_text(f'{about}\n`{command}`\n\n{text}\n')
        if part != 'trunk':
            print(f'## {part}\n\n{text}\n')

    for part in args.parts:
        PARTS[part](args, load, save)
    print(f'{environment["device"]}: {out}/*.json, *.md')
    if args.doc is not None:
        fill(Path(args.doc), out)


def fill(document: Path, out: Path) -> None:
    """Put every part's Markdown between the document's marks ``<!-- FOLDER/PART -->`` and ``<!-- /FOLDER/PART -->``."""
    text = document.read_text()
    for part in PARTS:
        name, own = f'{out.name}/{part}', out / f'{part}.md'
        if own.exists() and f'<!-- {name} -->' not in text:
            raise SystemExit(f'{document}: no place for {own}: write <!-- {name} --> and <!-- /{name} --> there')
        if own.exists():
            before, _, rest = text.partition(f'<!-- {name} -->\n')
            after = rest[rest.index(f'<!-- /{name} -->') :]
            text = f'{before}<!-- {name} -->\n{own.read_text()}{after}'
    document.write_text(text)


if __name__ == '__main__':
    main()
