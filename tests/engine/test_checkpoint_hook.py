"""``SafeCheckpointHook``: whole files, finite numbers, removals last."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from test_assignment_hook import train as train_with

import mmseg_davpt.engine.checkpoint_hook as module
from mmseg_davpt.apis import load_config
from mmseg_davpt.engine import SafeCheckpointHook, stoppable


def train(work_dir, iterations=4, prepare=None, interval=1, keep=2, **options):
    """Train a tiny model with a checkpoint in each iteration; ``prepare`` changes the runner before."""
    build = Runner.from_cfg

    def from_cfg(cfg):
        cfg.default_hooks.checkpoint = dict(
            type='SafeCheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=keep,
            save_best=options.get('save_best'),
        )  # fmt: skip
        cfg.resume = options.get('resume', False)
        runner = build(cfg)
        if prepare is not None:
            prepare(runner)
        return runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'from_cfg', from_cfg)
        return train_with(work_dir, iterations=iterations)


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def pointer(folder):
    return Path((folder / 'last_checkpoint').read_text())


def spoil_in_iteration(number, value=float('nan'), what='parameter'):
    """Changes one number of the model before the checkpoint of an iteration."""

    def prepare(runner):
        class Spoil(Hook):
            priority = 'LOW'

            def after_train_iter(self, runner, *_, **__):
                if runner.iter + 1 == number:
                    spoil(runner, value, what)

        runner.register_hook(Spoil())

    return prepare


def spoil(runner, value, what):
    with torch.no_grad():
        if what == 'parameter':
            next(runner.model.decode_head.parameters()).view(-1)[0] = value
        elif what == 'buffer':
            runner.model.decode_head.convs[0].bn.running_mean[0] = value
        else:
            next(iter(runner.optim_wrapper.optimizer.state.values()))['exp_avg'].view(-1)[0] = value


@pytest.mark.parametrize('what', ['parameter', 'buffer', 'optimizer'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_inf_and_nan_are_not_written(what, value, tmp_path):
    """The last good checkpoints stay, and the message names the tensor and the last one."""
    with pytest.raises(FloatingPointError, match=r'iteration 4 is not written: 1 of its tensors') as caught:
        train(tmp_path, prepare=spoil_in_iteration(4, value, what))
    assert {'parameter': 'state_dict.', 'buffer': 'running_mean', 'optimizer': 'exp_avg'}[what] in str(caught.value)
    assert 'iter_3.pth' in str(caught.value)
    assert names(tmp_path) == ['iter_2.pth', 'iter_3.pth']
    assert pointer(tmp_path).name == 'iter_3.pth'


def test_averaged_weights_are_checked(tmp_path):
    def prepare(runner):
        runner.register_hook(dict(type='EMAHook'))
        spoil_in_iteration(2)(runner)

    with pytest.raises(FloatingPointError, match='not written: 1 of its tensors hold inf or nan: ema_state_dict'):
        train(tmp_path, prepare=prepare)


def test_masks_may_be_infinite(tmp_path):
    def prepare(runner):
        runner.model.register_buffer('mask', torch.tensor([0.0, -float('inf')]))

    train(tmp_path, prepare=prepare)
    assert names(tmp_path) == ['iter_3.pth', 'iter_4.pth']


class SpoilBefore(Hook):
    """Changes a weight before the training, after it was initialized."""

    def before_train(self, runner):
        spoil(runner, float('nan'), 'parameter')


def test_training_starts_from_finite_numbers(tmp_path):
    with pytest.raises(FloatingPointError, match='before the training: decode_head'):
        train(tmp_path, prepare=lambda runner: runner.register_hook(SpoilBefore()))
    assert not names(tmp_path)


def test_the_number_of_checkpoints_is_kept(tmp_path):
    train(tmp_path, iterations=5)
    assert names(tmp_path) == ['iter_4.pth', 'iter_5.pth']
    assert pointer(tmp_path).name == 'iter_5.pth'


class Crash(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize('step', ['write', 'fsync', 'rename', 'pointer', 'removal'])
def test_a_crash_while_writing_leaves_whole_files(step, tmp_path, monkeypatch):
    """At every step: the pointer names a complete file, and a resumed run ends as any other."""
    whole = tmp_path / 'whole'
    train(whole)
    folder = tmp_path / 'crashed'
    crash_in_checkpoint(3, step, monkeypatch)
    with pytest.raises(Crash):
        train(folder)
    monkeypatch.undo()
    assert load(pointer(folder))['meta']['iter'] == (3 if step == 'removal' else 2)
    for path in folder.glob('*.pth'):
        load(path)
    train(folder, resume=True)
    assert not list(folder.glob('.*.tmp'))
    assert names(folder) == names(whole)
    expected, state = (load(path / 'iter_4.pth')['state_dict'] for path in (whole, folder))
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def crash_in_checkpoint(number, step, monkeypatch):
    """Raise at a step of writing a checkpoint; a partial file stays, as after a kill."""
    done = dict(files=0)
    replace, fsync = Path.replace, os.fsync

    def crash(*_):
        raise Crash

    def counted_replace(path, target):
        name = Path(target).name
        if name == f'iter_{number}.pth' and step == 'rename':
            raise Crash
        if name == 'last_checkpoint' and done['files'] == number and step == 'pointer':
            raise Crash
        done['files'] += name.endswith('.pth')
        return replace(path, target)

    def counted_fsync(descriptor):
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        if path.endswith(f'.iter_{number}.pth.tmp') and step in ('write', 'fsync'):
            if step == 'write':
                os.ftruncate(descriptor, 1000)
            raise Crash
        return fsync(descriptor)

    monkeypatch.setattr(Path, 'replace', counted_replace)
    monkeypatch.setattr(os, 'fsync', counted_fsync)
    if step == 'removal':
        monkeypatch.setattr(module.AtomicLocalBackend, 'remove', crash)


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    fsync = os.fsync

    def full(descriptor):
        if os.readlink(f'/proc/self/fd/{descriptor}').endswith('.iter_3.pth.tmp'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'iter_3.pth could not be written: No space left on device.*--resume'):
        train(tmp_path)
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']
    assert pointer(tmp_path).name == 'iter_2.pth'
    assert not list(tmp_path.glob('.*.tmp'))


def interrupt_in_iteration(number):
    def prepare(runner):
        class Interrupt(Hook):
            def after_train_iter(self, runner, *_, **__):
                if runner.iter + 1 == number:
                    os.kill(os.getpid(), signal.SIGINT)

        runner.register_hook(Interrupt())

    return prepare


def test_an_interrupted_training_is_resumed_where_it_stopped(tmp_path):
    """Between two checkpoints: the iteration is finished, and the resumed run ends as an uninterrupted one."""
    train(tmp_path / 'whole', interval=4)
    folder = tmp_path / 'stopped'
    with pytest.raises(KeyboardInterrupt, match=r'after iteration 3 of 4; the last one is .*iter_3\.pth'), stoppable():
        train(folder, interval=4, prepare=interrupt_in_iteration(3))
    assert names(folder) == ['iter_3.pth']
    train(folder, interval=4, resume=True)
    expected, state = (load(path / 'iter_4.pth')['state_dict'] for path in (tmp_path / 'whole', folder))
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def test_a_second_interrupt_ends_at_once(tmp_path):
    def prepare(runner):
        interrupt_in_iteration(2)(runner)
        interrupt_in_iteration(2)(runner)

    with pytest.raises(KeyboardInterrupt) as caught, stoppable():
        train(tmp_path, interval=4, prepare=prepare)
    assert not str(caught.value)
    assert not names(tmp_path)


def test_a_validation_is_finished_before_the_stop(tmp_path):
    """The best checkpoint is there, and the last one is not written twice."""

    def prepare(runner):
        validate(runner, [10.0, 20.0, 30.0, 40.0], interrupt_after=2)

    with pytest.raises(KeyboardInterrupt, match='after iteration 2 of 4'), stoppable():
        train(tmp_path, prepare=prepare, save_best='mIoU')
    assert names(tmp_path) == ['best_mIoU_iter_2.pth', 'iter_1.pth', 'iter_2.pth']


def test_ctrl_c_means_what_it_did_outside_of_a_training():
    before = signal.getsignal(signal.SIGINT)
    with stoppable():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def validate(runner, scores, interrupt_after=None):
    """Run the hooks of a validation after each iteration, with these scores."""
    hook = next(hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))

    class Scores(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, *_, **__):
            runner.train_loop._iter += 1  # a validation runs after the iteration was counted
            if batch_idx + 1 == interrupt_after:
                os.kill(os.getpid(), signal.SIGINT)
            hook.after_val_epoch(runner, dict(mIoU=scores[batch_idx]))
            runner.train_loop._iter -= 1

    runner.register_hook(Scores())


def test_the_best_checkpoint_outlives_a_failure(tmp_path, monkeypatch):
    scores = [10.0, 20.0, 15.0, 30.0]
    train(tmp_path / 'best', prepare=lambda runner: validate(runner, scores), save_best='mIoU')
    assert names(tmp_path / 'best') == ['best_mIoU_iter_4.pth', 'iter_3.pth', 'iter_4.pth']
    replace = Path.replace

    def fail(path, target):
        if Path(target).name == 'best_mIoU_iter_4.pth':
            raise Crash
        return replace(path, target)

    monkeypatch.setattr(Path, 'replace', fail)
    with pytest.raises(Crash):
        train(tmp_path / 'crashed', prepare=lambda runner: validate(runner, scores), save_best='mIoU')
    assert 'best_mIoU_iter_2.pth' in names(tmp_path / 'crashed')
    assert load(tmp_path / 'crashed/best_mIoU_iter_2.pth')['meta']['iter'] == 2


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_has_the_guards(path):
    cfg = load_config(path)
    assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    assert 'TrainingGuardHook' in [hook.type for hook in cfg.custom_hooks]
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = Config(cfg[key])
        assert 0 < loader.timeout <= 110 if loader.num_workers else not loader.get('timeout')
