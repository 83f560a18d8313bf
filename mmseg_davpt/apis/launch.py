"""What the command lines share: config, data root, precision, processes."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log

from ..datasets.check import leaf_datasets


def load_config(path: str | Path, options: Mapping | None = None, work_dir: str | None = None) -> Config:
    """Read a config as mmseg's tools do.

    Args:
        path: Config file.
        options: Keys to override, dotted. ``data_root`` reaches every dataset that had the old one.
        work_dir: Folder of the run; ``work_dirs/CONFIG`` if neither this nor the config names one.

    Raises:
        FileNotFoundError: No such config.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no config at {path}; those of the project are in configs/')
    cfg = Config.fromfile(path)
    root = cfg.get('data_root')
    if options:
        cfg.merge_from_dict(dict(options))
    if root is not None and cfg.data_root != root:
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            for dataset in leaf_datasets((cfg.get(loader) or {}).get('dataset') or {}):
                if dataset.get('data_root') == root:
                    dataset['data_root'] = cfg.data_root
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(path).stem))
    return cfg


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision: as mmseg does on a GPU, with bfloat16 autocast on a CPU."""
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'


def prepare_launcher(cfg: Config, launcher: str) -> None:
    """Set the launcher; without a GPU, start gloo processes, which mmengine cannot do by itself.

    Args:
        cfg: The config, changed in place.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        RuntimeError: A launcher without GPUs that is not torchrun.
    """
    cfg.launcher = launcher
    if launcher == 'none' or torch.cuda.is_available():
        return
    if launcher != 'pytorch':
        raise RuntimeError(f'launcher {launcher!r} needs GPUs; on CPUs use tools/dist_train.sh (torchrun, gloo)')
    # mmengine would call torch.cuda.set_device, wrap the model for device LOCAL_RANK, and SyncBN needs a GPU.
    if not dist.is_initialized():
        dist.init_process_group('gloo')
        atexit.register(leave_process_group)
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    _replace_sync_bn(cfg.model)
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
    torch.set_num_threads(threads)


def leave_process_group() -> None:
    """End gloo's threads before the interpreter ends, which else may abort a process that has finished its work.

    A thread that is just putting away its last collective wants Python's lock, which joining it would hold: it gets a
    moment first. Seen with torch 2.13, on busy machines.
    """
    if dist.is_initialized():
        time.sleep(0.2)
        dist.destroy_process_group()


def _replace_sync_bn(node: object) -> None:
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            print_log('SyncBN needs GPUs: BN instead.', logger='current', level=logging.WARNING)
        for child in node.values():
            _replace_sync_bn(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _replace_sync_bn(child)
