"""``kill -9`` at random times and while a checkpoint is written, then ``--resume``: the same final tensors."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import free_port
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from scenes import ITERATIONS, fork_server, train

import mmseg_davpt.engine.checkpoint_hook as checkpoint_hook

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
# Number of the long tests; smaller numbers for a quick look.
RANDOM_KILLS, AIMED_KILLS = (int(os.environ.get(f'FAULT_{kind}_KILLS', number))
                             for kind, number in (('RANDOM', 100), ('AIMED', 30)))  # fmt: skip
STEPS = ('partial file', 'before the rename', 'after the rename', 'partial pointer', 'before the removal')


def worker(folder, resume, rank, world, port, aim, output):
    """One rank, in a process of its own; kills itself at a step of writing a checkpoint of ``aim``, if given."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if aim is not None and rank == 0:
        kill_while_writing(*aim)
    train(folder, resume, rank, world, port)


def kill_while_writing(number, step):
    """Kill this process at a step of writing its ``number``-th checkpoint."""
    written, replace, fsync, remove = [0], Path.replace, os.fsync, checkpoint_hook.AtomicLocalBackend.remove

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_fsync(descriptor):
        name = os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))
        size = os.fstat(descriptor).st_size
        if name.startswith('.iter_') and written[0] + 1 == number and step == 'partial file':
            os.ftruncate(descriptor, random.Random(number).randrange(size))
            die()
        if name == '.last_checkpoint.tmp' and written[0] == number and step == 'partial pointer':
            os.ftruncate(descriptor, size // 2)
            die()
        fsync(descriptor)

    def killing_replace(path, target):
        checkpoint = Path(target).suffix == '.pth'
        if checkpoint and written[0] + 1 == number and step == 'before the rename':
            die()
        result = replace(path, target)
        written[0] += checkpoint
        if checkpoint and written[0] == number and step == 'after the rename':
            die()
        return result

    def killing_remove(backend, path):
        if written[0] >= number and step == 'before the removal':
            die()
        remove(backend, path)

    Path.replace, os.fsync, checkpoint_hook.AtomicLocalBackend.remove = killing_replace, killing_fsync, killing_remove


class Trainings:
    """Starts trainings in processes that are forked from one with all imports."""

    def __init__(self, folder):
        self.folder, self.context = folder, fork_server()
        self.whole = {}

    def run(self, folder, world, resume=False, kill_after=None, victim=0, aim=None):
        """Train; returns whether a rank was killed. As torchrun does, the others are ended then."""
        port = free_port()
        ranks = [
            self.context.Process(
                target=worker, args=(str(folder), resume, rank, world, port, aim, f'{folder}.{rank}.txt'), daemon=True
            )
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        until = None if kill_after is None else time.monotonic() + kill_after
        give_up = time.monotonic() + 120
        first_codes = set()  # of the ranks that ended before this ended the others
        while any(rank.is_alive() for rank in ranks):
            if until is not None and time.monotonic() >= until:
                ranks[victim].kill()  # SIGKILL; it may just have ended
                until = None
            codes = {rank.exitcode for rank in ranks} - {None, 0}
            if codes and not first_codes:
                first_codes = codes
                for rank in ranks:
                    rank.kill()
            assert time.monotonic() < give_up, 'the ranks hang'
            time.sleep(0.005)
        first_codes = first_codes or {rank.exitcode for rank in ranks}
        killed = -signal.SIGKILL in first_codes  # a rank that loses its peer may fail before it is ended
        assert killed or first_codes == {0}, Path(f'{folder}.0.txt').read_text()[-2000:]
        return killed

    def expected(self, world):
        """Tensors and seconds of an uninterrupted run."""
        if world not in self.whole:
            folder = self.folder / f'whole{world}'
            if not self.whole:  # start the fork server
                warm_up = self.context.Process(target=abs, args=(1,))
                warm_up.start()
                warm_up.join()
            started = time.monotonic()
            assert not self.run(folder, world)
            self.whole[world] = tensors(folder), time.monotonic() - started
        return self.whole[world]

    def trial(self, name, world, **kill):
        """Kill a training, resume it; returns (killed, checkpoints before the kill, tensors that differ)."""
        folder = self.folder / name
        killed = self.run(folder, world, **kill)
        found = sorted(path.name for path in folder.glob('iter_*.pth'))
        for path in folder.glob('iter_*.pth'):
            torch.load(path, map_location='cpu', weights_only=False)  # complete
        assert not self.run(folder, world, resume=True)
        expected, final = self.expected(world)[0], tensors(folder)
        assert expected.keys() == final.keys()
        kept = {path.name for path in folder.iterdir() if path.suffix in ('.pth', '.tmp')}
        assert kept == {f'iter_{ITERATIONS}.pth', f'iter_{ITERATIONS - 2}.pth'}, (kept, found)
        different = [key for key, value in expected.items() if not torch.equal(value, final[key])]
        shutil.rmtree(folder)
        return killed, found, different


def tensors(folder):
    """All tensors of the last checkpoint: weights, buffers, optimizer."""
    content = torch.load(folder / f'iter_{ITERATIONS}.pth', map_location='cpu', weights_only=False)
    found = dict(content['state_dict'])
    for number, state in content['optimizer']['state'].items():
        found |= {f'optimizer.{number}.{key}': value for key, value in state.items()}
    return found


@pytest.fixture(scope='module')
def trainings(tmp_path_factory):
    return Trainings(tmp_path_factory.mktemp('kills'))


def random_kills(trainings, number, world):
    """Kill ``number`` trainings; returns the number of trials and of kills after a checkpoint."""
    draw = random.Random(world)
    _, seconds = trainings.expected(world)
    trials = killed = resumed = 0
    while killed < number:
        kill = dict(kill_after=draw.uniform(0.1, 1.0) * seconds, victim=draw.randrange(world))
        was_killed, found, different = trainings.trial(f'random{world}_{trials}', world, **kill)
        assert not different, (kill, found, different)
        trials, killed, resumed = trials + 1, killed + was_killed, resumed + bool(found and was_killed)
        if not was_killed or not found:  # follow the speed of the machine
            seconds *= 1.03 if was_killed else 0.95
    return trials, resumed


def aimed_kills(trainings, number, world):
    draw = random.Random(10 + world)
    for index in range(number):
        step = STEPS[index % len(STEPS)]
        checkpoint = draw.randint(3 if step == 'before the removal' else 1, ITERATIONS // 2)
        was_killed, found, different = trainings.trial(f'aimed{world}_{index}', world, aim=(checkpoint, step))
        assert was_killed, step
        assert not different, (step, checkpoint, found, different)


def test_a_few_kills(trainings):
    random_kills(trainings, 1, 1)
    aimed_kills(trainings, 2, 1)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(('world', 'share'), [(1, 0.7), (2, 0.3)])
def test_random_kills(world, share, trainings):
    number = round(share * RANDOM_KILLS)
    trials, resumed = random_kills(trainings, number, world)
    print(f'\nrandom kills, {world} process(es): {number} killed in {trials} trials, {resumed} of them after a '
          f'checkpoint; 0 of {len(trainings.expected(world)[0])} tensors differ')  # fmt: skip
    assert resumed > number // 4


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(('world', 'share'), [(1, 2 / 3), (2, 1 / 3)])
def test_kills_while_a_checkpoint_is_written(world, share, trainings):
    number = round(share * AIMED_KILLS)
    aimed_kills(trainings, number, world)
    print(f'\nkills at a step of writing, {world} process(es): {number} trials; 0 of '
          f'{len(trainings.expected(world)[0])} tensors differ')  # fmt: skip


@HOOKS.register_module(force=True)
class UsageHook(Hook):
    """Notes memory (MB) and open files of this process every 100 iterations, into ``usage.txt``."""

    def after_train_iter(self, runner, batch_idx, *_, **__):
        if batch_idx % 100 == 99:
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            with Path(runner.work_dir, 'usage.txt').open('a') as file:
                print(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, len(os.listdir('/proc/self/fd')), file=file)


def long_run(folder, iterations):
    torch.multiprocessing.set_sharing_strategy('file_system')
    os.dup2(os.open(f'{folder}.txt', os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    train(folder, iterations=iterations, interval=50, hooks=[dict(type='UsageHook')])


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_memory_and_files_stay_flat(trainings, tmp_path):
    iterations = int(os.environ.get('FAULT_ITERATIONS', 2000))
    process = trainings.context.Process(target=long_run, args=(str(tmp_path), iterations))
    process.start()
    process.join()
    assert process.exitcode == 0, Path(f'{tmp_path}.txt').read_text()[-2000:]
    usage = [tuple(map(float, line.split())) for line in (tmp_path / 'usage.txt').read_text().splitlines()]
    settled = usage[len(usage) // 4 :]
    growth = settled[-1][0] - settled[0][0]
    print(f'\n{iterations} iterations: {settled[0][0]:.0f} MB after a quarter, {settled[-1][0]:.0f} MB at the end; '
          f'{settled[0][1]:.0f} and {settled[-1][1]:.0f} open files')  # fmt: skip
    assert growth < 10
    assert settled[-1][1] == settled[0][1]
