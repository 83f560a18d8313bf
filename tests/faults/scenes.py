"""Trainings of seconds, for tests that start or kill hundreds of them: a tiny model and generated images."""

import multiprocessing
import os
import sys

import torch
from conftest import batch, segmentor_cfg
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner
from mmseg.registry import DATASETS
from yapf.yapflib import yapf_api

from mmseg_davpt.apis import leave_process_group, prepare_launcher

C = 5
ITERATIONS = 20


def fork_server():
    """A multiprocessing context whose processes are forked from one with all imports: they start in milliseconds."""
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, sys.path))  # of the server; Python 3.11 needs it
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmseg_davpt', 'scenes', 'mmseg.models', 'torch.distributed'])  # its shims first
    return context


def run_ranks(target, *arguments, number=2):
    """Call ``target(rank, *arguments)`` in processes; fails if one does."""
    fork_server()
    torch.multiprocessing.start_processes(target, arguments, number, start_method='forkserver')


@DATASETS.register_module(force=True)
class GeneratedScenes(BaseDataset):
    """Twelve images, made from their number."""

    METAINFO = dict(classes=tuple('abcde'), palette=[[index] * 3 for index in range(C)])

    def __init__(self):
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return [dict(number=number) for number in range(12)]

    def prepare_data(self, idx):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(idx))
            images, (sample,) = batch(C, size=(32, 32), b=1)
        sample.set_metainfo(dict(img_path=f'{int(idx)}.png', seg_map_path=f'{int(idx)}.png'))
        return dict(inputs=(images[0].sigmoid() * 255).byte(), data_samples=sample)


def config(work_dir, iterations=ITERATIONS, interval=2, hooks=(), **model):
    """A guided model with dropout and batch norm, AdamW, a schedule, checkpoints in every second iteration."""
    return Config(
        dict(
            model=segmentor_cfg(C, tuning='davpt_plus') | dict(**model),
            work_dir=str(work_dir),
            default_scope='mmseg',
            experiment_name=f'run_{os.getpid()}',
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='ReplayableSampler', seed=0),
                dataset=dict(type='GeneratedScenes'),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
            optim_wrapper=dict(
                type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1.0)
            ),
            param_scheduler=[dict(type='PolyLR', power=0.9, eta_min=0.0, begin=0, end=iterations, by_epoch=False)],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=10),
                checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=interval, max_keep_ckpts=2),
            ),
            custom_hooks=[
                dict(type='StepSeedHook'),
                dict(type='PromptAssignmentHook', num_batches=3),
                dict(type='TrainingGuardHook'),
                *hooks,
            ],
            log_processor=dict(by_epoch=False),
            log_level='ERROR',
            randomness=dict(seed=0),
            env_cfg=dict(dist_cfg=dict(timeout=60)),
        )
    )


def train(work_dir, resume=False, rank=0, world=1, port='', **options):
    """Train in this process, as one of ``world`` ranks."""
    torch.set_num_threads(1)
    yapf_api.FormatCode = lambda text, **_: (text, True)  # yapf takes longer than the training
    Runner._log_env = lambda self, env_cfg: None  # starts compilers
    cfg = config(work_dir, **options)
    cfg.resume = resume
    if world > 1:
        os.environ.update(
            MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world),
        )  # fmt: skip
        prepare_launcher(cfg, 'pytorch')
        torch.set_num_threads(1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    if world > 1:
        leave_process_group()
    return runner
