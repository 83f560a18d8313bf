"""tools/check_dataset.py: planted faults, each found with its path; a clean set; reduce_zero_label wrong both ways."""

import io
import json
import runpy
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, tool
from mmengine.config import Config
from PIL import Image

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets.audit import audit_config, format_audit
from mmseg_davpt.datasets.check import leaf_datasets

CLASSES = ('a', 'b', 'c', 'd')


def make_set(root, first=0, train=12, val=4):
    """Noise images and masks of 4 classes, ids from ``first``, a corner of 255 in each."""
    draw = np.random.default_rng(0)
    for split, number in (('train', train), ('val', val)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            save(draw.integers(0, 256, (24, 32, 3)), root / f'images/{split}/{index:02d}.jpg')
            mask = draw.integers(first, first + 4, (24, 32))
            mask[:2, :2] = 0 if first else 255
            save(mask, root / f'annotations/{split}/{index:02d}.png')
    return root


def save(array, path, **options):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **options)


def config(root, reduced=False, **options):
    def dataset(split):
        return dict(
            type='BaseSegDataset', metainfo=dict(classes=CLASSES), data_root=str(root), reduce_zero_label=reduced,
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')], **options,
        )  # fmt: skip

    val = dict(dataset=dataset('val'))
    return Config(dict(train_dataloader=dict(dataset=dataset('train')), val_dataloader=val, test_dataloader=val))


@pytest.fixture
def root(tmp_path):
    return make_set(tmp_path / 'set')


def found(audit):
    return {(fault.kind, fault.split, fault.path) for fault in audit.faults}


def test_clean_set(root):
    audit = audit_config(config(root))
    assert not audit.faults
    assert [(split.name, split.images) for split in audit.splits] == [('train', 12), ('val/test', 4)]
    masks = [np.array(Image.open(path)) for path in sorted((root / 'annotations/train').glob('*.png'))]
    counts = np.bincount(np.concatenate(masks, axis=None), minlength=256)
    assert [audit.splits[0].pixels[index] for index in range(4)] == counts[:4].tolist()
    assert audit.splits[0].pixels[255] == counts[255] == 12 * 4
    assert [audit.splits[0].masks[index] for index in range(4)] == [12] * 4
    assert 'ids in the files 0-3, 255' in format_audit(audit)


def plant(root):
    """Faults, one to a sample: what was done -> (kind, split, path)."""
    images, masks = root / 'images/train', root / 'annotations/train'

    def mask(index, change):
        path = masks / f'{index:02d}.png'
        save(change(np.array(Image.open(path))), path)
        return str(path)

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return str(path)

    planted = {
        'truncated image': ('unreadable image', 'train', cut(images / '00.jpg')),
        'truncated mask': ('unreadable mask', 'train', cut(masks / '01.png')),
        'size': ('size mismatch', 'train', mask(2, lambda a: a[:-1])),
        'turned': ('size mismatch', 'train', mask(3, lambda a: a.T)),
        'colors': ('color mask', 'train', mask(4, lambda a: np.stack([a] * 3, -1))),
        'id beyond': ('bad ids', 'train', mask(5, lambda a: np.where(a == 3, 77, a))),
        'all void': ('all ignored', 'train', mask(6, lambda a: a * 0 + 255)),
    }
    (images / '07.jpg').write_bytes(b'')
    planted['empty image'] = ('unreadable image', 'train', str(images / '07.jpg'))
    (masks / '08.png').unlink()
    planted['mask gone'] = ('missing mask', 'train', str(masks / '08.png'))
    (images / '09.jpg').unlink()
    planted['image gone'] = ('mask without image', 'train', str(masks / '09.png'))
    shutil.copy(images / '10.jpg', root / 'images/val/00.jpg')
    planted['leakage'] = ('leakage', 'val/test', str(root / 'images/val/00.jpg'))
    shutil.copy(images / '10.jpg', images / '11.jpg')
    planted['twice'] = ('duplicate image', 'train', str(images / '11.jpg'))
    return planted


def test_planted_faults_are_all_found_and_nothing_else(root):
    planted = plant(root)
    audit = audit_config(config(root), workers=2)
    assert len(planted) == len(set(planted.values())) == 12
    assert found(audit) == set(planted.values())
    assert {fault.kind for fault in audit.faults} - {fault.kind for fault in audit.errors} == {
        'all ignored', 'duplicate image',
    }  # fmt: skip
    text = format_audit(audit)
    assert all(path in text for _, _, path in planted.values())
    assert '10 errors, 2 warnings in 15 images' in text
    assert '77' in next(fault.what for fault in audit.faults if fault.kind == 'bad ids')
    assert '... and 1 more' in format_audit(audit, show=1)


