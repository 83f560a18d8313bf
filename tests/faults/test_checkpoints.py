"""Checkpoints: nothing in them is executed, resume finds the newest complete one, incomplete ones are refused."""

import logging
import os
import random
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from foreign_formats import Call, hostile_objects
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.utils.data import Dataset

from mmseg_davpt.apis import checked_checkpoints, require_complete, safe_checkpoints
from mmseg_davpt.apis.checkpoints import CheckpointCheckHook
from mmseg_davpt.weights import WeightsError
from mmseg_davpt.weights.checkpoints import load_checkpoint, newest_checkpoint


class Numbers(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return dict(inputs=torch.full((3,), index / 64))


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer('assignment', torch.arange(4))

    def forward(self, inputs, mode='tensor'):
        outputs = self.head(self.norm(self.body(torch.stack(inputs))))
        return dict(loss=outputs.square().mean()) if mode == 'loss' else outputs


def make_runner(folder, iterations=6, hooks=(), **options):
    """A training of a toy model that writes a checkpoint every second iteration."""
    return Runner(
        model=Toy(),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=Numbers(), batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True, seed=1)
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        param_scheduler=dict(type='MultiStepLR', milestones=[3], by_epoch=False),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        custom_hooks=list(hooks),
        log_processor=dict(by_epoch=False),
        experiment_name=f'run{time.time_ns()}',
        default_scope='mmengine',
        log_level='INFO',
        **options,
    )


def train(folder, iterations=6, hooks=(), cfg=None, trust=False, **options):
    runner = make_runner(folder, iterations, hooks, **options)
    runner.cfg.merge_from_dict(cfg or {})
    with checked_checkpoints(runner, trust):
        runner.train()
    return runner


@pytest.fixture
def run(tmp_path, caplog):
    """A finished training of 4 iterations: iter_2.pth, iter_4.pth."""
    caplog.set_level(logging.INFO)
    train(tmp_path, 4)
    return tmp_path


def log_of(folder):
    return '\n'.join(file.read_text() for file in sorted(folder.glob('*/*.log')))


def load(path):
    return torch.load(path, weights_only=False)


def change(path, **entries):
    content = load(path)
    for name, value in entries.items():
        content[name].update(value) if isinstance(value, dict) else content.update({name: value})
    torch.save(content, path)


def cut(path, size=3000):
    with path.open('r+b') as file:
        file.truncate(size)


class TestNothingIsExecuted:
    @pytest.mark.parametrize('attack', ['__self__', '__globals__'])
    @pytest.mark.parametrize('option', ['resume', 'load_from', 'newest'])
    def test_code_in_a_checkpoint(self, run, tmp_path, attack, option):
        change(run / 'iter_4.pth', attack=hostile_objects(run / 'marker')[attack])
        options = dict(load_from=str(run / 'iter_4.pth')) if option != 'newest' else {}
        with pytest.raises(WeightsError, match=r'iter_4\.pth.* would run code .*--trust-checkpoint'):
            train(run, resume=option != 'load_from', **options)
        with pytest.raises(WeightsError, match=r'iter_4\.pth.* would run code'):
            require_complete(Toy(), run / 'iter_4.pth')
        assert not (run / 'marker').exists()

    def test_trusted_on_request(self, run):
        change(run / 'iter_4.pth', more=Call(os.mkdir, str(run / 'marker')))
        with safe_checkpoints(trust=True):
            CheckpointLoader.load_checkpoint(str(run / 'iter_4.pth'))
        assert (run / 'marker').is_dir()

    def test_config_of_a_checkpoint(self, run):
        """Old versions of mmengine wrote it, all versions execute it on resume."""
        config = f'import os\nos.mkdir({str(run / "marker")!r})\ngpu_ids = [0]\n'
        change(run / 'iter_4.pth', meta=dict(config=config))
        train(run, 5, resume=True)
        assert not (run / 'marker').exists()

    @pytest.mark.parametrize('ids', ['[0, 1]', 'range(0, 2)', 'range(2)'])
    def test_number_of_gpus_is_still_compared(self, run, ids):
        change(run / 'iter_4.pth', meta=dict(config=f'a = 1\ngpu_ids = {ids}\n'))
        with pytest.raises(RuntimeError, match='Number of GPUs'):
            train(run, resume=True)

    @pytest.mark.parametrize('source', ['https://example.com/w.pth', 'torchvision://resnet50', 'open-mmlab://vit'])
    def test_other_sources(self, tmp_path, source):
        with pytest.raises(WeightsError, match=r'is not a file.*Download it, give its path'):
            train(tmp_path, load_from=source)

    def test_readers_of_other_projects_stay(self):
        before = dict(CheckpointLoader._schemes)
        with safe_checkpoints():
            assert dict(CheckpointLoader._schemes) != before
        assert dict(CheckpointLoader._schemes) == before


