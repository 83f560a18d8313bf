"""From a folder of images and one of masks to a config, with a plan of the training."""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from ..datasets.project import (
    DataSummary,
    Labels,
    Machine,
    Pair,
    Plan,
    make_plan,
    read_classes,
    read_labels,
    scan_data,
    split_pairs,
    write_project,
)
from .launch import load_config

STEPS = 10  # of the probe; the first ones are slower and do not count


@dataclass(frozen=True)
class Project:
    """A written project.

    Attributes:
        summary: The data.
        labels: The classes.
        train: Training pairs.
        val: Validation pairs.
        split: How they were split.
        plan: The settings.
        masks: What was done about the masks.
    """

    summary: DataSummary
    labels: Labels
    train: list[Pair]
    val: list[Pair]
    split: str
    plan: Plan
    masks: str


@dataclass(frozen=True)
class Probe:
    """What a few iterations took.

    Attributes:
        step: Seconds per iteration.
        image: Seconds per validation image.
        memory: Bytes: the peak on the GPU, or of the process.
    """

    step: float
    image: float
    memory: int


def init_project(
    images: Path,
    masks: Path,
    out: Path,
    pretrained: str,
    classes: Path | None = None,
    ignored: Collection[int] = (),
    machine: Machine | None = None,
) -> Project:
    """Look at images and masks, and write a config for them.

    Args:
        images: Folder of images.
        masks: Folder of masks.
        out: The config to write; lists, table and converted masks go to a folder of its name beside it.
        pretrained: File of the trunk's weights, for the config; it is not read.
        classes: File with one class a line.
        ignored: Ids of no class, beside 255.
        machine: Where the training runs; this machine if ``None``.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: A folder does not exist or holds no image.
        ValueError: Names, files or ids do not fit; the message says which.
    """
    if out.exists():  # before minutes of reading
        raise FileExistsError(f'{out} exists and may hold your changes: remove it, or choose another --out')
    names, colors = read_classes(classes) if classes else ((), ())
    summary = scan_data(images, masks)
    labels = read_labels(summary, names, colors, ignored)
    train, val, split = split_pairs(summary.pairs, labels.table)
    plan = make_plan(summary, len(train), machine or Machine.here())
    done = write_project(out, summary, labels, (train, val), plan, pretrained)
    return Project(summary, labels, train, val, split, plan, done)


def probe_training(path: Path) -> Probe:
    """Measure a few iterations and two validation images of a config; nothing is kept.

    Args:
        path: The config.
    """
    cfg = load_config(path)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner.from_cfg(_short(cfg, folder))
        runner.train()
        steps = [float(value) for value in runner.message_hub.get_scalar('train/time')._log_history]
        model, dataset = runner.model.eval(), DATASETS.build(cfg.val_dataloader.dataset)
        times = []
        for index in range(min(2, len(dataset))):
            start = time.perf_counter()
            sample = dataset[index]
            with torch.no_grad():
                model.val_step(dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']]))
            times.append(time.perf_counter() - start)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == 'darwin' else 1024
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Probe(statistics.median(steps[STEPS // 3 :]), min(times), memory)


def _short(cfg: Config, work_dir: str) -> Config:
    """The training, cut to the iterations of the probe."""
    cfg = cfg.copy()
    cfg.merge_from_dict(dict(work_dir=work_dir, log_level='ERROR', train_cfg=dict(max_iters=STEPS)))
    for part in ('val', 'test'):
        for key in (f'{part}_dataloader', f'{part}_cfg', f'{part}_evaluator'):
            cfg[key] = None
    cfg.visualizer = dict(type='SegLocalVisualizer', vis_backends=[], name='probe')  # one per name and process
    cfg.default_hooks = dict(timer=dict(type='IterTimerHook'), checkpoint=None)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, timeout=0)
    hooks: list[Any] = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = [
        dict(hook, num_batches=2) if hook['type'] == 'PromptAssignmentHook' else hook
        for hook in hooks
        if hook['type'] != 'ParamReportHook'
    ]
    cfg.param_scheduler = None
    return cfg


def describe_project(project: Project, path: Path, probe: Probe | None) -> str:
    """The plan, to print.

    Args:
        project: The project.
        path: Its config.
        probe: What the probe measured.
    """
    plan, summary = project.plan, project.summary
    sizes = sorted({pair.size for pair in summary.pairs}, key=lambda size: size[0] * size[1])
    lines = [
        f'images      {len(project.train)} training, {len(project.val)} validation ({project.split}); '
        f'{sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}',
        f'masks       {project.masks}' + (' (ids from 1, 0 ignored)' if project.labels.reduce_zero_label else ''),
        *plan.lines(),
    ]
    if probe is not None:
        validations = plan.max_iters.value // plan.interval.value
        seconds = plan.max_iters.value * probe.step + validations * len(project.val) * probe.image
        lines += [
            f'time        about {seconds / 60:.0f} min on this machine: {probe.step:.2f} s per iteration, '
            f'{probe.image:.2f} s per validation image',
            f'memory      {probe.memory / 2**30:.1f} GiB at the peak of {STEPS} iterations',
        ]
    if left_out := list(summary.left_out.items()):
        lines.append(f'left out    {len(left_out)} files, such as {left_out[0][0]}: {left_out[0][1]}')
    missing = [name for index, name in enumerate(project.labels.classes) if index not in project.labels.table.values()]
    if missing:
        lines.append(f'no pixels   of {", ".join(missing[:10])}')
    return '\n'.join([*lines, '', f'Config: {path}. Ids and classes: {path.with_suffix("")}/classes.txt'])
