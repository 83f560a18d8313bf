"""``PromptAssignmentHook`` in a Runner, on a tiny model and random images."""

import re
import uuid

import pytest
import torch
from conftest import DEPTH, batch, segmentor_cfg
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import DATASETS

C = 5


@DATASETS.register_module(force=True)
class RandomScenes(BaseDataset):
    """Images with random labels, all of them ignored if ``ignored``."""

    METAINFO = dict(classes=tuple('abcde'), palette=[[index] * 3 for index in range(C)])

    def __init__(self, length=6, ignored=False):
        self.length, self.ignored = length, ignored
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(number=number) for number in range(self.length)]

    def prepare_data(self, idx):
        torch.manual_seed(int(idx))
        images, (sample,) = batch(C, b=1)
        if self.ignored:
            sample.gt_sem_seg.data.fill_(255)
        return dict(inputs=(images[0].sigmoid() * 255).byte(), data_samples=sample)


class StateHook(Hook):
    """Keeps the state after ``before_train`` of the other hooks, and the number of forward passes until then."""

    priority = 'VERY_LOW'

    def before_run(self, runner):
        self.passes = 0
        runner.model.backbone.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.passes += 1

    def before_train(self, runner):
        self.warm_up_passes = self.passes
        self.state = {name: value.clone() for name, value in runner.model.state_dict().items()}


def train(work_dir, dataset=None, hook=None, init='prototype', iterations=2, hooks=(), **options):
    """Train; returns the state after before_train, the runner and the lines of its log."""
    state_hook = StateHook()
    runner = Runner.from_cfg(
        Config(
            dict(
                model=options.pop('model', segmentor_cfg(C, prompts=dict(num=3, init=init))),
                work_dir=str(work_dir),
                default_scope='mmseg',
                experiment_name=uuid.uuid4().hex,
                train_dataloader=dict(
                    batch_size=2,
                    num_workers=0,
                    sampler=dict(type='ReplayableSampler', seed=0),
                    dataset=dataset or dict(type='RandomScenes'),
                ),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2)),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=1),
                    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations),
                ),
                custom_hooks=[dict(type='PromptAssignmentHook') | (hook or {})],
                log_processor=dict(by_epoch=False),
                randomness=dict(seed=0),
                **options,
            )
        )
    )
    for extra in (state_hook, *hooks):
        runner.register_hook(extra)
    runner.train()
    log = ''.join(path.read_text() for path in work_dir.rglob('*.log'))
    return state_hook, runner, log.splitlines()