class TestNewest:
    def resumed(self, folder):
        train(folder, 6, resume=True)
        assert load(folder / 'iter_6.pth')['meta']['iter'] == 6
        return log_of(folder)

    def test_named_one(self, run):
        log = self.resumed(run)
        assert f'Training continues from {run}/iter_4.pth\n' in log
        assert 'resumed epoch: 0, iter: 4' in log

    @pytest.mark.parametrize(
        ('pointer', 'words'),
        [
            ('', 'last_checkpoint is empty'),
            ('\0\0\0\0', 'last_checkpoint is empty'),
            (None, r'last_checkpoint cannot be read (FileNotFoundError)'),
            ('/gone/iter_9.pth', 'last_checkpoint names /gone/iter_9.pth, which does not exist'),
            ('iter_2.pth', 'last_checkpoint names iter_2.pth'),
        ],
    )
    def test_bad_pointer(self, run, pointer, words):
        (run / 'last_checkpoint').unlink()
        if pointer is not None:
            (run / 'last_checkpoint').write_text(pointer)
        log = self.resumed(run)
        assert f'{run}/iter_4.pth (the newest complete checkpoint; {words})' in log
        assert 'resumed epoch: 0, iter: 4' in log

    def test_same_as_uninterrupted(self, run, tmp_path_factory):
        whole = tmp_path_factory.mktemp('whole')
        torch.manual_seed(0)
        train(whole, 6)
        (whole / 'iter_6.pth').rename(whole / 'expected')
        cut(whole / 'iter_4.pth')
        self.resumed(whole)
        a, b = load(whole / 'expected')['state_dict'], load(whole / 'iter_6.pth')['state_dict']
        assert all(torch.equal(a[name], b[name]) for name in a)

    def test_truncated(self, run):
        cut(run / 'iter_4.pth')
        log = self.resumed(run)
        assert f'{run}/iter_4.pth is not complete, the checkpoint before it is tried' in log
        assert 'resumed epoch: 0, iter: 2' in log

    def test_nothing_but_damaged(self, run):
        for file in run.glob('*.pth'):
            cut(file)
        with pytest.raises(WeightsError, match=r'no checkpoint in .* can be read: .*iter_4\.pth.*iter_2\.pth'):
            train(run, resume=True)

    def test_empty_folder(self, tmp_path):
        train(tmp_path, 2, resume=True)
        assert f'No checkpoint in {tmp_path}: training starts at iteration 0.' in log_of(tmp_path)

    def test_moved_folder(self, run, tmp_path_factory):
        moved = tmp_path_factory.mktemp('elsewhere') / 'moved'
        run.rename(moved)
        assert newest_checkpoint(moved) == moved / 'iter_4.pth'

    def test_checkpoints_of_an_earlier_training(self, run):
        """A higher number is not newer if the file is older than the one that the pointer names."""
        (run / 'iter_900.pth').write_bytes((run / 'iter_2.pth').read_bytes())
        os.utime(run / 'iter_900.pth', (1, 1))
        assert newest_checkpoint(run) == run / 'iter_4.pth'

    def test_load_from_beside_checkpoints_is_said(self, run):
        train(run, 5, resume=True, load_from=str(run / 'iter_2.pth'))
        assert f'Training continues from load_from={run}/iter_2.pth, not from a checkpoint in {run}' in log_of(run)


