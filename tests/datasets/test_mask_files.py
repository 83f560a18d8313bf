"""Written masks: ids, names, files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset
from mmengine.structures import PixelData
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_davpt.datasets.mask_files import file_ids, mask_meta, require_distinct, write_mask
from mmseg_davpt.engine import MaskWriterHook

CLASSES = ('Car', 'Sky', 'Road')


def make_dataset(root, masks, reduce_zero_label, classes=CLASSES):
    for name in ('a/0', 'b/0'):
        (root / f'images/{name}.png').parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (6, 4)).save(root / f'images/{name}.png')
    return DATASETS.build(
        dict(
            type='CamVidDataset', data_root=str(root), img_suffix='.png', metainfo=dict(classes=classes),
            data_prefix=dict(img_path='images', seg_map_path=str(masks)), reduce_zero_label=reduce_zero_label,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='CheckedLoadAnnotations', num_classes=len(classes)),
                      dict(type='PackSegInputs')],
        )
    )  # fmt: skip


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_a_test_writes_what_its_dataset_reads(tmp_path, reduce_zero_label, wrapped):
    dataset = make_dataset(tmp_path, tmp_path / 'out', reduce_zero_label)
    tested = ConcatDataset([dataset]) if wrapped else dataset
    hook = MaskWriterHook(tmp_path / 'out')
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=tested))
    hook.before_test(runner)
    truth = {}
    for index in range(2):
        path = dataset.get_data_info(index)['img_path']
        truth[path] = torch.randint(0, 3, (1, 4, 6))
        sample = SegDataSample(metainfo=dict(img_path=path), pred_sem_seg=PixelData(data=truth[path]))
        hook.after_test_iter(runner, index, outputs=[sample])
    assert sorted((tmp_path / 'out').rglob('*.png')) == [tmp_path / 'out/a/0.png', tmp_path / 'out/b/0.png']
    for item in dataset:
        assert torch.equal(item['data_samples'].gt_sem_seg.data.long(), truth[item['data_samples'].img_path])
    ids = np.asarray(Image.open(tmp_path / 'out/a/0.png'))
    assert set(np.unique(ids)) <= {8 + reduce_zero_label, reduce_zero_label, 3 + reduce_zero_label}  # CamVid's own


def test_a_config_is_understood_without_data():
    names = [str(index) for index in range(150)]
    known = dict(classes=names)

    def reduced(dataset, **meta):
        return mask_meta(dict(test_dataloader=dict(dataset=dataset)), {**known, **meta})['reduce_zero_label']

    assert mask_meta({}, known) == dict(classes=names, reduce_zero_label=False, label_map=None)
    assert reduced(dict(type='ADE20KDataset')) is True  # its default
    assert reduced(dict(type='ADE20KDataset', reduce_zero_label=False)) is False
    assert reduced(dict(type='MiniScenesDataset')) is False
    assert reduced(dict(type='MiniScenesDataset'), reduce_zero_label=True) is True
    steps = [dict(type='LoadImageFromFile'), dict(type='CheckedLoadAnnotations', reduce_zero_label=True)]
    assert reduced(dict(type='MiniScenesDataset', pipeline=steps)) is True
    assert reduced(dict(type='RepeatDataset', dataset=dict(type='ADE20KDataset'))) is True
    assert reduced(dict(type='NotRegistered'), reduce_zero_label=True) is True


def test_ids_above_255_take_16_bits(tmp_path):
    ids = file_ids(dict(classes=['x'] * 256, reduce_zero_label=True))
    mask = np.array([[0, 255]])
    write_mask(tmp_path / 'a.png', mask, ids)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'a.png')), [[1, 256]])
    with pytest.raises(ValueError, match='holds ids up to 255'):
        write_mask(tmp_path / 'b.png', mask, ids, [[0, 0, 0]] * 256)
    assert not list(tmp_path.glob('b*'))


def test_one_file_for_two_masks_is_refused():
    require_distinct({Path('x/a.jpg'): Path('x/a.jpg'), Path('y/a.jpg'): Path('y/a.jpg')})
    with pytest.raises(ValueError, match='subfolders of one folder'):
        require_distinct({Path('x/a.jpg'): Path('a.jpg'), Path('y/a.png'): Path('a.png')})
