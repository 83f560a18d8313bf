"""Two gloo processes, one of which sees nothing: no hang, finite gradients, the same state."""

import os

import pytest
import torch
import torch.distributed as dist
from conftest import batch, free_port, segmentor_cfg
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch.nn.parallel import DistributedDataParallel

from mmseg_davpt.apis import leave_process_group

C = 5


CASES = ('ignored', 'one class', 'all classes')


def rank_main(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    init_default_scope('mmseg')
    for case in CASES:
        train_case(rank, case, folder)
    leave_process_group()


def train_case(rank, case, folder):
    torch.manual_seed(0)
    model = MODELS.build(segmentor_cfg(C, tuning='davpt_plus')).train()
    part = model.guidance.assignments[0]
    torch.manual_seed(10 + rank)
    x, samples = batch(C)
    if rank == 1:
        fill = dict(ignored=255, **{'one class': 2}).get(case)
        for sample in samples:
            if fill is not None:
                sample.gt_sem_seg.data = torch.full_like(sample.gt_sem_seg.data, fill)
    model.collect_prototypes(x, samples)
    part.refresh(seed=0)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)  # no find_unused_parameters
    for _ in range(2):  # DDP reports parameters without a gradient in the step after
        losses = wrapped(x, samples, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
    state = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in state.values())
    if rank == 1 and case == 'ignored':
        assert losses['loss_guide_patch'].item() == losses['loss_guide_proto'].item() == 0.0
    torch.save(state | part.state_dict(), f'{folder}/{case}{rank}.pth')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Folder of what each rank saved of each case."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(rank_main, (free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize('case', CASES)
def test_ranks_agree_whatever_they_see(case, saved):
    first, second = (torch.load(saved / f'{case}{rank}.pth', weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert (first['assignment'] >= 0).any()