def situation(folder, rng):
    """Damage a work folder; returns the number of the checkpoint that must be resumed, 0 for none, -1 for an error."""
    complete = {2, 4}
    for number in (2, 4):
        what = rng.choice(['keep', 'keep', 'cut', 'empty', 'zeros', 'remove'])
        file = folder / f'iter_{number}.pth'
        if what == 'keep':
            continue
        complete.remove(number)
        if what == 'remove':
            file.unlink()
        elif what == 'zeros':  # a crash of the machine: the size is there, the blocks are not
            data = file.read_bytes()
            at = rng.randrange(len(data) - 600)
            file.write_bytes(data[:at] + bytes(len(data) - at))
        else:
            cut(file, 0 if what == 'empty' else rng.randrange(1, file.stat().st_size))
    pointer = folder / 'last_checkpoint'
    what = rng.choice(['keep', 'empty', 'gone', 'stale', 'missing', 'half'])
    if what == 'missing':
        pointer.unlink()
    elif what != 'keep':
        texts = dict(empty='', gone='/gone/iter_8.pth', stale=str(folder / 'iter_2.pth'), half=str(folder)[:9])
        pointer.write_text(texts[what])
    return max(complete) if complete else (-1 if list(folder.glob('iter_*.pth')) else 0)


def resume_situations(run, tmp_path, count, seed):
    rng = random.Random(seed)
    files = {name: (run / name).read_bytes() for name in ('iter_2.pth', 'iter_4.pth', 'last_checkpoint')}
    outcomes = Counter()
    for index in range(count):
        folder = tmp_path / f'case{index}'
        folder.mkdir()
        for time_, (name, data) in enumerate(files.items()):
            (folder / name).write_bytes(data)
            os.utime(folder / name, (1e9 + time_,) * 2)
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
        expected = situation(folder, rng)
        try:
            newest = newest_checkpoint(folder)
            found = 0 if newest is None else int(newest.stem[5:])
        except WeightsError as error:
            assert str(folder) in str(error)
            found = -1
        assert found == expected, (index, found, expected)
        outcomes[{0: 'starts at 0', -1: 'named error'}.get(found, f'resumes iter_{found}')] += 1
    return dict(outcomes)


def test_resume_situations(run, tmp_path):
    assert len(resume_situations(run, tmp_path, 30, seed=0)) == 4


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_thousand_resume_situations(run, tmp_path):
    start = time.perf_counter()
    outcomes = resume_situations(run, tmp_path, 1000, seed=1)
    print(f'\nresume situations: 1000 cases, {outcomes}, {time.perf_counter() - start:.0f} s')


