"""Two gloo ranks against one process: what is equal, what is not, and ranks that see nothing."""

import math
import os

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, batch, free_port, segmentor_cfg
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS
from scenes import C, config, run_ranks
from small_configs import shrink, walk
from torch import nn
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


# UPerNet with a neck and an auxiliary head, and the linear head, which has a norm of its own: SyncBN in all of them.
WITH_BATCH_NORM = (
    'davpt_upernet_ade20k.py',
    'heads/davpt-residual_vit-b16_linear_160k_ade20k-512x512.py',
)


class SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return SumOverRanks.apply(gradient.contiguous())


class SyncBatchNormOnCPU(nn.BatchNorm2d):
    """torch's ``SyncBatchNorm`` refuses CPU tensors: the same formula, with sums over the ranks."""

    def forward(self, x):
        count = torch.tensor(x.numel() / x.shape[1], dtype=x.dtype)
        dist.all_reduce(count)
        mean = SumOverRanks.apply(x.sum((0, 2, 3))) / count
        centered = x - mean[:, None, None]
        variance = SumOverRanks.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight / (variance + self.eps).sqrt()
        return centered * scale[:, None, None] + self.bias[:, None, None]


def model_with_batch_norm(name, kind):
    """The model of a config at a small width, in float64, with the norm ``kind`` in place of SyncBN; no dropout."""
    cfg = Config.fromfile(ROOT / 'configs' / name).model
    norms = [node for node in walk(cfg) if node.get('type') == 'SyncBN']
    assert norms
    shrink(cfg)
    for node in norms:
        node['type'] = kind
    for head in filter(None, (cfg.decode_head, cfg.get('auxiliary_head'))):
        head.update(dropout_ratio=0.0, num_classes=C)
    cfg.backbone.update(tuning='vpt_deep', prompts=dict(num=3))
    cfg.update(guidance=None, data_preprocessor=None)
    torch.manual_seed(0)
    return MODELS.build(cfg).double().train()


def statistics(model):
    """Running mean and variance of each batch norm."""
    return {name: buffer for name, buffer in model.named_buffers() if 'running_' in name}


def half_with_batch_norm(rank, port, folder, name, device):
    """One step on half of the batch; saves losses (means over the ranks), gradients and statistics of this rank."""
    join(rank, port)
    model = model_with_batch_norm(name, 'SyncBN')
    images, samples = data(uneven=True)
    part = slice(2 * rank, 2 * rank + 2)
    images, samples = images[part].double(), samples[part]
    if device == 'cuda':
        torch.cuda.set_device(rank)
        dist.init_process_group('nccl')
        model, images, samples = model.cuda(), images.cuda(), [sample.cuda() for sample in samples]
    else:
        dist.init_process_group('gloo')
        for layer in model.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = SyncBatchNormOnCPU
    wrapped = DistributedDataParallel(model, [rank] if device == 'cuda' else None, broadcast_buffers=False)
    losses, gradients = step(wrapped, images, samples)
    for value in losses.values():
        dist.all_reduce(value)
        value /= 2
    content = {**losses, **gradients, **statistics(model)}
    torch.save({key: value.cpu() for key, value in content.items()}, f'{folder}/{rank}.pth')
    leave_process_group()


def assert_batch_norm_is_global(tmp_path, name, device):
    """Two ranks with two images each against torch's ``BatchNorm2d`` on the four images, in one process."""
    run_ranks(half_with_batch_norm, free_port(), str(tmp_path), name, device)
    model = model_with_batch_norm(name, 'BN')
    images, samples = data(uneven=True)
    losses, gradients = step(model, images.double(), samples)
    losses = {key: value for key, value in losses.items() if 'loss' in key}  # accuracies are means over labeled pixels
    expected = {**losses, **gradients, **statistics(model)}
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        found = {key: value for key, value in found.items() if key in expected}
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('name', WITH_BATCH_NORM)
def test_synchronized_batch_norm_is_global(name, tmp_path):
    """All but torch's kernel: the layers of the configs, the order of the collectives, gradients of DDP."""
    assert_batch_norm_is_global(tmp_path, name, 'cpu')


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@pytest.mark.parametrize('name', WITH_BATCH_NORM)
def test_torchs_synchronized_batch_norm_is_global(name, tmp_path):
    """The same with SyncBN and NCCL."""
    assert_batch_norm_is_global(tmp_path, name, 'cuda')


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
