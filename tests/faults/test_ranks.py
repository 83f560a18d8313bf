"""Two gloo ranks against one process: what is equal, what is not, and ranks that see nothing."""

import math
import os

import pytest
import torch
import torch.distributed as dist
from conftest import batch, free_port, segmentor_cfg
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from scenes import C, config, run_ranks
from torch.nn.parallel import DistributedDataParallel

from mmseg_davpt.apis import leave_process_group, prepare_launcher


def join(rank, port):
    os.environ.update(
        MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE='2',
    )  # fmt: skip
    torch.set_num_threads(1)
    init_default_scope('mmseg')


def model_without_batch_norm(guided, **loss):
    """Dropout draws differently on each rank, so there is none here."""
    cfg = segmentor_cfg(C, tuning='davpt_plus' if guided else 'lora', guidance=guided)
    cfg.decode_head.update(norm_cfg=None, dropout_ratio=0.0, loss_decode=dict(type='CrossEntropyLoss', **loss))
    torch.manual_seed(0)
    model = MODELS.build(cfg).train()
    if guided:
        model.guidance.assignments[0].assignment.copy_(torch.arange(C) % 3)
    return model


def data(uneven):
    """Four images; with ``uneven``, those of the second rank have half as many labeled pixels."""
    torch.manual_seed(1)
    images, samples = batch(C, b=4, ignore=0.0)
    if uneven:
        for sample in samples[2:]:
            sample.gt_sem_seg.data[..., :32] = 255
    return images, samples


def step(model, images, samples):
    """One step; returns losses and gradients."""
    losses = model(images, samples, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    inner = getattr(model, 'module', model)
    gradients = {name: p.grad for name, p in inner.named_parameters() if p.requires_grad}
    return {name: value.detach() for name, value in losses.items()}, gradients


def half_of_the_batch(rank, port, folder, guided, uneven, loss):
    join(rank, port)
    dist.init_process_group('gloo')
    model = DistributedDataParallel(model_without_batch_norm(guided, **loss), broadcast_buffers=False)
    images, samples = data(uneven)
    part = slice(2 * rank, 2 * rank + 2)
    losses, gradients = step(model, images[part], samples[part])
    for value in losses.values():
        dist.all_reduce(value)
        value /= 2
    if rank == 0:
        torch.save((losses, gradients), f'{folder}/two.pth')
    leave_process_group()


def compare(tmp_path, guided=False, uneven=False, **loss):
    """Largest relative difference of the losses, and of the gradients of a tensor, of two ranks and one process."""
    run_ranks(half_of_the_batch, free_port(), str(tmp_path), guided, uneven, loss)
    losses, gradients = torch.load(tmp_path / 'two.pth', weights_only=True)
    expected_losses, expected = step(model_without_batch_norm(guided, **loss), *data(uneven))
    assert expected.keys() == gradients.keys()
    assert any(value.any() for value in expected.values())
    return (
        {name: float((losses[name] - value).abs() / value.abs()) for name, value in expected_losses.items()},
        max(float((gradients[n] - value).norm() / value.norm().clamp(min=1e-12)) for n, value in expected.items()),
    )


@pytest.mark.parametrize('uneven', [pytest.param(False, marks=pytest.mark.faults), True])
def test_two_ranks_equal_one_process(uneven, tmp_path):
    """mmseg's cross entropy is a mean over all pixels, ignored ones too: equal, however labels are spread."""
    losses, gradients = compare(tmp_path, uneven=uneven)
    assert losses['decode.loss_ce'] < 1e-5
    assert gradients < 1e-4


@pytest.mark.faults
def test_a_mean_over_labeled_pixels_is_per_rank(tmp_path):
    """``avg_non_ignore=True`` with uneven labels: the mean over the ranks is not the mean over the pixels."""
    losses, gradients = compare(tmp_path, uneven=True, avg_non_ignore=True)
    assert losses['decode.loss_ce'] > 1e-4
    assert gradients > 1e-2


@pytest.mark.faults
def test_a_mean_over_labeled_pixels_that_are_even(tmp_path):
    losses, gradients = compare(tmp_path, avg_non_ignore=True)
    assert losses['decode.loss_ce'] < 1e-5
    assert gradients < 1e-4


def test_the_guidance_is_per_rank(tmp_path):
    """It compares the samples of a rank with each other; the loss of the head stays equal."""
    losses, gradients = compare(tmp_path, guided=True)
    assert losses['decode.loss_ce'] < 1e-5
    assert losses['loss_guide_patch'] > 1e-3
    assert gradients > 1e-3


def train_unevenly(rank, port, folder, case):
    """A whole training in which the second rank sees no labels, or one class that the first never sees."""
    join(rank, port)
    cfg = config(folder, iterations=4, hooks=[])
    cfg.custom_hooks.insert(0, dict(type='UnevenHook', case=case))
    cfg.default_hooks.logger.interval = 1
    cfg.log_level = 'INFO'
    prepare_launcher(cfg, 'pytorch')
    runner = Runner.from_cfg(cfg)
    runner.train()
    model = runner.model.module
    state = {name: value for name, value in model.state_dict().items() if 'bn' not in name}  # BN is per process
    scalars = {
        name: runner.message_hub.get_scalar(f'train/{name}').data[0]
        for name in ('loss', 'decode.loss_ce', 'loss_guide_patch', 'decode.acc_seg')
    }
    torch.save((state, scalars, uneven_hook(runner).own), f'{folder}/{rank}.pth')
    leave_process_group()


def uneven_hook(runner):
    return next(hook for hook in runner.hooks if type(hook).__name__ == 'UnevenHook')


@HOOKS.register_module(force=True)
class UnevenHook(Hook):
    """Changes the labels of each rank, and keeps the losses of this rank before they are averaged."""

    priority = 'HIGHEST'  # registered before TrainingGuardHook

    def __init__(self, case):
        self.case, self.own = case, []

    def before_train_iter(self, runner, batch_idx, data_batch):
        for sample in data_batch['data_samples']:
            labels = sample.gt_sem_seg.data
            if runner.rank == 1:
                labels.fill_({'no labels': 255, 'a class of its own': 4}[self.case])
            elif self.case == 'a class of its own':
                labels[labels == 4] = 0

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.own.append(float(outputs['decode.loss_ce']))


@pytest.mark.parametrize('case', ['no labels', 'a class of its own'])
def test_uneven_ranks(case, tmp_path):
    """No hang, finite, the same parameters and assignment; the log has the means over the ranks."""
    run_ranks(train_unevenly, free_port(), str(tmp_path), case)
    (first, scalars, own0), (second, scalars1, own1) = (
        torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in range(2)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.isfinite().all(), name
    for name, values in scalars.items():
        assert list(values) == list(scalars1[name])
        assert all(map(math.isfinite, values))
    logged = scalars['decode.loss_ce']
    assert len(logged) == len(own0) == 4
    for value, one, two in zip(logged, own0, own1):
        assert value == pytest.approx((one + two) / 2, rel=1e-5)
    assert own0 != own1
    if case == 'no labels':
        assert own1 == [0.0] * 4
