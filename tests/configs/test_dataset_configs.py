"""Configs of datasets: pipelines and loaders, folders of the data, and the config for own masks."""

import cv2
import numpy as np
import pytest
from bad_images import huge_header
from conftest import ROOT, tool
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from small_configs import walk

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets import check_data_roots
from mmseg_davpt.datasets.prepare import SOURCES

BASES = sorted((ROOT / 'configs/_base_/datasets').glob('[!_]*.py'))
LEAVES = {
    name: next(path for path in sorted((ROOT / 'configs').glob('davpt*_upernet_*.py')) if f'_{name}' in path.stem)
    for name in SOURCES
}
OWN = ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_own-masks-280x280.py'


@pytest.mark.parametrize('path', BASES, ids=lambda path: path.stem)
def test_bases_are_alike(path):
    cfg = Config.fromfile(path)
    assert cfg.train_pipeline[0].type == 'SeedPerDraw'
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline
    assert cfg.train_dataloader.sampler.type == 'ReplayableSampler'
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
    crop = next(step for step in cfg.train_pipeline if step.type == 'RandomCrop')
    assert crop.crop_size == cfg.crop_size
    tta = cfg.tta_pipeline[-1]
    assert tta.type == 'TestTimeAug'
    assert [len(branch) for branch in tta.transforms[1:]] == [2, 1, 1]  # flips, mask, packing
    types = [[step['type'] for step in walk(part) if 'type' in step] for part in (cfg.test_pipeline, cfg.tta_pipeline)]
    assert all(names.count('CheckedLoadAnnotations') == 1 for names in types)
    if 'Resize' in types[0]:  # truth keeps its size
        assert types[0].index('Resize') < types[0].index('CheckedLoadAnnotations')


@pytest.mark.parametrize('path', BASES, ids=lambda path: path.stem)
def test_a_bad_image_is_named_by_every_pipeline(path, tmp_path):
    """Also of validation and tests, which load with mmcv's transform."""
    image, cfg = tmp_path / 'bad.jpg', Config.fromfile(path)
    pipelines = [cfg[f'{name}_dataloader'].dataset.pipeline for name in ('train', 'val', 'test')] + [cfg.tta_pipeline]
    steps = [step for pipeline in pipelines for step in pipeline if 'LoadImage' in step.type]
    assert len(steps) == 4
    for data in (b'', huge_header(65000, 65000), b'text'):
        image.write_bytes(data)
        for step in steps:
            with pytest.raises((ValueError, AssertionError), match=str(image)):
                TRANSFORMS.build(step)(dict(img_path=str(image)))


def mask_steps(cfg):
    keys = ('train_pipeline', 'test_pipeline', 'tta_pipeline', 'train_dataloader', 'val_dataloader', 'test_dataloader')
    return [step for key in keys for step in walk(cfg[key]) if step.get('type') == 'CheckedLoadAnnotations']


@pytest.mark.parametrize('path', [path for path in BASES if path.stem != 'own_masks'], ids=lambda path: path.stem)
def test_every_loader_of_masks_knows_the_classes(path):
    cfg = Config.fromfile(path)
    kind = DATASETS.get(cfg.train_dataloader.dataset.type)
    assert len(mask_steps(cfg)) == 6
    assert {step.get('num_classes') for step in mask_steps(cfg)} == {len(kind.METAINFO['classes'])}


@pytest.mark.parametrize('name', SOURCES)
def test_data_lies_where_it_is_prepared(name, tmp_path):
    cfg = load_config(LEAVES[name])
    assert cfg.data_root == f'data/{SOURCES[name].folder}'
    assert cfg.train_dataloader.dataset.type == SOURCES[name].dataset
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert (train.data_prefix, train.get('ann_file')) != (val.data_prefix, val.get('ann_file'))
    cfg = load_config(LEAVES[name], {'data_root': str(tmp_path / 'nowhere')})
    with pytest.raises(FileNotFoundError, match=rf'nowhere.*python tools/prepare_dataset.py {name} '):
        check_data_roots(cfg)


