"""Faults in a training, through the command line: inf and nan, labels, locks, workers, full disks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, free_port, run, tool

pytestmark = pytest.mark.slow

BREAK = """
import os, signal
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from torch.utils.data import get_worker_info


@TRANSFORMS.register_module()
class Break(BaseTransform):
    \"\"\"Does something to one image of the training.\"\"\"

    def __init__(self, action, image):
        self.action, self.image = action, image

    def transform(self, results):
        if self.image in str(results['data_samples'].img_path):
            if self.action == 'nan':
                results['inputs'] = results['inputs'].float()
                results['inputs'][0, 3, 5] = float('nan')
            elif self.action == 'ignore':
                results['data_samples'].gt_sem_seg.data.fill_(255)
            elif get_worker_info():  # not in the check of the data before the training
                os.kill(os.getpid(), getattr(signal, self.action))
        return results
"""


@pytest.fixture(scope='module')
def broken(tiny_config, tmp_path_factory):
    """Writes a config whose training meets a fault; returns its path and the environment that it needs."""
    folder = tmp_path_factory.mktemp('broken')
    (folder / 'break_images.py').write_text(BREAK)

    def write(action, image, loader='', more=''):
        path = folder / f'{action}.py'
        path.write_text(
            f'_base_ = {str(tiny_config)!r}\n'
            "custom_imports = dict(imports=['mmseg_davpt', 'break_images'], allow_failed_imports=False)\n"
            'train_pipeline = [*_base_.train_pipeline, '
            f'dict(type="Break", action={action!r}, image={image!r})]\n'
            f'train_dataloader = dict(dataset=dict(pipeline=train_pipeline), {loader})\n'
            'model = dict(backbone=dict(tuning="vpt_deep"), guidance=None)\n'
            'train_cfg = dict(max_iters=30, val_interval=100)\n'
            'param_scheduler = []\n'
            'default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=2, max_keep_ckpts=2))\n' + more
        )
        return path, dict(PYTHONPATH=f'{ROOT}:{folder}')

    return write


def checkpoints(folder):
    return {path.name: torch.load(path, weights_only=False)['state_dict'] for path in folder.glob('iter_*.pth')}


def assert_finite_checkpoints(folder, at_least=1):
    states = checkpoints(folder)
    assert len(states) >= at_least
    for name, state in states.items():
        assert all(value.isfinite().all() for value in state.values()), name
    assert not list(folder.glob('.*.tmp'))


def first_images(scenes):
    """Names of the training images."""
    return sorted(path.stem for path in (scenes / 'seed0').rglob('images/training/*'))


def test_nan_pixel_stops_the_training(broken, scenes, tmp_path):
    """Named: iteration, loss term, image and file of the batch. No bad checkpoint."""
    image = first_images(scenes)[3]
    config, environment = broken('nan', image)
    code, printed = run(
        sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, check=False, **environment
    )
    assert code != 0
    error = re.search(r'FloatingPointError: Iteration (\d+): decode\.loss_ce is nan.*', printed)
    assert error, printed[-2000:]
    assert re.search(rf'inf or nan in the pixels of \S*{image}\.', error[0])
    replay = torch.load(tmp_path / f'non_finite_iter_{error[1]}_rank0.pth', weights_only=True)
    assert any(image in path for path in replay['img_paths'])
    assert replay['iteration'] == int(error[1]) - 1
    assert sum(not bool(pixels.isfinite().all()) for pixels in replay['inputs']) == 1
    assert 'decode.loss_ce' in replay['losses']
    assert_finite_checkpoints(tmp_path, at_least=0)


@pytest.mark.faults
def test_nan_pixel_stops_both_ranks(broken, scenes, tmp_path):
    config, environment = broken('nan', first_images(scenes)[0])
    started = time.monotonic()
    code, printed = run(
        ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', tmp_path, check=False, MASTER_PORT=free_port(),
        **environment,
    )  # fmt: skip
    assert code != 0
    assert time.monotonic() - started < 120
    error = r'FloatingPointError: Iteration \d+: .* Images of the batch of rank [01]:'
    assert re.search(error, printed), printed[-2000:]
    assert len(list(tmp_path.glob('non_finite_iter_*.pth'))) == 1
    assert_finite_checkpoints(tmp_path, at_least=0)


@pytest.mark.faults
def test_ignored_labels_are_said_once(broken, tmp_path):
    config, environment = broken('ignore', '', more='train_cfg = dict(max_iters=14)\nparam_scheduler = []\n')
    printed = tool('train', config, '--work-dir', tmp_path, **environment)
    warnings = [line for line in printed.splitlines() if 'every pixel is ignored' in line]
    assert len(warnings) == 1
    for word in ('reduce_zero_label=True', 'ignore_index', 'only the id 255', 'check_dataset'):
        assert word in warnings[0]


def start(*command, **environment):
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)) | environment
    return subprocess.Popen(
        [str(part) for part in command], env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def wait_for(path, process, seconds=120):
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-2000:]
        assert time.monotonic() < until, f'{path} did not appear'
        time.sleep(0.1)


def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def ranks_of(launcher):
    children = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(launcher)], text=True, stdout=subprocess.PIPE)
    return [int(pid) for pid in children.stdout.split()]


def ranks_left(launcher):
    try:
        os.killpg(launcher.pid, 0)
    except ProcessLookupError:
        return False
    return True


def endless(folder, *options):
    """Options of a training that ends only when it is stopped."""
    steps = ('train_cfg.max_iters=100000', 'train_cfg.val_interval=100000', 'param_scheduler=None')
    return ('--work-dir', folder, '--cfg-options', *steps, *options)


@contextmanager
def two_ranks(config, folder, *options):
    """torchrun with two ranks that have begun to train; ended at the end."""
    command = (ROOT / 'tools/dist_train.sh', config, 2, *endless(folder, *options))
    launcher = start(*command, MASTER_PORT=free_port())
    try:
        wait_for(folder / 'iter_3.pth', launcher)
        yield launcher
    finally:
        if ranks_left(launcher):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.communicate()


@pytest.mark.faults
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_second_training_in_a_folder_is_refused(tiny_config, tmp_path):
    """While the first one runs; not after it was killed."""
    first = start(sys.executable, ROOT / 'tools/train.py', tiny_config, *endless(tmp_path))
    try:
        wait_for(tmp_path / 'iter_3.pth', first)
        code, printed = run(sys.executable, ROOT / 'tools/train.py', tiny_config, '--work-dir', tmp_path, check=False)
        assert code != 0
        assert f'process {first.pid} on host ' in printed
        assert '--work-dir' in printed
        assert (tmp_path / '.train.lock').is_file()
    finally:
        first.kill()
        first.communicate()
    assert json.loads((tmp_path / '.train.lock').read_text())['pid'] == first.pid  # left behind, and no obstacle
    tool('train', tiny_config, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_iters=1')
    assert not (tmp_path / '.train.lock').read_text()


@pytest.mark.faults
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a signal of Linux')
def test_ranks_die_with_torchrun(tiny_config, tmp_path):
    with two_ranks(tiny_config, tmp_path) as launcher:
        ranks = ranks_of(launcher.pid)
        assert len(ranks) == 2
        launcher.kill()
        until = time.monotonic() + 20
        while any(map(alive, ranks)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not any(map(alive, ranks))


@pytest.mark.faults
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_a_stopped_rank_ends_the_job(tiny_config, tmp_path):
    """``env_cfg.dist_cfg.timeout``; torchrun then ends the stopped rank, after 30 s."""
    with two_ranks(tiny_config, tmp_path, 'env_cfg.dist_cfg.timeout=10') as launcher:
        os.kill(ranks_of(launcher.pid)[1], signal.SIGSTOP)
        printed = launcher.communicate(timeout=120)[0]
        assert launcher.returncode != 0
        assert re.search('[Tt]imed out|[Tt]imeout', printed), printed[-2000:]


@pytest.mark.faults
@pytest.mark.parametrize('action', ['SIGKILL', 'SIGSTOP'])
def test_a_dead_or_stopped_worker_ends_the_training(action, broken, scenes, tmp_path):
    config, environment = broken(action, first_images(scenes)[0], 'num_workers=1, timeout=5')
    started = time.monotonic()
    code, printed = run(
        sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, check=False, **environment
    )
    assert code != 0
    assert time.monotonic() - started < 100
    assert '--shm-size' in printed.splitlines()[-1]
    assert 'num_workers=0' in printed.splitlines()[-1]
