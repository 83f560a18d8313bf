"""One training per work folder, ranks that end with their launcher, loaders without workers."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmseg_davpt.apis import exclusive_work_dir, explained_worker_errors
from mmseg_davpt.apis.processes import die_with_launcher, fit_loaders, process_group_timeout

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='Linux only')
HOLDER = """
import sys, time
import importlib.util
spec = importlib.util.spec_from_file_location('processes', sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.exclusive_work_dir(sys.argv[2]):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    file = sys.modules[exclusive_work_dir.__module__].__file__
    process = subprocess.Popen([sys.executable, '-c', HOLDER, file, str(tmp_path)], text=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused(holder, tmp_path):
    with pytest.raises(RuntimeError, match='in use by another training') as caught, exclusive_work_dir(tmp_path):
        pass
    for part in (f'process {holder.pid} on host {socket.gethostname()}', '--work-dir', '.train.lock'):
        assert part in str(caught.value)


def test_a_lock_left_behind_is_no_obstacle(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / '.train.lock').read_text())['pid'] == holder.pid
    with exclusive_work_dir(tmp_path):
        assert json.loads((tmp_path / '.train.lock').read_text())['pid'] == os.getpid()
    assert not (tmp_path / '.train.lock').read_text()


def try_lock(folder, answers):
    try:
        with exclusive_work_dir(folder):
            answers.put('held')
    except RuntimeError:
        answers.put('refused')


def test_an_exception_releases_the_lock(tmp_path):
    context = multiprocessing.get_context('fork')
    answers = context.Queue()

    def other():
        process = context.Process(target=try_lock, args=(tmp_path, answers))
        process.start()
        process.join()
        return answers.get(timeout=10)

    with pytest.raises(ZeroDivisionError), exclusive_work_dir(tmp_path):
        assert other() == 'refused'  # also where the lock was held while the process was forked
        raise ZeroDivisionError
    assert other() == 'held'


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_only_rank_0_takes_the_lock(launcher, variable, holder, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, '1')
    with exclusive_work_dir(tmp_path, launcher):
        pass
    with pytest.raises(RuntimeError), exclusive_work_dir(tmp_path):  # without that launcher, the variable says nothing
        pass


@linux
def test_a_rank_whose_launcher_is_gone(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setattr('mmseg_davpt.apis.processes.ctypes.CDLL', lambda *_, **__: FakeC())
    monkeypatch.setenv('MMSEG_DAVPT_LAUNCHER', str(os.getpid()))
    die_with_launcher()
    gone = subprocess.Popen(['true'])
    gone.wait()
    monkeypatch.setenv('MMSEG_DAVPT_LAUNCHER', str(gone.pid))
    with pytest.raises(SystemExit, match=f'{gone.pid}\\) died while this rank started'):
        die_with_launcher()


class FakeC:
    def prctl(self, option, signal_number):
        assert (option, signal_number) == (1, 9)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='prctl is of Linux')
def test_a_child_ends_with_its_parent():
    """``kill -9`` of tools/compare.py must not leave the process of a cell."""
    code = """
import os, time
from mmseg_davpt.apis.processes import die_with_parent
ends, start = os.pipe()
if child := os.fork():
    os.read(ends, 1)
    print(child, flush=True)
else:
    die_with_parent()
    os.write(start, b'1')
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(pid):
    """Neither gone nor a zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except FileNotFoundError:
        return False


def test_timeout():
    assert process_group_timeout(Config()) is None
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=90))))
    assert process_group_timeout(cfg).total_seconds() == 90
    for wrong in (0, -1, '90', True, float('nan'), float('inf')):
        cfg.env_cfg.dist_cfg.timeout = wrong
        with pytest.raises(ValueError, match=r'env_cfg\.dist_cfg\.timeout=.*positive number of seconds'):
            process_group_timeout(cfg)


def test_loaders_without_workers():
    options = dict(persistent_workers=True, timeout=100, prefetch_factor=4)
    cfg = Config(dict(train_dataloader=dict(num_workers=0, **options), val_dataloader=dict(num_workers=2, **options)))
    fit_loaders(cfg)
    torch.utils.data.DataLoader([1], **cfg.train_dataloader)
    assert cfg.val_dataloader == dict(num_workers=2, **options)


def test_worker_errors_are_explained():
    for text in ('DataLoader timed out after 5 seconds', 'DataLoader worker (pid 7) is killed by signal: Bus error. '):
        with pytest.raises(RuntimeError, match='--shm-size') as caught, explained_worker_errors():
            raise RuntimeError(text)
        assert text in str(caught.value)
    with pytest.raises(RuntimeError, match=r'^DataLoader is odd$'), explained_worker_errors():
        raise RuntimeError('DataLoader is odd')


class StopsItself(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGSTOP)


@linux
def test_a_stopped_worker_does_not_keep_the_process(tmp_path):
    """At its end, Python waits for its children: a stopped one would never end."""
    loader = torch.utils.data.DataLoader(StopsItself(), num_workers=1, timeout=1, multiprocessing_context='fork')
    with pytest.raises(RuntimeError, match='timed out after 1 seconds'), explained_worker_errors():
        next(iter(loader))
    assert not multiprocessing.active_children()
