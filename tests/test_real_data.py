"""Really pretrained weights and real images, where they are; skipped elsewhere."""

import re

import pytest
import torch
from conftest import ROOT, SHARED, tool
from safetensors.torch import load_file

from mmseg_davpt import PromptedViT
from mmseg_davpt.weights import fetch

pytestmark = pytest.mark.slow

WEIGHTS = SHARED / 'weights/dinov2_vits14.safetensors'
CAMVID = SHARED / 'data/camvid'
ADE = SHARED / 'data/ade20k_sample'

needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason='no real weights beside the project')
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason='CamVid is not beside the project')


@needs_weights
def test_real_weights_load_strictly():
    model = PromptedViT('vit_small_patch14_dinov2', str(WEIGHTS), tuning='davpt')
    model.init_weights()
    file = load_file(WEIGHTS)
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, file[name].float()), name


@needs_weights
@needs_camvid
def test_trains_on_real_images(tmp_path):
    tool(
        'train', ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py',
        '--work-dir', tmp_path, '--cfg-options',
        f'data_root={CAMVID}', f'model.backbone.pretrained={WEIGHTS}', 'train_cfg.max_iters=3',
        'train_cfg.val_interval=9', 'default_hooks.logger.interval=1', 'custom_hooks.2.num_batches=2',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False', 'train_dataloader.batch_size=2',
        'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'val_dataloader.dataset.indices=2',
    )  # fmt: skip
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Loaded 174/174 trunk tensors' in log
    assert len(re.findall(r'Iter\(train\)', log)) == 3
    assert re.search(r'Iter\(val\) \[2/2\] .*mIoU: \d', log)  # after the last iteration, on two of the images


@pytest.mark.skipif(not ADE.is_dir(), reason='no ADE20K sample beside the project')
def test_reads_real_ade20k_files():
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS

    from mmseg_davpt.apis import load_config

    cfg = load_config(ROOT / 'configs/davpt_upernet_ade20k.py')
    init_default_scope('mmseg')
    cfg.val_dataloader.dataset.update(
        data_root=str(ADE), data_prefix=dict(img_path='images', seg_map_path='annotations')
    )
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 3
    for item in dataset:
        labels = item['data_samples'].gt_sem_seg.data.unique()
        assert ((labels < 150) | (labels == 255)).all()
        assert min(item['inputs'].shape[1:]) == 512


@needs_weights
def test_get_weights_takes_the_local_file(tmp_path):
    out = tmp_path / 'w.safetensors'
    fetch.fetch_weights('vit_small_patch14_dinov2', out, WEIGHTS)
    assert all(torch.equal(value, load_file(WEIGHTS)[name].float()) for name, value in load_file(out).items())