def test_command_line(root, tmp_path, monkeypatch, capsys):
    file = tmp_path / 'config.py'
    config(root).dump(file)

    def check(*options):
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', str(file), *options])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools/check_dataset.py'), run_name='__main__')
        return stop.value.code

    assert check() == 0
    assert '0 errors, 0 warnings in 16 images' in capsys.readouterr().out
    planted = plant(root)
    assert check('--json', str(tmp_path / 'out.json'), '--show', '1') == 1
    listed = json.loads((tmp_path / 'out.json').read_text())
    rows = {(row['kind'], row['split'], row['path']) for key in ('errors', 'warnings') for row in listed[key]}
    assert rows == set(planted.values())
    assert listed['splits'][0]['classes'][0]['name'] == 'a'
    shutil.rmtree(root)
    assert check() == 2
    assert f'no data at data_root={str(root)!r}' in capsys.readouterr().err


@pytest.mark.slow
def test_exit_code_of_the_process(root, tmp_path):
    plant(root)
    config(root).dump(tmp_path / 'config.py')
    code, printed = tool('check_dataset', tmp_path / 'config.py', '--workers', '1', check=False)
    assert code == 1
    assert 'check train: 100%' in printed  # the bar
    assert '10 errors, 2 warnings' in printed


class TestReduceZeroLabel:
    def verdict(self, root, reduced):
        return [fault for fault in audit_config(config(root, reduced)).faults if fault.kind == 'reduce_zero_label']

    def test_right(self, tmp_path):
        for first in (0, 1):
            root = make_set(tmp_path / str(first), first)
            audit = audit_config(config(root, reduced=bool(first)))
            assert not audit.faults
            assert set(audit.splits[0].pixels) == {0, 1, 2, 3, 255}

    def test_should_be_true(self, tmp_path):
        (fault,) = self.verdict(make_set(tmp_path / 'set', 1), False)
        assert fault.split == 'train and val/test'
        assert 'ids run to 4 with 4 classes: set it True' in fault.what

    @pytest.mark.parametrize('void', [True, False])
    def test_should_be_false(self, tmp_path, void):
        root = make_set(tmp_path / 'set')
        if not void:
            for path in root.rglob('*.png'):
                save(np.array(Image.open(path)) % 4, path)
        (fault,) = self.verdict(root, True)
        assert 'ids are 0 to 3 with 4 classes' in fault.what
        assert 'set it False' in fault.what

    def test_the_last_class_of_a_subset_may_be_missing(self, tmp_path):
        """0 = unlabeled, 1 and 3 occur: nothing says that 0 is a class."""
        root = make_set(tmp_path / 'set', 1)
        for path in root.rglob('*.png'):
            mask = np.array(Image.open(path))
            save(np.where(np.isin(mask, (2, 4)), 0, mask), path)
        assert not self.verdict(root, True)
        assert {fault.kind for fault in audit_config(config(root, True)).faults} == {'missing class'}
        allowed = audit_config(config(root, True), allow_missing=['b', 'd'])
        assert not allowed.errors
        assert {fault.kind for fault in allowed.faults} == {'empty class'}
        with pytest.raises(ValueError, match="no class is called 'e'; the classes are a, b, c, d"):
            audit_config(config(root, True), allow_missing=['e'])

    def test_pipeline_and_dataset_disagree(self, root):
        cfg = config(root)
        cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
        (fault,) = audit_config(cfg).errors
        assert (fault.kind, fault.split) == ('reduce_zero_label', 'train')
        assert 'False in the dataset, True in LoadAnnotations' in fault.what


def test_classes_that_never_occur(root):
    for path in (root / 'annotations/val').glob('*.png'):
        mask = np.array(Image.open(path))
        save(np.where(mask == 2, 1, mask), path)
    audit = audit_config(config(root))
    assert not audit.errors
    (fault,) = audit.faults
    assert (fault.kind, fault.split, fault.what) == ('empty class', 'val/test', 'class 2 (c) never occurs')


