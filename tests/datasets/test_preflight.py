"""What is checked before a training builds anything: faults with file names and remedies, in a few seconds."""

import random
import time

import numpy as np
import pytest
from bad_images import encoded, huge_header, save_turned
from conftest import ROOT, SHARED
from mmengine.config import Config
from PIL import Image
from test_audit import config, make_binary, make_set, save

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets.audit import check_before_training, preflight

TRAIN = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='RandomCrop', crop_size=(16, 16)),
    dict(type='PackSegInputs'),
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / 'set', train=12, val=4)


@pytest.fixture
def logged(monkeypatch):
    """Messages that are logged."""
    messages = []
    monkeypatch.setattr(preflight, 'print_log', lambda message, **options: messages.append(message))
    return messages


def full(root, **options):
    """A config with a stock training pipeline."""
    cfg = config(root, **options)
    cfg.train_dataloader.update(batch_size=4)
    cfg.train_dataloader.dataset.pipeline = TRAIN
    return cfg


def errors(cfg):
    with pytest.raises(ValueError, match='the data has errors') as error:
        check_before_training(cfg)
    return str(error.value)


def test_good_data_pass(root, logged):
    check_before_training(full(root))
    check_before_training(Config(dict(train_dataloader=dict(dataset=dict(type='RepeatDataset', times=3,
                          dataset=full(root).train_dataloader.dataset)), val_dataloader=None)))  # fmt: skip
    assert not logged


def test_random_numbers_are_left_alone(root):
    before = random.getstate(), np.random.get_state()[1].copy()
    check_before_training(full(root))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (
            lambda root: (root / 'annotations/val/03.png').unlink(),
            'val/test: missing mask: {root}/annotations/val/03.png',
        ),
        (lambda root: (root / 'images/train/11.jpg').write_bytes(b''), '{root}/images/train/11.jpg: the file is empty'),
        (lambda root: save(np.zeros((8, 9)), root / 'annotations/train/07.png'), '07.png: image 32x24, mask 9x8'),
        (lambda root: save(np.zeros((24, 32, 3)), root / 'annotations/val/02.png'), '02.png: colors (RGB)'),
        (lambda root: save(np.full((24, 32), 77), root / 'annotations/train/05.png'), '05.png: 77 in 768 pixels'),
        (lambda root: (root / 'annotations/train/05.png').write_bytes(huge_header(65000, 65000)), '65000x65000'),
        (
            lambda root: (root / 'annotations/train/05.png').write_bytes(
                encoded(Image.fromarray(np.zeros((24, 32), np.uint8)))[:-20]
            ),
            '05.png: truncated',
        ),
    ],
)
def test_faults_are_named(root, change, expected):
    change(root)
    assert expected.format(root=root) in errors(full(root))
    cfg = full(root)
    cfg.check_data = False
    check_before_training(cfg)


def test_suffixes(root):
    assert "no *.tif there, but 12 files *.jpg: set img_suffix='.jpg'" in errors(full(root, img_suffix='.tif'))
    assert "but 12 files *.png: set seg_map_suffix='.png'" in errors(full(root, seg_map_suffix='.tif'))


def test_a_test_split_that_is_not_there(root):
    cfg = full(root)
    cfg.test_dataloader = dict(dataset=dict(cfg.val_dataloader.dataset, data_prefix=dict(img_path='images/none')))
    check_before_training(cfg)


def test_binary_masks(root):
    cfg = make_binary(root)
    assert '0 and 255: a binary mask; use 0/1 or --map 255=1' in errors(cfg)
    save(np.ones((24, 32)), root / 'annotations/train/06.png')
    save(np.ones((24, 32)), root / 'annotations/val/01.png')
    check_before_training(cfg)


def test_rare_classes_are_looked_for(tmp_path):
    """Of many masks, the 32 that are read first may hold background alone."""
    cfg = make_binary(make_set(tmp_path / 'set', train=80, val=80))
    for split in ('train', 'val'):
        assert '0 and 255' in errors(cfg)
        save(np.ones((24, 32)), tmp_path / f'set/annotations/{split}/01.png')
    check_before_training(cfg)


def test_no_labels_at_all(root):
    for path in (root / 'annotations/train').glob('*.png'):
        save(np.full((24, 32), 255), path)
    assert 'no pixel of 12 masks belongs to a class' in errors(full(root))


def test_turned_photographs(root, logged):
    path, mask = root / 'images/train/11.jpg', root / 'annotations/train/11.png'
    save_turned(Image.open(path), path, 6)
    text = errors(full(root))
    assert f'{mask}: image 24x32, mask 32x24' in text
    assert 'EXIF orientation 6 turns the image' in text
    save(np.array(Image.open(mask)).T, mask)
    check_before_training(full(root))
    save_turned(Image.open(root / 'images/val/00.jpg'), root / 'images/val/00.jpg', 3)
    check_before_training(full(root))
    assert any(f'{path}: EXIF orientation 6' in message for message in logged)
    assert any('val/00.jpg: EXIF orientation 3' in message for message in logged)


def test_a_pipeline_that_fails(root):
    cfg = full(root)
    cfg.train_dataloader.dataset.pipeline = [*TRAIN[:2], dict(type='Resize', scale=(0, 9)), TRAIN[3]]
    text = errors(cfg)
    assert f'pipeline: {root}/images/train/00.jpg with mask {root}/annotations/train/00.png: ' in text


def test_other_datasets_are_skipped(root, logged):
    cfg = full(root)
    cfg.train_dataloader.dataset.metainfo = {}
    check_before_training(cfg)
    assert any('not checked before training' in message for message in logged)


def test_other_ranks_check_nothing(root, monkeypatch):
    (root / 'images/train/11.jpg').write_bytes(b'')
    monkeypatch.setenv('RANK', '1')
    check_before_training(full(root))
    monkeypatch.setenv('RANK', '0')
    errors(full(root))


def test_generated_data(scenes):
    check_before_training(load_config(ROOT / 'configs/davpt_upernet_miniscenes.py', {'data_root': str(scenes)}))


@pytest.mark.parametrize(('name', 'base'), [('camvid', 'camvid'), ('ccp', 'ccp_224x168')])
def test_real_data_in_5_seconds(name, base):
    if not (SHARED / 'data' / name).is_dir():
        pytest.skip(f'no {name} in {SHARED}')
    cfg = load_config(ROOT / f'configs/_base_/datasets/{base}.py', {'data_root': str(SHARED / 'data' / name)})
    start = time.process_time()
    check_before_training(cfg)
    assert time.process_time() - start < 5
