"""Processes of a training: one per work folder, none without its launcher, none that waits without end."""

from __future__ import annotations

import ctypes
import datetime
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

LOCK_NAME = '.train.lock'
_RANK_OF = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def exclusive_work_dir(work_dir: str | Path, launcher: str = 'none') -> Iterator[None]:
    """Hold ``WORK_DIR/.train.lock``, so that a second training in the folder is refused.

    The operating system releases the lock when the process ends in any way, so a lock file that is left behind is no
    obstacle. On NFS this needs the server's lock service; a file system without locks causes a warning. Only rank 0
    takes the lock.

    Args:
        work_dir: Folder of the run; created.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        RuntimeError: Another process holds the lock; the message names its host and process id.
    """
    if int(os.environ.get(_RANK_OF.get(launcher, ''), 0)) != 0:
        yield
        return
    path = Path(work_dir, LOCK_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a+') as file:
        _lock(file.fileno(), path)
        file.truncate(0)
        json.dump(dict(host=socket.gethostname(), pid=os.getpid(), started=time.strftime('%Y-%m-%d %H:%M:%S')), file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _lock(descriptor: int, path: Path) -> None:
    """Take a POSIX lock: processes that are forked do not inherit it."""
    try:
        import fcntl
    except ImportError:
        print_log(f'{path}: this system has no file locks; do not start a second training in this folder', 'current')
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, POSIX allows both
        raise RuntimeError(
            f'{path.parent} is in use by another training: {_holder(path)}. Wait until it has ended, end it, or choose '
            'another --work-dir. The lock goes with that process; if its host is gone and a network file system still '
            f'keeps the lock, remove {path}'
        ) from None
    except OSError as error:
        print_log(f'{path}: the file system cannot lock files ({error.strerror}); a second training in this folder '
                  'would not be noticed', 'current')  # fmt: skip


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f'process {holder["pid"]} on host {holder["host"]}, started {holder["started"]}'
    except (OSError, ValueError, KeyError, TypeError):  # it is just writing the file
        return 'an unknown process'


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, also of ``kill -9``. Linux only; nothing elsewhere."""
    if sys.platform.startswith('linux'):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_launcher() -> None:
    """Let the kernel kill this process when torchrun dies, also of ``kill -9``. Linux only; nothing elsewhere.

    ``tools/dist_train.sh`` names its process id in ``MMSEG_DAVPT_LAUNCHER``, to notice a death before this call.
    """
    if not sys.platform.startswith('linux') or 'TORCHELASTIC_RUN_ID' not in os.environ:
        return
    die_with_parent()
    launcher = os.environ.get('MMSEG_DAVPT_LAUNCHER')
    if launcher is not None and not Path('/proc', launcher).exists():
        raise SystemExit(f'torchrun (process {launcher}) died while this rank started')


def process_group_timeout(cfg: Config) -> datetime.timedelta | None:
    """``env_cfg.dist_cfg.timeout`` as a timedelta: how long a rank waits for another.

    Args:
        cfg: A full config; the timeout is in seconds, and optional.

    Raises:
        ValueError: The timeout is not a positive number.
    """
    timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float('inf'):
        raise ValueError(f'env_cfg.dist_cfg.timeout={timeout!r}: expected a positive number of seconds')
    return datetime.timedelta(seconds=timeout)


def fit_loaders(cfg: Config) -> None:
    """Drop the options of worker processes from loaders without any, which torch would refuse.

    Args:
        cfg: A full config, changed in place.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader: dict[str, Any] = cfg.get(name) or {}
        if loader and not loader.get('num_workers', 0):
            for option in ('persistent_workers', 'prefetch_factor', 'timeout'):
                loader.pop(option, None)


def _kill_children() -> None:
    """Python waits for its children when it ends, without end for a stopped one."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise for each of them
    for child in multiprocessing.active_children():
        child.kill()
        child.join(5)
    signal.signal(signal.SIGCHLD, handler)


@contextmanager
def explained_worker_errors() -> Iterator[None]:
    """Add to torch's errors about worker processes what usually causes them, and end all workers.

    Raises:
        RuntimeError: A worker died, or gave no batch within ``timeout`` of its loader.
    """
    try:
        yield
    except RuntimeError as error:
        if 'DataLoader' not in str(error) or not any(word in str(error) for word in ('timed out', 'exited', 'killed')):
            raise
        _kill_children()
        raise RuntimeError(
            f'{error}. A worker process of a data loader died or stopped. Usual causes: a full /dev/shm (Docker: '
            'start the container with --shm-size=8g or --ipc=host), too little memory (dmesg names processes that '
            'were killed for it), or storage that does not answer. Fewer workers need less: --cfg-options '
            'train_dataloader.num_workers=0. For slow storage, raise train_dataloader.timeout (seconds). Then continue '
            'with --resume'
        ) from error
