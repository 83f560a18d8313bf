import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer
from mmseg.structures import SegDataSample

import mmseg_davpt  # noqa: F401  (first: its shims)
from mmseg_davpt.datasets import make_miniscenes
from mmseg_davpt.models import PromptedViT

ROOT = Path(__file__).parents[1]
# Real images and weights for development; never part of the project. Tests that want them skip without them.
SHARED = Path(os.environ.get('MMSEG_DAVPT_SHARED', ROOT.parent / 'shared'))
DIMS, DEPTH, PATCH = 64, 6, 16  # of timm's test_vit

torch.set_num_threads(1)  # two processes share two cores; threads that wait for each other make tiny steps slow


def pytest_collection_modifyitems(config, items):
    """Leave out the long fault injection, unless ``-m`` names it."""
    if 'faults' not in config.getoption('markexpr'):
        long = [item for item in items if item.get_closest_marker('faults')]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]


@pytest.fixture(autouse=True)
def _seed_and_scope():
    init_default_scope('mmseg')
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope='module')
def _visualizers_per_module():
    forget_visualizers()


@pytest.fixture(autouse=True)
def _visualizers_per_test():
    yield
    forget_visualizers()


def forget_visualizers():
    """MMEngine keeps the first visualizer of a name per process: a later run would write into its folder."""
    for kind in (Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()


@pytest.fixture
def vit():
    """Builds a tiny PromptedViT (width 64, 6 blocks, patch 16) whose random weights are meant."""

    def build(**options):
        options = dict(arch='test_vit', pretrained=False, allow_random=True, out_indices=(1, 3, 5)) | options
        model = PromptedViT(**options)
        spread(model)
        return model

    return build


def spread(model):
    """Give norms, biases and prompts values that a mistake would show in; fresh ones are mostly 0 and 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('bias') or any(key in name for key in ('norm', 'tuned.bias', 'token', 'gates', 'values')):
                parameter.add_(torch.randn_like(parameter) * 0.3)


def segmentor_cfg(num_classes=5, guidance=True, head='FCNHead', type_='PromptedEncoderDecoder', **backbone):
    """A tiny segmentor's config."""
    backbone = (
        dict(
            type='PromptedViT',
            arch='test_vit',
            pretrained=False,
            allow_random=True,
            out_indices=(1, 3, 5),
            prompts=None if 'tuning' in backbone else dict(num=3),
            tuning='davpt' if guidance else 'vpt_deep',
        )
        | backbone
    )
    cfg = ConfigDict(
        type=type_,
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[127.5] * 3,
            std=[127.5] * 3,
            bgr_to_rgb=True,
            seg_pad_val=255,
            size=(64, 64),
        ),
        backbone=backbone,
        guidance=dict(type='MetricGuidance', num_classes=num_classes) if guidance is True else guidance or None,
        decode_head=dict(
            type=head,
            in_channels=DIMS,
            in_index=2,
            channels=16,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=num_classes,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss'),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if type_ == 'EncoderDecoder':  # stock: it knows no guidance
        del cfg.guidance
    return cfg


def batch(num_classes=5, size=(64, 64), b=2, ignore=0.1):
    """Random normalized images and labeled samples."""
    samples = []
    for _ in range(b):
        gt = (
            torch.randint(0, num_classes, (1, size[0] // 8, size[1] // 8))
            .repeat_interleave(8, 1)
            .repeat_interleave(8, 2)
        )
        gt[torch.rand(gt.shape) < ignore] = 255
        sample = SegDataSample(gt_sem_seg=PixelData(data=gt))
        sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size))
        samples.append(sample)
    return torch.randn(b, 3, *size), samples


@pytest.fixture(scope='session')
def scenes(tmp_path_factory):
    """data_root of a MiniScenes of 8 training and 3 validation images."""
    root = tmp_path_factory.mktemp('miniscenes')
    make_miniscenes(root / 'seed0', splits={'training': 8, 'validation': 3})
    return root


@pytest.fixture(scope='session')
def tiny_config(scenes, tmp_path_factory):
    """The embedded default, shrunk to a tiny trunk and 6 iterations."""
    path = tmp_path_factory.mktemp('config') / 'tiny.py'
    path.write_text(f"""
_base_ = {str(ROOT / 'configs/davpt_upernet_miniscenes.py')!r}
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(arch='test_vit', pretrained=False, allow_random=True, out_indices=(1, 2, 3, 5),
                  prompts=dict(num=[4] * 5 + [3])),
    neck=dict(embed_dim=64),
    decode_head=dict(in_channels=[64] * 4, channels=16))
data_root = {str(scenes)!r}
train_pipeline = [
    dict(type='SeedPerDraw'), dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=(96, 96)), dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0., begin=0, end=6, by_epoch=False)]
train_cfg = dict(max_iters=6, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3, max_keep_ckpts=-1))
""")
    return path


def run(*command, cwd=ROOT, check=True, **environment):
    """Run one of the project's commands as a user does; returns what it printed."""
    env = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **{'PYTHONPATH': str(ROOT), **environment})
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout if check else (done.returncode, done.stdout)


@pytest.fixture
def tool_here(monkeypatch, capfd):
    """Runs tools/NAME.py in this process, where the process is not what is tested; returns what it printed."""

    def run_here(name, *arguments):
        monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, arguments)])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / 'tools' / f'{name}.py'), run_name='__main__')
        except SystemExit as end:
            if end.code:
                raise
        printed = capfd.readouterr()
        return printed.err + printed.out

    return run_here


def free_port():
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def tool(name, *arguments, **options):
    """Run tools/NAME.py."""
    return run(sys.executable, ROOT / 'tools' / f'{name}.py', *arguments, **options)
