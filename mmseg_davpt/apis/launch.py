"""Shared by the command lines: config, data root, precision, processes."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import import_modules_from_strings

from ..datasets.check import leaf_datasets
from ..packaged import packaged_config
from .processes import die_with_launcher, fit_loaders, process_group_timeout

OWN = 'mmseg_davpt::'  # prefix of this package's configs


def load_config(path: str | Path, options: Mapping[str, Any] | None = None, work_dir: str | None = None) -> Config:
    """Read a config as mmseg's tools do.

    Args:
        path: Config file, or ``mmseg_davpt::NAME.py`` for one of this package.
        options: Dotted keys to override. ``data_root`` changes in every dataset that has the value of the config.
        work_dir: Folder of the run; ``work_dirs/CONFIG`` if neither this nor the config names one.

    Raises:
        FileNotFoundError: The config does not exist.
    """
    if str(path).startswith(OWN):
        path = packaged_config(str(path).removeprefix(OWN))
    if not Path(path).is_file():
        raise FileNotFoundError(f'no config at {path}; those of this project are in configs/, or {OWN}NAME.py')
    cfg = Config.fromfile(path)
    root = cfg.get('data_root')
    if options:
        cfg.merge_from_dict(dict(options))
        if any(key.startswith('custom_imports') for key in options):
            import_modules_from_strings(**cfg.custom_imports)  # Config.fromfile imports only what the file names
    if root is not None and cfg.data_root != root:
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            for dataset in leaf_datasets((cfg.get(loader) or {}).get('dataset') or {}):
                if dataset.get('data_root') == root:
                    dataset['data_root'] = cfg.data_root
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(path).stem))
    fit_loaders(cfg)
    _end_schedules(cfg)
    return cfg


def _end_schedules(cfg: Config) -> None:
    """Let schedules without an end last as long as the training; mmengine refuses those that would begin behind it."""
    length = (cfg.get('train_cfg') or {}).get('max_iters')
    for part in cfg.get('param_scheduler') or []:
        if length is not None and isinstance(part, dict) and not part.get('by_epoch', True):
            part.setdefault('end', max(length, part.get('begin', 0) + 1))


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision: as mmseg does on a GPU, in bfloat16 autocast on a CPU.

    Args:
        cfg: The config, changed in place. On a CPU, the options of ``AmpOptimWrapper`` that its gradient scaler needs
            are removed: bfloat16 needs no scaling.

    Raises:
        ValueError: Without a GPU, ``optim_wrapper.dtype`` is not bfloat16.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.type == 'CpuAmpOptimWrapper' and wrapper.get('dtype') in ('auto', 'float32'):  # --amp asks for more
        wrapper.pop('dtype')
    if torch.cuda.is_available():
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    dtype = str(wrapper.pop('dtype', None) or 'bfloat16').removeprefix('torch.')
    if dtype != 'bfloat16':
        raise ValueError(
            f'optim_wrapper.dtype={dtype!r} needs a GPU; on a CPU, mixed precision is bfloat16: remove dtype'
        )
    wrapper.type = 'CpuAmpOptimWrapper'
    for option in ('loss_scale', 'use_fp64'):
        wrapper.pop(option, None)


def prepare_launcher(cfg: Config, launcher: str) -> None:
    """Set the launcher; without a GPU, join a gloo process group, which mmengine does not do.

    Args:
        cfg: The config, changed in place.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        RuntimeError: There is no GPU and the launcher is not ``pytorch`` (torchrun).
        ValueError: ``env_cfg.dist_cfg.timeout`` is not a positive number of seconds.
    """
    cfg.launcher = launcher
    if launcher == 'pytorch':
        die_with_launcher()
    timeout = process_group_timeout(cfg)
    if launcher == 'none' or torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise RuntimeError(f'launcher {launcher!r} needs GPUs; on CPUs use tools/dist_train.sh (torchrun, gloo)')
    # mmengine would call torch.cuda.set_device and wrap the model for device LOCAL_RANK; SyncBN needs a GPU.
    if not dist.is_initialized():
        dist.init_process_group('gloo', timeout=timeout)
        atexit.register(leave_process_group)
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    _replace_sync_bn(cfg.model)
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
    torch.set_num_threads(threads)


def leave_process_group() -> None:
    """Stop gloo's threads before the interpreter exits; otherwise it may abort after all work is done.

    A thread that releases its last collective needs the GIL, which joining it would hold: wait a moment first. Seen
    with torch 2.13 on busy machines.
    """
    if dist.is_initialized():
        time.sleep(0.2)
        dist.destroy_process_group()


def _replace_sync_bn(node: object) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            print_log('SyncBN needs GPUs: replaced by BN.', logger='current', level=logging.WARNING)
        for child in node.values():
            _replace_sync_bn(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _replace_sync_bn(child)
