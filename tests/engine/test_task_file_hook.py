"""``TaskFileHook`` in a Runner: task files, checkpoints without the trunk, and what resumes from them."""

import uuid

import pytest
import torch
from conftest import segmentor_cfg
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from small_tasks import PIPELINE, save_trunk
from test_assignment_hook import RandomScenes  # noqa: F401  (registered)

from mmseg_davpt.apis import checked_checkpoints
from mmseg_davpt.tasks import TaskFileError, read_task
from mmseg_davpt.tasks.model import build_task


@METRICS.register_module(force=True)
class Climbing(BaseMetric):
    """``mIoU`` is 10 at the first validation, then 20, then 15."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        type(self).calls += 1
        return dict(mIoU=[10.0, 20.0, 15.0][(self.calls - 1) % 3], note='no number')


@pytest.fixture(scope='module')
def trunk(tmp_path_factory):
    return save_trunk(tmp_path_factory.mktemp('trunk') / 'trunk.safetensors')


def make_runner(folder, trunk, iterations=4, hook=None, validate=False, ema=False, guidance=True, **options):
    loader = dict(batch_size=2, num_workers=0, dataset=dict(type='RandomScenes'))
    backbone = dict(pretrained=str(trunk), allow_random=False, prompts=dict(num=3)) | options.pop('backbone', {})
    validation = dict(
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=dict(type='Climbing'),
        val_cfg=dict(type='ValLoop'),
    )
    runner = Runner.from_cfg(
        Config(
            dict(
                model=segmentor_cfg(5, guidance, **backbone),
                test_pipeline=PIPELINE,
                work_dir=str(folder),
                default_scope='mmseg',
                experiment_name=uuid.uuid4().hex,
                train_dataloader=dict(loader, sampler=dict(type='ReplayableSampler', seed=0)),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=2),
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2)),
                default_hooks=dict(
                    checkpoint=dict(type='TaskFileHook', by_epoch=False, interval=2, max_keep_ckpts=1) | (hook or {})
                ),
                custom_hooks=[dict(type='StepSeedHook')]
                + ([dict(type='PromptAssignmentHook')] if guidance else [])
                + ([dict(type='EMAHook', momentum=0.3)] if ema else []),
                log_processor=dict(by_epoch=False),
                randomness=dict(seed=0),
                **(validation if validate else {}),
                **options,
            )
        )
    )
    return runner


def train(folder, trunk, **options):
    runner = make_runner(folder, trunk, **options)
    with checked_checkpoints(runner):
        runner.train()
    return runner


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in ('.pth', '.safetensors'))


def load(path):
    return torch.load(path, map_location='cpu', weights_only=False)


def test_checkpoints_hold_no_trunk_and_have_task_files(trunk, tmp_path):
    runner = train(tmp_path, trunk)
    assert files(tmp_path) == ['iter_4.pth', 'iter_4.task.safetensors']  # those of iteration 2 are removed
    checkpoint = load(tmp_path / 'iter_4.pth')
    assert not [name for name in checkpoint['state_dict'] if name.startswith('backbone.trunk.')]
    assert {'optimizer', 'message_hub', 'meta'} <= checkpoint.keys()
    info, tensors = read_task(tmp_path / 'iter_4.task.safetensors')
    assert info.classes == tuple('abcde')
    state = runner.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in tensors.items())
    _, model = build_task(tmp_path / 'iter_4.task.safetensors', trunk)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


HALF = dict(hook=dict(keep_trunk=True), backbone=dict(trunk_dtype='bfloat16'))


@pytest.mark.parametrize(('ema', 'options'), [(False, {}), (True, {}), (False, HALF), (True, HALF)])
def test_a_resumed_training_ends_as_an_uninterrupted_one(ema, options, trunk, tmp_path):
    options = dict(options, ema=ema)

    class Stop(Hook):
        def after_train_iter(self, runner, *_, **__):
            if runner.iter + 1 == 3:
                raise KeyboardInterrupt

    train(tmp_path / 'whole', trunk, **options)
    runner = make_runner(tmp_path / 'cut', trunk, **options)
    runner.register_hook(Stop())
    with pytest.raises(KeyboardInterrupt), checked_checkpoints(runner):
        runner.train()
    train(tmp_path / 'cut', trunk, resume=True, **options)
    a, b = (load(tmp_path / name / 'iter_4.pth') for name in ('whole', 'cut'))
    for entry in ('state_dict', *(['ema_state_dict'] if ema else [])):
        assert a[entry].keys() == b[entry].keys()
        for name, value in a[entry].items():
            assert value == b[entry][name] if isinstance(value, dict) else torch.equal(value, b[entry][name]), name


def test_averaged_weights_are_kept(trunk, tmp_path):
    runner = train(tmp_path, trunk, ema=True)
    averaged = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module.state_dict()
    live = runner.model.state_dict()
    _, tensors = read_task(tmp_path / 'iter_4.task.safetensors')
    assert torch.equal(tensors['decode_head.conv_seg.weight'], averaged['decode_head.conv_seg.weight'])
    assert not torch.equal(tensors['decode_head.conv_seg.weight'], live['decode_head.conv_seg.weight'])
    assert all(isinstance(v, dict) for n, v in load(tmp_path / 'iter_4.pth')['ema_state_dict'].items() if 'trunk' in n)


def test_the_best_task_is_kept_with_its_figures(trunk, tmp_path):
    Climbing.calls = 0
    train(tmp_path, trunk, iterations=6, validate=True, hook=dict(save_best='mIoU', rule='greater'))
    assert files(tmp_path) == [
        'best_mIoU_iter_4.pth', 'best_mIoU_iter_4.task.safetensors', 'iter_6.pth', 'iter_6.task.safetensors'
    ]  # fmt: skip
    assert read_task(tmp_path / 'best_mIoU_iter_4.task.safetensors')[0].metrics == dict(mIoU=20.0)
    assert read_task(tmp_path / 'iter_6.task.safetensors')[0].metrics == dict(mIoU=15.0)


def test_the_trunk_is_kept_on_request(trunk, tmp_path):
    train(tmp_path, trunk, iterations=2, hook=dict(keep_trunk=True))
    state = load(tmp_path / 'iter_2.pth')['state_dict']
    assert 'backbone.trunk.cls_token' in state
    assert 'backbone.trunk_fingerprint' not in state
    build_task(tmp_path / 'iter_2.task.safetensors', trunk)


def test_what_no_task_file_can_hold_is_refused_before_training(trunk, tmp_path):
    with pytest.raises(TaskFileError, match='would hold the trunk itself'):
        train(tmp_path / 'a', trunk, guidance=False, backbone=dict(tuning='full', prompts=None))
    runner = make_runner(tmp_path / 'b', trunk)
    runner.cfg.test_pipeline = [dict(type='ResizeToMultiple')]
    with pytest.raises(TaskFileError, match='ResizeToMultiple'):
        runner.train()
    assert not files(tmp_path / 'b')


def test_a_task_file_starts_another_training(trunk, tmp_path):
    train(tmp_path / 'first', trunk, iterations=2)
    task = tmp_path / 'first/iter_2.task.safetensors'
    runner = make_runner(tmp_path / 'second', trunk, iterations=1, load_from=str(task))
    with checked_checkpoints(runner):
        runner.load_or_resume()
    state = runner.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_task(task)[1].items())


def test_another_trunk_is_refused_on_resume(trunk, tmp_path):
    train(tmp_path, trunk, iterations=2)
    other = save_trunk(tmp_path / 'other.safetensors', seed=1)
    with pytest.raises(RuntimeError, match=r'other weights than test_vit from .*other\.safetensors'):
        train(tmp_path, other, resume=True)