def state_of(path):
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def edited(checkpoint, path, change):
    """A copy of a checkpoint whose state dict went through ``change``."""
    content = torch.load(checkpoint, map_location='cpu', weights_only=False)
    change(content['state_dict'])
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Checkpoint of two iterations that started from prototypes."""
    work_dir = tmp_path_factory.mktemp('trained')
    train(work_dir)
    return work_dir / 'iter_2.pth'


def test_one_forward_pass_per_warm_up_batch(tmp_path):
    """It serves the assignment and the prototypes: 6 images, 2 per batch."""
    hook, _, _ = train(tmp_path)
    assert hook.warm_up_passes == 3
    assert hook.passes == 3 + 2


def test_num_batches_bounds_the_warm_up(tmp_path):
    hook, _, _ = train(tmp_path, hook=dict(num_batches=2), init='xavier')
    assert hook.warm_up_passes == 2


class TestLoadFrom:
    """What a checkpoint holds stays as it is; what it lacks is filled in."""

    def test_trained_prompts_and_assignment_stay(self, trained, tmp_path):
        hook, _, _ = train(tmp_path, load_from=str(trained))
        for name, value in state_of(trained).items():
            assert torch.equal(hook.state[name], value), name
        assert hook.warm_up_passes == 0

    def test_missing_assignment_is_made_without_touching_prompts(self, trained, tmp_path):
        def drop(state):
            for name in [name for name in state if name.startswith('guidance.')]:
                del state[name]

        hook, _, _ = train(tmp_path, load_from=edited(trained, tmp_path / 'vpt.pth', drop))
        for name, value in state_of(trained).items():
            if not name.startswith('guidance.'):
                assert torch.equal(hook.state[name], value), name
        assert (hook.state['guidance.assignments.0.assignment'] >= 0).all()
        assert hook.warm_up_passes == 3

    def test_missing_prompts_are_made_for_the_loaded_assignment(self, trained, tmp_path):
        """The prompt of classes 0 and 1 alone starts as the mean of their means."""

        def drop(state):
            for name in [name for name in state if name.startswith('backbone.tuned.prompts.')]:
                del state[name]
            state['guidance.assignments.0.assignment'].copy_(torch.tensor([2, 2, 0, 0, 0]))

        path = edited(trained, tmp_path / 'trunk.pth', drop)
        hook, _, _ = train(tmp_path, load_from=path)
        for name, value in state_of(path).items():
            assert torch.equal(hook.state[name], value), name
        tokens = hook.state[f'backbone.tuned.prompts.tokens.{DEPTH - 1}']
        bound = (6 / (3 * 16 * 16 + 64)) ** 0.5 / 8  # of Xavier's start
        assert (tokens[[0, 2]].abs().amax(dim=1) > bound).all()
        assert (tokens[1].abs() <= bound).all()  # no class: its random start

    def test_only_the_guided_block_without_assignment_is_assigned(self, tmp_path):
        """A run with one guided block goes on with two."""
        blocks = [
            segmentor_cfg(C, guidance=dict(type='MetricGuidance', blocks=chosen)) for chosen in ((1,), (1, DEPTH - 1))
        ]
        train(tmp_path / 'one', model=blocks[0])
        checkpoint = tmp_path / 'one/iter_2.pth'
        hook, _, _ = train(tmp_path / 'two', model=blocks[1], load_from=str(checkpoint))
        for name, value in state_of(checkpoint).items():
            assert torch.equal(hook.state[name], value), name
        assert (hook.state['guidance.assignments.1.assignment'] >= 0).all()


def test_resumed_run_keeps_its_state(trained, tmp_path):
    hook, runner, _ = train(tmp_path, load_from=str(trained), resume=True, iterations=3)
    assert runner.iter == 3
    assert hook.warm_up_passes == 0
    for name, value in state_of(trained).items():
        assert torch.equal(hook.state[name], value), name


@pytest.mark.parametrize(
    ('dataset', 'refreshes'),
    [
        (dict(type='RandomScenes', length=6), [3, 6]),
        (dict(type='RepeatDataset', times=50, dataset=dict(type='RandomScenes', length=6)), [3, 6]),
        (
            dict(
                type='ConcatDataset',
                datasets=[
                    dict(type='RandomScenes', length=2),
                    dict(type='RepeatDataset', times=9, dataset=dict(type='RandomScenes', length=6)),
                ],
            ),
            [4],
        ),
    ],
    ids=['plain', 'repeated', 'concatenated'],
)
def test_refreshed_once_per_pass(dataset, refreshes, tmp_path):
    """A pass is over the distinct images, 2 per batch, however often a wrapper repeats them."""

    hook, _, log = train(tmp_path, dataset, init='xavier', iterations=7)
    assert hook.warm_up_passes == refreshes[0]
    iterations, found = 0, []
    for line in log:
        if 'Prompt assignment' in line:
            found.append(iterations)
        iterations += 'Iter(train)' in line  # logged after the refresh of that iteration
    assert found == [0, *(iteration - 1 for iteration in refreshes)]


def test_skipped_batches_are_reported_at_the_refresh(tmp_path):
    class Overflow(Hook):
        def before_train_iter(self, runner, *_, **__):
            if runner.iter == 0:
                item = runner.model.guidance.assignments[0]
                item.collect(torch.full((1, *item.sums.shape), float('inf')), torch.ones(1, C))

    _, runner, log = train(tmp_path, init='xavier', hook=dict(interval=1), hooks=[Overflow()])
    warnings = [line for line in log if 'inf or nan' in line]
    assert len(warnings) == 1
    assert f'block {DEPTH - 1}: 1 batches' in warnings[0]
    assert 'WARNING' in warnings[0]
    assert runner.model.guidance.assignments[0].class_means.isfinite().all()


def test_warm_up_without_a_label_is_an_error_in_the_first_step(tmp_path):
    with pytest.raises(RuntimeError, match=r'PromptAssignmentHook.*warm-up batches held no labeled pixel'):
        train(tmp_path, dict(type='RandomScenes', ignored=True), init='xavier')


def test_weights_of_zero_need_the_hook_for_the_prototypes_only(tmp_path):
    guidance = dict(type='MetricGuidance', weight_patch=0, weight_proto=0)
    model = segmentor_cfg(C, guidance=guidance, prompts=dict(num=3, init='xavier'))
    hook, _, _ = train(tmp_path / 'xavier', model=model)
    assert hook.warm_up_passes == 0
    model = segmentor_cfg(C, guidance=guidance, prompts=dict(num=3, init='prototype'))
    hook, _, _ = train(tmp_path / 'prototype', model=model)
    assert hook.warm_up_passes == 3


def test_the_log_names_classes_not_indices(tmp_path):
    """How many moved for everybody; which class is on which prompt at the level DEBUG."""
    _, runner, log = train(tmp_path / 'info')
    lines = [line for line in log if 'Prompt assignment' in line]
    assert all(line.endswith(f'block {DEPTH - 1}: 5 classes on 3 prompts; 0 moved') for line in lines)
    kept = runner.message_hub.get_info('prompt_assignments')
    assert [(one['iteration'], one['moved']) for one in kept] == [(0, 0)]
    _, _, log = train(tmp_path / 'debug', log_level='DEBUG')
    (line,) = [line for line in log if re.search(r'Prompt assignment.*: \d: ', line)]
    assert sorted(re.findall(r'\b[a-e]\b', line.split(': ', 1)[1])) == list('abcde')