def test_a_class_that_occurs_nowhere_is_an_error(root):
    for path in root.rglob('*.png'):
        mask = np.array(Image.open(path))
        save(np.where(mask == 2, 1, mask), path)
    audit = audit_config(config(root))
    (fault,) = audit.faults
    assert audit.errors == [fault]
    assert (fault.kind, fault.split) == ('missing class', 'train and val/test')
    assert 'class 2 (c) never occurs in any split' in fault.what
    assert {fault.kind for fault in audit_config(config(root), allow_missing=['c']).faults} == {'empty class'}


def make_binary(root):
    for path in root.rglob('*.png'):
        save((np.array(Image.open(path)) % 2) * 255, path)
    cfg = config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=('background', 'object'))
    return cfg


def test_binary_masks(root):
    """Ids 0 and 255: one class and ignored pixels, which every model gets right."""
    cfg = make_binary(root)
    audit = audit_config(cfg)
    assert {fault.kind for fault in audit.errors} == {'binary mask', 'missing class'}
    assert '0 and 255: a binary mask; use 0/1 or --map 255=1' in format_audit(audit)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo = dict(classes=('background',))
    assert not audit_config(cfg).errors  # one class, and ignored pixels


def test_masks_with_other_ids(root, tmp_path, monkeypatch, capsys):
    cfg = make_binary(root)
    before = {path: np.array(Image.open(path)) for path in sorted(root.rglob('*.png'))}
    cfg.dump(tmp_path / 'config.py')

    def check(*options):
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', str(tmp_path / 'config.py'), *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / 'tools/check_dataset.py'), run_name='__main__')
        return stop.value.code

    monkeypatch.setattr(
        sys, 'argv', ['check_dataset.py', str(tmp_path / 'config.py'), '--map', '255=1', '--out', str(tmp_path / 'out')]
    )
    runpy.run_path(str(ROOT / 'tools/check_dataset.py'), run_name='__main__')
    printed = capsys.readouterr().out
    assert f'12 masks written to {tmp_path}/out/annotations/train: set data_prefix.seg_map_path=' in printed
    for path, mask in before.items():
        assert np.array_equal(np.array(Image.open(path)), mask)  # unchanged
        assert np.array_equal(np.array(Image.open(tmp_path / 'out' / path.relative_to(root))), mask // 255)
    for split, loader in (('train', cfg.train_dataloader), ('val', cfg.val_dataloader), ('val', cfg.test_dataloader)):
        loader.dataset.data_prefix.seg_map_path = str(tmp_path / 'out/annotations' / split)
    assert not audit_config(cfg).faults
    assert check('--map', '255=1', '--out', tmp_path / 'out') == 2
    assert 'not an empty folder' in capsys.readouterr().err
    assert check('--map', '255=1') == 2
    assert check('--map', '255', '--out', tmp_path / 'new') == 2
    assert 'write OLD=NEW' in capsys.readouterr().err
    (root / 'annotations/train/00.png').write_bytes(b'')
    failed = check('--map', '255=1', '--out', tmp_path / 'new')
    assert failed == f'Not written:\n  {root}/annotations/train/00.png: the file is empty'


def test_checksums(root):
    """Pillow reads many of these masks, with wrong ids."""
    path = root / 'annotations/train/00.png'
    data = path.read_bytes()
    for place in range(16, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert ('unreadable mask', 'train', str(path)) in found(audit_config(config(root))), place


def test_masks_of_one_pixel(root):
    for name, shape in (('00', (1, 1)), ('01', (1, 9)), ('02', (9, 1))):
        save(np.zeros((*shape, 3)), root / f'images/train/{name}.png')
        (root / f'images/train/{name}.jpg').write_bytes((root / f'images/train/{name}.png').read_bytes())
        (root / f'images/train/{name}.png').unlink()
        save(np.ones(shape), root / f'annotations/train/{name}.png')
    audit = audit_config(config(root))
    assert not audit.errors
    assert audit.splits[0].images == 12


def test_other_suffixes_are_named(root):
    (fault,) = (fault for fault in audit_config(config(root, img_suffix='.tif')).faults if fault.split == 'train'
                and fault.kind == 'no images')  # fmt: skip
    assert fault.what == "no *.tif there, but 12 files *.jpg: set img_suffix='.jpg' in the dataset"
    faults = [fault for fault in audit_config(config(root, seg_map_suffix='.tif')).faults if fault.split == 'train']
    assert {fault.kind for fault in faults} == {'missing mask'}
    assert faults[0].what.endswith("but 12 files *.png: set seg_map_suffix='.png' in the dataset")


def test_masks_are_read_as_the_pipeline_reads_them(root):
    """A palette mask holds ids for Pillow (the default) and colors for opencv."""
    path = root / 'annotations/train/00.png'
    image = Image.open(path).convert('L')
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9] + [0] * 756)
    image.save(path)
    cfg = config(root)
    assert not audit_config(cfg).faults
    cfg.train_dataloader.dataset.pipeline[1].imdecode_backend = 'cv2'
    assert found(audit_config(cfg)) == {('color mask', 'train', str(path))}


