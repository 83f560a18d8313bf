"""``RunSummaryHook``: a few lines before and after a training, and a progress line in between."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from ..datasets import images_per_pass
from ..reports.run_summary import GroupRate, Progress, Validation, end_lines, start_lines
from .record_hook import RunRecordHook
from .screen import open_screens, screens


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """Say before a training what it is about, and after it how it ended; draw a progress line on a terminal.

    ``tools/train.py`` registers it. What goes to a file or a pipe has plain lines, without the progress line.
    """

    priority = 'LOWEST'  # after the weights are loaded, prompts assigned and checkpoints written

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._start = 0  # iterations that were done before
        self._validations: list[Validation] = []

    def before_train(self, runner: Runner) -> None:
        """Log the summary, on the screen too."""
        open_screens(runner.logger, runner.cfg.get('log_level', 'INFO'))
        self._start = runner.iter
        if not is_main_process():
            return
        runner.logger.info('\n' + '\n'.join(_start_lines(runner)))
        if sys.stdout.isatty() and runner.iter < runner.max_iters:
            for handler in screens(runner.logger):
                handler.setStream(DummyTqdmFile(sys.stdout))
            self._bar = tqdm(
                total=runner.max_iters, initial=runner.iter, unit='it', file=sys.stdout, dynamic_ncols=True
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Move the progress line."""
        if self._bar is not None:
            figures = {} if outputs is None or 'loss' not in outputs else {'loss': f'{outputs["loss"].item():.3f}'}
            if scores := [one.metrics['mIoU'] for one in self._validations if 'mIoU' in one.metrics]:
                figures['mIoU'] = f'{scores[-1]:.2f}'
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update()

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Say on the progress line how far the validation is."""
        if self._bar is not None:
            last = batch_idx + 1 == len(runner.val_dataloader)
            self._bar.set_description('' if last else f'validation {batch_idx + 1}/{len(runner.val_dataloader)}')

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Keep the result."""
        record = _find(runner, RunRecordHook)
        classes = {} if record is None else record.class_ious()
        self._validations.append(Validation(runner.iter, dict(metrics or {}), classes))

    def after_train(self, runner: Runner) -> None:
        """Log how the training ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            for handler in screens(runner.logger):
                handler.setStream(sys.stdout)
        if is_main_process() and runner.iter > self._start:
            config = Path(runner.work_dir, Path(runner.cfg.filename or 'config.py').name)  # the dumped one: all options
            lines = end_lines(self._validations, runner.iter, runner.work_dir, config, _checkpoints(runner))
            runner.logger.info('\n' + '\n'.join(lines))


def learning_rates(runner: Runner) -> list[GroupRate]:
    """Learning rate of each part in the first, the last and the highest iteration: a dry run of the schedulers.

    Args:
        runner: Before its first iteration. Nothing of it changes. Without the usual kind of optimizer or schedule the
            list is empty.
    """
    wrapper, schedulers = runner.optim_wrapper, runner.cfg.get('param_scheduler')
    if not isinstance(wrapper, OptimWrapper):
        return []
    parts = _parts(runner, wrapper)
    first = {name: group['lr'] for name, group in parts}
    if not schedulers or not isinstance(runner.param_schedulers, list):
        return [GroupRate(name, rate, rate, rate) for name, rate in first.items()]
    groups = [
        dict(params=[nn.Parameter(torch.zeros(()))], lr=group.get('initial_lr', group['lr'])) for _, group in parts
    ]
    optimizer = OptimWrapper(torch.optim.SGD(groups, lr=1.0))
    dry = runner._build_param_scheduler(schedulers, optimizer)
    highest, last = [0.0] * len(groups), [0.0] * len(groups)
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    length = len(runner.train_dataloader) if by_epoch else runner.max_iters
    for iteration in range(runner.max_iters):
        last = [group['lr'] for group in optimizer.optimizer.param_groups]
        if iteration >= runner.iter:
            highest = [max(pair) for pair in zip(highest, last)]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # the optimizer takes no steps here
            for scheduler in dry:
                if not scheduler.by_epoch or (iteration + 1) % length == 0:
                    scheduler.step()
    return [GroupRate(name, first[name], top, end) for (name, _), top, end in zip(parts, highest, last)]


def _parts(runner: Runner, wrapper: OptimWrapper) -> list[tuple[str, dict[str, Any]]]:
    """Name and parameter group, one for each part of the model and learning rate of its start."""
    names = {id(parameter): name for name, parameter in _unwrapped(runner).named_parameters()}
    roots = dict(decode_head='heads', auxiliary_head='heads')
    found: dict[str, dict[str, Any]] = {}
    for group in wrapper.optimizer.param_groups:
        if not group['params']:
            continue
        root = names.get(id(group['params'][0]), 'other').partition('.')[0]
        name = group.get('method') or roots.get(root, root)
        rate = group.get('initial_lr', group['lr'])
        if name in found and found[name].get('initial_lr', found[name]['lr']) != rate:
            name = f'{name} at {rate:.1e}'
        found.setdefault(name, group)
    return list(found.items())


def _start_lines(runner: Runner) -> list[str]:
    loader = runner.train_dataloader
    images = (loader.batch_size or 1) * get_world_size()
    datasets = dict(training=loader.dataset)
    every = None
    if runner.val_loop is not None:
        datasets['validation'] = runner.val_dataloader.dataset
        every = runner.val_interval
    saver = _find(runner, CheckpointHook)
    progress = Progress(
        done=runner.iter,
        total=runner.max_iters,
        per_epoch=max(1, -(-images_per_pass(loader.dataset) // images)),
        validation_every=every,
        checkpoint_every=None if saver is None or saver.interval <= 0 else saver.interval,
        by_epoch=isinstance(runner.train_loop, EpochBasedTrainLoop),
        source=None if runner._load_from is None else str(runner._load_from),
    )
    dtype = None if torch.cuda.is_available() else getattr(runner.optim_wrapper, 'cpu_dtype', None)
    precision = '' if dtype is None else str(dtype).removeprefix('torch.')
    return start_lines(runner.cfg, _unwrapped(runner), datasets, learning_rates(runner), progress, images, precision)


def _checkpoints(runner: Runner) -> dict[str, str]:
    hook = _find(runner, CheckpointHook)
    files = dict(best=getattr(hook, 'best_ckpt_path', None), last=getattr(hook, 'last_ckpt', None))
    return {name: str(path) for name, path in files.items() if path}


def _find(runner: Runner, kind: type) -> Any | None:
    return next((hook for hook in runner.hooks if isinstance(hook, kind)), None)


def _unwrapped(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