@pytest.mark.parametrize('path', [*LEAVES.values(), OWN], ids=lambda path: path.stem)
def test_model_fits_the_crop(path):
    cfg = load_config(path)
    size = cfg.model.data_preprocessor.size
    assert size == cfg.crop_size
    if cfg.model.test_cfg.mode == 'slide':
        assert cfg.model.test_cfg.crop_size == cfg.model.backbone.img_size == size
        assert all(step < side for step, side in zip(cfg.model.test_cfg.stride, size))
    patch = 14 if 'patch14' in cfg.model.backbone.arch else 16
    assert all(side % patch == 0 for side in size)


@pytest.fixture
def own_masks(tmp_path):
    """The config as its user leaves it, with three classes, and a folder of 6 images."""
    text = OWN.read_text()
    line = "classes = ('background', 'object')"
    assert text.count(line) == 1
    text = text.replace(line, "classes = ('soil', 'leaf', 'stem')").replace('./_base_', str(ROOT / 'configs/_base_'))
    (tmp_path / 'mine.py').write_text(text)
    draw = np.random.default_rng(0)
    for split, number in (('train', 4), ('val', 2)):
        for kind in ('images', 'annotations'):
            (tmp_path / f'data/{kind}/{split}/day1').mkdir(parents=True)
        for index in range(number):
            image = draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / f'data/images/{split}/day1/{index}.jpg'), image)
            mask = draw.integers(0, 3, (48, 64), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / f'data/annotations/{split}/day1/{index}.png'), mask)
    return tmp_path


def test_own_classes_reach_everything(own_masks):
    cfg = load_config(own_masks / 'mine.py', {'data_root': str(own_masks / 'data')})
    assert {node['num_classes'] for node in walk(cfg.model) if 'num_classes' in node} == {3}
    assert [step.num_classes for step in mask_steps(cfg)] == [3] * 6
    init_default_scope('mmseg')
    for loader, number in ((cfg.train_dataloader, 4), (cfg.val_dataloader, 2), (cfg.test_dataloader, 2)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == number
        assert dataset.metainfo['classes'] == ('soil', 'leaf', 'stem')
        assert len(dataset.metainfo['palette']) == 3
    assert set(np.unique(dataset[0]['data_samples'].gt_sem_seg.data)) == {0, 1, 2}


def test_missing_own_masks_name_the_layout(own_masks):
    cfg = load_config(own_masks / 'mine.py')
    assert cfg.data_root == cfg.train_dataloader.dataset.data_root == 'data/own_masks'
    cfg = load_config(own_masks / 'mine.py', {'data_root': str(own_masks / 'nowhere')})
    with pytest.raises(FileNotFoundError, match=r'nowhere.*docs/datasets.md'):
        check_data_roots(cfg)


@pytest.mark.slow
def test_own_masks_are_checked_and_trained(own_masks, tool_here):
    data = ['--cfg-options', f'data_root={own_masks}/data']
    assert '0 errors' in tool_here('check_dataset', own_masks / 'mine.py', *data)
    printed = tool(
        'train', own_masks / 'mine.py', '--work-dir', own_masks / 'run', *data,
        'model.backbone.arch=test_vit', 'model.backbone.pretrained=False', 'model.backbone.allow_random=True',
        'model.backbone.out_indices=(1,2,3,5)', 'model.neck.embed_dim=64',
        'model.decode_head.in_channels=[64,64,64,64]',
        'model.data_preprocessor.size=(96,96)', 'train_pipeline.3.scale=(128,96)', 'train_pipeline.4.crop_size=(96,96)',
        'train_dataloader.dataset.pipeline.3.scale=(128,96)', 'train_dataloader.dataset.pipeline.4.crop_size=(96,96)',
        'val_dataloader.dataset.pipeline.1.scale=(128,96)', 'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
        'train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'custom_hooks.2.num_batches=2',
    )  # fmt: skip
    assert 'stem' in printed  # the table by class
    assert 'mIoU: ' in printed
