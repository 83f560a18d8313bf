"""A training as a user sees it: screen, log file, ctrl-C, visual backends, and what a run leaves in its folder."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tool
from mmengine.logging import MMLogger
from test_assignment_hook import train

from mmseg_davpt.compat import is_worth_a_line
from mmseg_davpt.engine import QuietRunner, RunSummaryHook
from mmseg_davpt.engine.record_hook import class_ious
from mmseg_davpt.engine.summary_hook import learning_rates


@pytest.fixture(scope='module')
def trained(tiny_config, tmp_path_factory):
    """(work dir, what the screen showed, the log file) of a training of 6 iterations with 2 validations."""
    work_dir = tmp_path_factory.mktemp('run')
    backends = tmp_path_factory.mktemp('config') / 'backends.py'
    backends.write_text(f"""
_base_ = {str(tiny_config)!r}
train_cfg = dict(val_interval=3)
vis_backends = [dict(type='LocalVisBackend')]
if {find_spec('tensorboard') is not None}:
    vis_backends.append(dict(type='TensorboardVisBackend'))
visualizer = dict(vis_backends=vis_backends)
""")
    printed = tool('train', backends, '--work-dir', work_dir)
    return work_dir, printed, next(work_dir.glob('*/*.log')).read_text()


@pytest.mark.slow
class TestScreen:
    def test_twelve_lines_before_the_first_iteration(self, trained):
        before = trained[1].split('Iter(train)')[0]
        summary = before[before.index('\nData ') :].strip().splitlines()[:-1]
        assert 8 <= len(summary) <= 12, before
        for word in ('paramwise_options', 'custom_imports', 'System environment', 'Could not import', 'FileClient'):
            assert word not in before, word

    def test_the_file_has_the_config_and_the_parameters(self, trained):
        log = trained[2]
        for text in ('System environment', 'custom_imports', 'train_dataloader', 'Hooks will be executed'):
            assert text in log
        assert re.search(r'residual_prompts +2,944 +2,944', log)
        assert '\nData ' in log

    def test_lines_of_a_pipe_are_plain(self, trained):
        assert '\r' not in trained[1]
        assert 'it/s' not in trained[1]

    def test_the_end_says_what_came_out_and_what_is_next(self, trained):
        work_dir, printed, _ = trained
        end = printed[printed.index('Training finished: 6 iterations.') :]
        assert re.search(r'Best mIoU \S+ after iteration [36], last \S+ after iteration 6', end)
        assert re.search(r'^wall +\S+ +\S+$', end, re.M)
        command = re.search(r'Next: python (tools/test.py (\S+) (\S+))', end)
        assert (ROOT / command[2]).is_file() or os.path.isfile(command[2])
        assert os.path.isfile(command[3])
        assert str(work_dir) in end

    def test_best_and_last_checkpoints_are_kept(self, trained):
        names = {path.name for path in trained[0].glob('*.pth')}
        assert 'iter_6.pth' in names
        assert any(name.startswith('best_mIoU_iter_') for name in names)

    def test_assignments_are_counted(self, trained):
        found = re.findall(r'Prompt assignment of block 5: (\d+) classes on 3 prompts; (\d+) moved', trained[2])
        assert len(found) == 2
        assert '[' not in ''.join(re.findall(r'Prompt assignment.*', trained[2]))


@pytest.mark.slow
def test_tensorboard_gets_scalars_and_figures(trained):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(next(trained[0].rglob('events.out.*')).parent)).Reload()
    scalars = events.Tags()['scalars']
    assert {'loss', 'mIoU', 'lr', 'own_prompt_share/block_5'} <= set(scalars)
    assert [event.step for event in events.Scalars('mIoU')] == [3, 6]
    for name in ('picture_grid', 'class_prompt_matrix'):
        images = events.Images(name)
        assert [image.step for image in images] == [3, 6]
        assert images[0].width > 600


@pytest.mark.slow
class TestRecord:
    @pytest.fixture
    def record(self, trained):
        return json.loads((trained[0] / 'run_record.json').read_text())

    def test_figures_are_those_of_the_metric(self, record, trained):
        """The confusion matrix gives the IoU that mmseg's metric prints."""
        assert [one['iteration'] for one in record['validations']] == [3, 6]
        ious = class_ious(torch.tensor(record['confusion']))
        logged = re.findall(r'mIoU: (\S+)  mAcc', trained[2])[-1]
        assert abs(ious[~ious.isnan()].mean() - float(logged)) < 0.01
        assert record['validations'][-1]['metrics']['mIoU'] == pytest.approx(float(logged))

    def test_every_image_has_a_score_and_the_worst_are_stored(self, record, trained):
        assert len(record['images']) == 3
        scores = [one['mIoU'] for one in record['images']]
        assert record['shown']['worst'][0]['mIoU'] == min(scores)
        assert record['shown']['best'][0]['mIoU'] == max(scores)
        for one in (*record['shown']['worst'], *record['shown']['best']):
            for kind in ('image', 'truth', 'prediction'):
                assert (trained[0] / one[kind]).is_file()

    def test_everything_that_a_report_needs(self, record):
        assert record['parameters']['residual_prompts'] == [2944, 2944]
        assert record['command'][0].endswith('train.py')
        assert record['done'] == 6
        assert record['peak_memory'] > 1e7
        assert [one['iteration'] for one in record['assignments']] == [0, 3]
        assert record['attention']['5']['figures']['to_own'] > 0
        assert {'torch', 'mmseg'} <= set(record['versions'])