class TestComplete:
    @pytest.mark.parametrize('resume', [True, False])
    @pytest.mark.parametrize(
        ('weights', 'words'),
        [
            (dict(), 'head.weight is missing'),
            (dict(weight=torch.ones(3, 4)), r'head.weight is \(3, 4\) instead of \(2, 4\)'),
            (dict(weight=torch.full((2, 4), torch.nan)), 'head.weight holds 8 values that are not finite'),
            (dict(weight=torch.ones(2, 4, dtype=torch.int8)), 'head.weight is int8 instead of float32'),
            (dict(weight='text'), 'head.weight is missing'),
        ],
        ids=['missing', 'shape', 'nan', 'int8', 'text'],
    )
    def test_refused(self, run, resume, weights, words):
        content = load(run / 'iter_4.pth')
        del content['state_dict']['head.weight']
        content['state_dict'] |= {f'head.{name}': value for name, value in weights.items()}
        torch.save(content, run / 'iter_4.pth')
        with pytest.raises(ValueError, match=rf'iter_4\.pth does not fit this config: {words}'):
            train(run, load_from=str(run / 'iter_4.pth'), resume=resume)
        with pytest.raises(ValueError, match=rf'iter_4\.pth does not fit this config: {words}'):
            require_complete(Toy(), run / 'iter_4.pth')

    def test_integer_buffers_and_half_precision(self, run):
        content = load(run / 'iter_4.pth')
        content['state_dict'] = {n: t.half() if t.is_floating_point() else t for n, t in content['state_dict'].items()}
        torch.save(content, run / 'iter_4.pth')
        runner = train(run, 5, load_from=str(run / 'iter_4.pth'))
        assert runner.model.assignment.dtype == torch.int64
        change(run / 'iter_4.pth', state_dict=dict(assignment=torch.arange(4.0)))
        with pytest.raises(ValueError, match='assignment is float32 instead of int64'):
            train(run, load_from=str(run / 'iter_4.pth'))

    @pytest.mark.parametrize('entry', ['optimizer', 'meta', 'message_hub'])
    def test_resume_needs_the_state_of_the_training(self, run, entry):
        content = load(run / 'iter_4.pth')
        del content[entry]
        torch.save(content, run / 'iter_4.pth')
        with pytest.raises(ValueError, match=rf'iter_4\.pth cannot be resumed, it lacks {entry}.*load_from'):
            train(run, resume=True)
        train(run, 2, load_from=str(run / 'iter_4.pth'))

    def test_optimizer_with_nan(self, run):
        content = load(run / 'iter_4.pth')
        content['optimizer']['state'][1]['exp_avg'][0] = torch.inf
        torch.save(content, run / 'iter_4.pth')
        with pytest.raises(ValueError, match=r'optimizer\.state\.1\.exp_avg holds 1 values that are not finite'):
            train(run, resume=True)

    def test_averaged_weights(self, tmp_path):
        train(tmp_path, 4, [EMAHook()])
        train(tmp_path, 6, [EMAHook()], resume=True)
        content = load(tmp_path / 'iter_6.pth')
        content['ema_state_dict']['module.head.bias'][0] = torch.nan
        torch.save(content, tmp_path / 'iter_6.pth')
        with pytest.raises(ValueError, match=r'iter_6\.pth \(EMA\) does not fit this config: head.bias holds 1'):
            train(tmp_path, 8, [EMAHook()], resume=True)

    def test_wrapped_model(self, run):
        """As under torchrun: the runner's model is a wrapper, whose names start with ``module.``."""
        runner = SimpleNamespace(
            model=nn.DataParallel(Toy()), cfg={}, _load_from='iter_4.pth', _resume=True, _train_loop=None
        )
        checkpoint = load_checkpoint(run / 'iter_4.pth')
        CheckpointCheckHook().after_load_checkpoint(runner, checkpoint)
        del checkpoint['state_dict']['norm.running_mean']
        with pytest.raises(ValueError, match=r'norm\.running_mean is missing'):
            CheckpointCheckHook().after_load_checkpoint(runner, checkpoint)

    def test_no_checkpoint(self, tmp_path):
        torch.save([1, 2], tmp_path / 'list.pth')
        torch.save({0: torch.ones(2)}, tmp_path / 'numbers.pth')
        for name in ('list.pth', 'numbers.pth'):
            with pytest.raises(WeightsError, match=rf'{name} is no checkpoint'):
                load_checkpoint(tmp_path / name)
        with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
            load_checkpoint(tmp_path / 'gone.pth')


class TestNewHead:
    def test_left_out_by_name(self, run):
        change(run / 'iter_4.pth', state_dict={'head.weight': torch.ones(7, 4), 'head.bias': torch.ones(7)})
        with pytest.raises(ValueError, match=r'head\.weight is'):
            train(run, load_from=str(run / 'iter_4.pth'))
        torch.manual_seed(5)
        runner = make_runner(run, 2, load_from=str(run / 'iter_4.pth'))
        runner.cfg.load_from_skip = ['head']
        fresh = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
        loaded = load(run / 'iter_4.pth')['state_dict']
        with checked_checkpoints(runner):
            runner._train_loop = runner.build_train_loop(runner._train_loop)
            runner.load_or_resume()
        state = runner.model.state_dict()
        assert all(torch.equal(state[name], fresh[name]) for name in ('head.weight', 'head.bias'))
        assert torch.equal(state['body.weight'], loaded['body.weight'])
        assert 'load_from_skip: 2 tensors of head stay as initialised' in log_of(run)

    @pytest.mark.parametrize(
        ('skip', 'words'), [(['heda'], "no module 'heda'"), ('head', 'give a list'), (['he'], "no module 'he'")]
    )
    def test_wrong_names(self, run, skip, words):
        with pytest.raises(ValueError, match=words):
            train(run, load_from=str(run / 'iter_4.pth'), cfg=dict(load_from_skip=skip))

    def test_resume_takes_all(self, run):
        change(run / 'iter_4.pth', state_dict={'head.bias': torch.ones(7)})
        with pytest.raises(ValueError, match=r'head.bias is \(7,\)'):
            train(run, resume=True, cfg=dict(load_from_skip=['head']))