def test_ids_beyond_8_bits_and_lossy_masks(root):
    path = root / 'annotations/train/00.png'
    mask = np.array(Image.open(path)).astype(np.uint16)
    mask[5, 5] = 256 + 1  # LoadAnnotations would take it for a 1
    Image.fromarray(mask).save(path)
    (fault,) = audit_config(config(root)).faults
    assert (fault.kind, fault.path) == ('bad ids', str(path))
    assert '257 in 1 pixels' in fault.what
    data = io.BytesIO()
    Image.open(root / 'annotations/train/01.png').save(data, 'JPEG')
    (root / 'annotations/train/01.png').write_bytes(data.getvalue())
    assert ('lossy mask', 'train', str(root / 'annotations/train/01.png')) in found(audit_config(config(root)))


def test_turned_photographs(root):
    """A camera's orientation flag turns the image that is trained on, not its mask."""
    path = root / 'images/train/00.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    turned, wrong = audit_config(config(root)).faults
    assert (turned.kind, turned.path) == ('turned image', str(path))
    assert (wrong.kind, wrong.path) == ('size mismatch', str(root / 'annotations/train/00.png'))
    assert wrong.what.startswith('image 24x32, mask 32x24 (width x height). EXIF orientation 6 turns the image')
    mask = root / 'annotations/train/00.png'  # a mask drawn on the turned image is right
    save(np.rot90(np.array(Image.open(mask)), -1), mask)
    (fault,) = audit_config(config(root)).faults
    assert (fault.kind, fault.what) == (
        'turned image', 'EXIF orientation 6: the image is turned when it is read, its mask is not'
    )  # fmt: skip


def test_wrappers_are_looked_through(root):
    cfg = config(root)
    inner = cfg.train_dataloader.dataset
    part = dict(inner, data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'))
    repeated = dict(type='RepeatDataset', times=3, dataset=inner)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[repeated, part])
    assert len(list(leaf_datasets(cfg.train_dataloader.dataset))) == 2
    audit = audit_config(cfg)
    assert [(split.name, split.images) for split in audit.splits] == [('train', 12), ('train[1]/val/test', 4)]


def test_split_lists_and_subsets(root):
    """Masks that a list does not name belong to other splits; a subset of classes is mapped as in training."""
    (root / 'list.txt').write_text('00\n01\n')
    cfg = config(root)
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    audit = audit_config(cfg)
    assert not audit.faults
    assert audit.splits[0].images == 2
    cfg.train_dataloader.dataset.update(type='CamVidDataset', metainfo=dict(classes=('Road', 'Sky')))
    audit = audit_config(cfg)
    assert audit.splits[0].pixels[1] == audit.splits[0].ids[0]  # Sky
    assert audit.splits[0].pixels[0] == audit.splits[0].ids[3]  # Road
    assert audit.splits[0].pixels[255] == audit.splits[0].ids[1] + audit.splits[0].ids[2] + audit.splits[0].ids[255]


def test_what_cannot_be_checked(root, tmp_path):
    cfg = config(root)
    cfg.train_dataloader.dataset.data_prefix.img_path = 'nowhere'
    with pytest.raises(ValueError, match=r'train: BaseSegDataset cannot be built.*nowhere'):
        audit_config(cfg)
    cfg = config(root, img_suffix='.tif')
    assert {fault.kind for fault in audit_config(cfg).faults} == {'no images', 'mask without image'}
    cfg = config(root)
    cfg.val_dataloader.dataset.metainfo = {}
    with pytest.raises(ValueError, match='val: BaseSegDataset is not a segmentation dataset'):
        audit_config(cfg)


def test_generated_data(scenes):
    cfg = load_config(ROOT / 'configs/davpt_upernet_miniscenes.py', {'data_root': str(scenes)})
    assert {fault.kind for fault in audit_config(cfg).errors} == {'missing class'}  # of so few images
    audit = audit_config(cfg, allow_missing=['mountain'])
    assert not audit.errors
    assert [(split.name, split.images) for split in audit.splits] == [('train', 8), ('val/test', 3)]
    assert 'ids in the files 0-' in format_audit(audit)