@pytest.mark.slow
class TestInterrupt:
    @pytest.fixture(scope='class')
    @classmethod
    def stopped(cls, tiny_config, tmp_path_factory):
        """(work dir, exit code, what was printed) of a training that got SIGINT after its first iterations."""
        work_dir = tmp_path_factory.mktemp('stopped')
        command = [
            sys.executable, ROOT / 'tools/train.py', tiny_config, '--work-dir', work_dir, '--cfg-options',
            'train_cfg.max_iters=2000', 'param_scheduler.0.end=2000', 'default_hooks.checkpoint.interval=2000',
            'train_cfg.val_interval=2000',
        ]  # fmt: skip
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PYTHONUNBUFFERED='1')
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        printed = ''
        for line in process.stdout:
            printed += line
            if 'Iter(train)' in line:
                break
        process.send_signal(signal.SIGINT)
        printed += process.communicate(timeout=120)[0]
        return work_dir, process.returncode, printed

    def test_a_checkpoint_is_saved_and_the_command_is_said(self, stopped):
        work_dir, code, printed = stopped
        assert code == 130, printed[-2000:]
        done = int(re.search(r'Stopped after iteration (\d+) of 2000', printed)[1])
        assert (work_dir / f'iter_{done}.pth').is_file()
        assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / f'iter_{done}.pth')
        assert re.search(r'Continue: python \S+train.py \S+ --resume --work-dir', printed)
        assert 'Traceback' not in printed


def test_nothing_left_to_train_is_said(tmp_path):
    """With the file, and what to do about it."""
    from mmseg_davpt.apis.checkpoints import CheckpointCheckHook

    log = MMLogger.get_instance('finished', log_file=str(tmp_path / 'log.txt'))
    runner = SimpleNamespace(_resume=True, _load_from='iter_9.pth', iter=9, max_iters=9, train_loop=None)
    CheckpointCheckHook().before_train(runner)
    runner.iter = 8
    CheckpointCheckHook().before_train(runner)
    for handler in log.handlers:
        handler.flush()
    (line,) = re.findall(r'Nothing to train.*', (tmp_path / 'log.txt').read_text())
    for text in (
        'iter_9.pth is the end of a training of 9 iterations',
        'tools/test.py',
        'train_cfg.max_iters',
        '--work-dir',
    ):
        assert text in line


def test_nothing_to_resume_says_what_to_do(tmp_path):
    from mmseg_davpt.apis import checked_checkpoints

    class Stop(Exception):
        pass

    class Runner_:
        _resume, _load_from, work_dir = True, None, str(tmp_path)

        def register_hook(self, hook):
            raise Stop

    log = MMLogger.get_instance('resume', log_file=str(tmp_path / 'log.txt'))
    with pytest.raises(Stop), checked_checkpoints(Runner_()):
        pass
    for handler in log.handlers:
        handler.flush()
    assert 'To continue a training, give its folder as --work-dir' in (tmp_path / 'log.txt').read_text()


@pytest.mark.parametrize('schedule', [
    [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
     dict(type='PolyLR', power=0.9, eta_min=0.0, begin=3, end=8, by_epoch=False)],
    [dict(type='MultiStepLR', milestones=[4], gamma=0.1, by_epoch=False)],
    None,
])  # fmt: skip
def test_rates_are_those_of_the_training(schedule, tmp_path):
    """The dry run of the schedulers against the rates that the optimizer has in each iteration."""
    real, dry = [], []

    class Rates(RunSummaryHook):
        def before_train(self, runner):
            dry.extend(learning_rates(runner))

        def after_train_iter(self, runner, *_, **__):
            pass

        def before_train_iter(self, runner, *_, **__):
            real.append(runner.optim_wrapper.get_lr()['lr'][0])

        def after_train(self, runner):
            pass

    train(tmp_path, iterations=8, hooks=[Rates()], param_scheduler=schedule)
    (rate,) = {(one.first, one.highest, one.last) for one in dry}
    assert rate == pytest.approx((real[0], max(real), real[-1]))


def test_the_screen_shows_warnings_until_it_is_opened(tmp_path, capfd):
    runner = QuietRunner.__new__(QuietRunner)
    runner._log_dir, runner._timestamp, runner._experiment_name = str(tmp_path), 'now', 'quiet screen'
    logger = runner.build_logger()
    logger.info('to the file only')
    logger.warning('to both')
    logger.warning('"FileClient" will be deprecated in future')
    shown, written = capfd.readouterr().out, (tmp_path / 'now.log').read_text()
    assert 'to the file only' in written
    assert 'to the file only' not in shown
    assert 'to both' in shown
    assert 'FileClient' not in shown + written


def test_only_known_noise_is_dropped():
    def record(message):
        return logging.LogRecord('mmengine', logging.WARNING, 'file', 1, message, (), None)

    assert not is_worth_a_line(record('The prefix is not set in metric class IoUMetric.'))
    assert is_worth_a_line(record('The prefix is set'))


def test_a_score_that_the_validation_lacks_is_named(tmp_path):
    from mmseg_davpt.engine import SafeCheckpointHook

    hook = SafeCheckpointHook(by_epoch=False, interval=1, save_best='mIoU')
    with pytest.raises(ValueError, match=r"save_best='mIoU': the validation gives mDice"):
        hook.after_val_epoch(None, dict(mDice=1.0))


def test_a_terminal_has_a_progress_line_with_the_time_left(tmp_path, monkeypatch):
    """Under the lines of the log; the log file has none of it."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, 'stdout', screen)
    _, _, log = train(tmp_path, iterations=3, hooks=[RunSummaryHook()])
    bars = re.findall(r'3/3 \[\d\d:\d\d<\d\d:\d\d, .*loss=[\d.]+', screen.getvalue())
    assert bars, screen.getvalue()[-500:]
    assert 'Iter(train) [2/3]' in screen.getvalue()
    assert not re.search(r'\[\d\d:\d\d<', '\n'.join(log))
