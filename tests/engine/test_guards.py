"""``TrainingGuardHook``: what stops a training, what only warns, and what is logged."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import segmentor_cfg
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from test_assignment_hook import C, RandomScenes, train

from mmseg_davpt.engine import TrainingGuardHook
from mmseg_davpt.engine.guards import check_shared_memory

MODEL = segmentor_cfg(C, guidance=False)


class Fault(Hook):
    """Does something before an iteration."""

    def __init__(self, iteration, action):
        self.iteration, self.action = iteration, action

    def before_train_iter(self, runner, batch_idx, data_batch):
        if batch_idx == self.iteration:
            self.action(runner, data_batch)


def name_images(runner, batch):
    for number, sample in enumerate(batch['data_samples']):
        sample.set_metainfo(dict(img_path=f'photos/{number}.png', seg_map_path=f'masks/{number}.png'))


def nan_pixel(runner, batch):
    name_images(runner, batch)
    batch['inputs'] = [image.float() for image in batch['inputs']]
    batch['inputs'][1][0, 0, 0] = math.nan


def infinite_gradient(runner, batch):
    name_images(runner, batch)
    parameter = next(runner.model.decode_head.parameters())
    handle = parameter.register_hook(lambda gradient: handle.remove() or gradient * math.inf)


def test_nan_in_a_batch(tmp_path):
    """The iteration of the batch, the term, its images, the one that holds it, and a file with all of it."""
    with pytest.raises(FloatingPointError) as caught:
        train(tmp_path, iterations=5, hooks=[TrainingGuardHook(), Fault(2, nan_pixel)], model=MODEL)
    message = str(caught.value)
    for part in (
        'Iteration 3: decode.loss_ce is nan, loss is nan',
        'photos/0.png, photos/1.png (inf or nan in the pixels of photos/1.png)',
        'non_finite_iter_3_rank0.pth',
        'check_dataset.py',
        '--resume',
    ):
        assert part in message
    content = torch.load(tmp_path / 'non_finite_iter_3_rank0.pth', weights_only=True)
    assert (content['iteration'], content['rank'], content['seed']) == (2, 0, 0)
    assert content['img_paths'] == ['photos/0.png', 'photos/1.png']
    assert content['seg_map_paths'] == ['masks/0.png', 'masks/1.png']
    assert len(content['inputs']) == len(content['labels']) == 2
    assert content['inputs'][1].isnan().sum() == 1
    assert not (tmp_path / 'iter_5.pth').exists()


@pytest.mark.parametrize('clip_grad', [None, dict(max_norm=1.0), dict(type='value', clip_value=1.0)])
def test_infinite_gradient(clip_grad, tmp_path):
    """It is named in the iteration that it comes from, before it spoils the next loss."""
    hooks = [TrainingGuardHook(), Fault(2, infinite_gradient), ClipGradient(clip_grad)]
    if clip_grad is not None and 'clip_value' in clip_grad:  # inf becomes 1: nothing is wrong
        train(tmp_path, iterations=5, hooks=hooks, model=MODEL)
        return
    with pytest.raises(FloatingPointError, match=r'Iteration 3: the losses are finite, but a gradient.*photos/0.png'):
        train(tmp_path, iterations=5, hooks=hooks, model=MODEL)


class ClipGradient(Hook):
    """Sets ``clip_grad`` of the optimizer wrapper."""

    def __init__(self, options):
        self.options = options

    def before_train(self, runner):
        if self.options is not None:
            wrapper = runner.optim_wrapper
            runner.optim_wrapper = OptimWrapper(wrapper.optimizer, clip_grad=dict(self.options))


def test_training_without_faults_is_not_changed(tmp_path):
    """The same numbers, bit for bit."""
    with_guard = train(tmp_path / 'a', iterations=3, hooks=[TrainingGuardHook()], model=MODEL)[1]
    without = train(tmp_path / 'b', iterations=3, model=MODEL)[1]
    for name, value in without.model.state_dict().items():
        assert torch.equal(value, with_guard.model.state_dict()[name]), name


def guarded(scaler=None, losses=(), batch=None, tmp_path=None, head=None):
    """Give the hook the losses of several iterations; returns what it warned of."""
    warnings = []
    wrapper = SimpleNamespace(loss_scaler=scaler) if scaler is not None else SimpleNamespace()
    runner = SimpleNamespace(
        iter=0,
        seed=0,
        work_dir=str(tmp_path),
        optim_wrapper=wrapper,
        model=torch.nn.Identity(),
        logger=SimpleNamespace(warning=warnings.append, error=warnings.append),
    )
    runner.model.decode_head = head or SimpleNamespace(ignore_index=255)
    hook = TrainingGuardHook()
    hook.before_train(runner)
    for loss in losses:
        hook.after_train_iter(runner, runner.iter, batch, dict(loss=torch.tensor(loss), acc=torch.tensor(math.nan)))
        runner.iter += 1
    return warnings


def test_steps_that_a_gradient_scaler_skips(tmp_path):
    """Float16: single losses that overflow are warnings, 25 in a row an error."""
    scaler = object()
    warnings = guarded(scaler, [1.0, math.inf, 1.0, math.nan, *[math.inf] * 23, 2.0], tmp_path=tmp_path)
    assert len(warnings) == 1 + 3
    assert 'Iteration 2: loss is inf; the gradient scaler skips this step' in warnings[0]
    with pytest.raises(FloatingPointError, match='for the 25th time in a row'):
        guarded(scaler, [math.inf] * 30, tmp_path=tmp_path)


def test_only_losses_count(tmp_path):
    """An accuracy may be nan: there may be no pixel to measure."""
    assert not guarded(None, [1.0, 2.0], tmp_path=tmp_path)
    with pytest.raises(FloatingPointError, match='loss is inf'):
        guarded(None, [math.inf], tmp_path=tmp_path)


def labels(fill, **meta):
    (sample,) = (RandomScenes().prepare_data(0)['data_samples'],)
    if fill is not None:
        sample.gt_sem_seg.data.fill_(fill)
    sample.set_metainfo(dict(seg_map_path='masks/a.png', **meta))
    return dict(inputs=[torch.zeros(3, 8, 8)], data_samples=[sample])


def test_labels_that_are_all_ignored(tmp_path):
    """Once, after five iterations."""
    batch = labels(255, reduce_zero_label=True)
    assert not guarded(None, [0.0] * 4, batch, tmp_path)
    (warning,) = guarded(None, [0.0] * 20, batch, tmp_path)
    for part in ('only the id 255', 'reduce_zero_label=True', 'ignore_index', 'masks/a.png'):
        assert part in warning
    assert not guarded(None, [0.0, 0.0, 0.0, 0.1] * 5, batch, tmp_path)
    assert not guarded(None, [0.0] * 20, labels(None), tmp_path)  # labels, but a perfect model
    (warning,) = guarded(None, [0.0] * 20, labels(0), tmp_path, SimpleNamespace(ignore_index=0))
    assert 'only the id 0' in warning


def test_a_replay_file_on_a_full_disk(tmp_path, monkeypatch):
    """It must not hide the error."""
    monkeypatch.setattr('mmseg_davpt.files.os.fsync', raise_full)
    with pytest.raises(FloatingPointError, match=r'Iteration 1: loss is nan. Images of the batch: .*\.png\.'):
        batch = labels(1, img_path='photos/a.png')
        guarded(None, [math.nan], batch, tmp_path)


def raise_full(_):
    raise OSError(28, 'No space left on device')


def test_shared_memory(tmp_path, monkeypatch):
    """Four workers, two batches each, four images of 512x512 of 11 bytes per pixel: 92 MB do not fit into 64."""
    loader = SimpleNamespace(num_workers=4, prefetch_factor=2, batch_size=4)
    monkeypatch.setattr('shutil.disk_usage', lambda folder: SimpleNamespace(total=64 * 2**20, free=64 * 2**20))
    with pytest.raises(RuntimeError, match=r'67 MB of shared memory.*8 batches of 92 MB.*--shm-size.*num_workers=0'):
        check_shared_memory(loader, (512, 512), tmp_path)
    check_shared_memory(loader, (256, 256), tmp_path)
    check_shared_memory(loader, (512, 512), tmp_path / 'no such folder')
    loader.num_workers = 0
    check_shared_memory(loader, (512, 512), tmp_path)
