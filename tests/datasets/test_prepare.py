"""tools/prepare_dataset.py: every dataset from small archives on a loopback server to what its config reads."""

import ast
import io
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import mmseg
import numpy as np
import pytest
from conftest import ROOT, tool
from local_server import digest, serving, tarred, zipped
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from scipy.io import savemat

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets.prepare import SOURCES, convert, prepare
from mmseg_davpt.datasets.prepare.download import DataError


@pytest.fixture
def server():
    with serving() as server:
        yield server


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, **({'format': 'PNG'} | options))
    return file.getvalue()


def jpg():
    return png(np.zeros((6, 8, 3)), format='JPEG')


def served(server, name, archives, counts):
    """The source of that name, with small archives from the server in place of the real ones."""
    source = SOURCES[name]
    assert len(source.archives) == len(archives)
    items = []
    for item, data in zip(source.archives, archives):
        server.files[item.name] = data
        known = digest(data) if item.digest else None
        items.append(replace(item, url=item.url and server.url(item.name), digest=known))
    assert counts.keys() == source.counts.keys()
    return replace(source, archives=tuple(items), counts=counts)


def read(path):
    return np.array(Image.open(path)).tolist()


def dataset_of(config, root):
    """The training data as the config reads it."""
    init_default_scope('mmseg')
    cfg = load_config(ROOT / f'configs/{config}.py', {'data_root': str(root)})
    loading = [step for step in cfg.train_pipeline if 'Load' in step.type]
    return DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': loading})


def test_ade20k_and_what_is_wrong_with_it(server, tmp_path):
    files = {}
    for split, number in (('training', 3), ('validation', 2)):
        for index in range(number):
            files[f'ADEChallengeData2016/images/{split}/{index}.jpg'] = jpg()
            files[f'ADEChallengeData2016/annotations/{split}/{index}.png'] = png(np.arange(48).reshape(6, 8))
    counts = {pattern: 3 if 'training' in pattern else 2 for pattern in SOURCES['ade20k'].counts}
    source = served(server, 'ade20k', [zipped(files)], counts)
    root = prepare(source, tmp_path)
    assert root == tmp_path / 'ade/ADEChallengeData2016'
    assert len(dataset_of('davpt_upernet_ade20k', root)) == 3
    asked = len(server.asked)
    prepare(source, tmp_path)
    assert len(server.asked) == asked  # whole: nothing is done
    (root / 'images/training/0.jpg').unlink()
    prepare(source, tmp_path)  # unpacked again from the archive that is there
    assert len(server.asked) == asked
    (root / 'images/training/extra.jpg').touch()
    with pytest.raises(DataError, match=r'images/training/\*.jpg: expected 3, found 4'):
        prepare(source, tmp_path)
    wrong = served(server, 'ade20k', [zipped(files)], counts | {'images/validation/*.jpg': 2000})
    with pytest.raises(DataError, match=r'images/validation/\*.jpg: expected 2,000, found 2'):
        prepare(wrong, tmp_path / 'other')


def test_pascal_context(server, tmp_path):
    labels = np.zeros((6, 8), np.uint16)
    labels[0], labels[1], labels[2] = 2, 458, 1  # aeroplane; wood; accordion is none of the 59
    mat = io.BytesIO()
    savemat(mat, dict(LabelMap=labels))
    names = ['2008_000001', '2008_000002', '2008_000003']
    images = {f'VOCdevkit/VOC2010/JPEGImages/{name}.jpg': jpg() for name in [*names, '2008_000009']}
    lists = {
        'VOCdevkit/VOC2010/ImageSets/Main/train.txt': f'{names[0]}\n{names[1]}\n2008_000009\n'.encode(),
        'VOCdevkit/VOC2010/ImageSets/Main/val.txt': f'{names[2]}\n'.encode(),
    }
    mats = {'labels.txt': b'1: accordion', **{f'trainval/{name}.mat': mat.getvalue() for name in names}}
    counts = dict(zip(SOURCES['pascal-context59'].counts, (3, 2, 1)))
    root = prepare(served(server, 'pascal-context59', [tarred(images | lists), tarred(mats, 'w:gz')], counts), tmp_path)
    mask = read(root / 'SegmentationClassContext/2008_000001.png')
    assert [row[0] for row in mask] == [1, 59, 0, 0, 0, 0]
    dataset = dataset_of('davpt-residual_vit-b16_upernet_160k_pascal-context59-480x480', root)
    assert [Path(dataset.get_data_info(index)['img_path']).stem for index in range(len(dataset))] == names[:2]
    assert dataset[0]['gt_seg_map'][:, 0].tolist() == [0, 58, 255, 255, 255, 255]
    assert dataset.metainfo['classes'][0] == 'aeroplane'
    assert dataset.metainfo['classes'][58] == 'wood'


def test_pascal_context_without_an_image(tmp_path):
    for folder in ('context', 'ImageSets/Main', 'JPEGImages'):
        (tmp_path / folder).mkdir(parents=True)
    savemat(tmp_path / 'context/a.mat', dict(LabelMap=np.zeros((2, 2), np.uint16)))
    for split in ('train', 'val'):
        (tmp_path / f'ImageSets/Main/{split}.txt').write_text('a\n')
    with pytest.raises(FileNotFoundError, match=r'lacks 1 images of train, such as a.jpg'):
        convert.pascal_context59(tmp_path)


def test_pascal_context_table_is_that_of_mmseg():
    """Its converter cannot be imported without another package; its table can be read."""
    source = Path(mmseg.__file__).parent / '.mim/tools/dataset_converters/pascal_context.py'
    lists = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.List)]
    theirs = max(
        (ast.literal_eval(node) for node in lists if all(isinstance(e, ast.Constant) for e in node.elts)), key=len
    )
    assert sorted(theirs) == [0, *convert.PASCAL_CONTEXT59]


def cityscapes_files():
    ids = np.zeros((6, 8))
    ids[0], ids[1], ids[2] = 7, 33, 10  # road; bicycle; rail track is not evaluated
    images, masks = {}, {}
    for split, number in (('train', 2), ('val', 1), ('test', 1)):
        for index in range(number):
            images[f'leftImg8bit/{split}/town/town_{index}_leftImg8bit.png'] = png(np.zeros((6, 8, 3)))
            masks[f'gtFine/{split}/town/town_{index}_gtFine_labelIds.png'] = png(ids)
            masks[f'gtFine/{split}/town/town_{index}_gtFine_polygons.json'] = b'{}'
    return images, masks


def test_cityscapes_by_hand(server, tmp_path):
    images, masks = cityscapes_files()
    counts = {pattern: 2 if '/train/' in pattern else 1 for pattern in SOURCES['cityscapes'].counts}
    source = served(server, 'cityscapes', [zipped(images), zipped(masks)], counts)
    with pytest.raises(DataError, match=r'Register at(.|\n)*downloads/gtFine_trainvaltest.zip(.|\n)*run this again'):
        prepare(source, tmp_path)
    (tmp_path / 'downloads').mkdir()
    for item in source.archives:
        (tmp_path / 'downloads' / item.name).write_bytes(server.files[item.name])
    root = prepare(source, tmp_path)
    assert server.asked == []
    mask = read(root / 'gtFine/train/town/town_1_gtFine_labelTrainIds.png')
    assert [row[0] for row in mask] == [0, 18, 255, 255, 255, 255]
    dataset = dataset_of('davpt-residual_vit-b16_upernet_160k_cityscapes-512x1024', root)
    assert len(dataset) == 2
    assert dataset[0]['gt_seg_map'][:3, 0].tolist() == [0, 18, 255]
    assert dataset.metainfo['classes'][0] == 'road'
    assert dataset.metainfo['classes'][18] == 'bicycle'


def test_cityscapes_unpacked_by_its_user(server, tmp_path):
    images, masks = cityscapes_files()
    counts = {pattern: 2 if '/train/' in pattern else 1 for pattern in SOURCES['cityscapes'].counts}
    for name, data in (images | masks).items():
        path = tmp_path / 'cityscapes' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    source = served(server, 'cityscapes', [b'', b''], counts)
    assert prepare(source, tmp_path) == tmp_path / 'cityscapes'
    next((tmp_path / 'cityscapes/leftImg8bit/train/town').iterdir()).unlink()
    with pytest.raises(DataError, match='expected 2, found 1'):
        prepare(source, tmp_path)


def test_coco_stuff(server, tmp_path):
    ids = np.full((6, 8), 255)
    ids[0], ids[1], ids[2] = 0, 12, 181  # the ids 11, 25, ... are of no class: 12 becomes 11, 181 the last
    trains, vals, masks = {}, {}, {}
    for split, files, number in (('train2017', trains, 2), ('val2017', vals, 1)):
        for index in range(number):
            files[f'{split}/{index:012d}.jpg'] = jpg()
            masks[f'{split}/{index:012d}.png'] = png(ids)
    counts = {pattern: 2 if 'train' in pattern.split('/')[1] else 1 for pattern in SOURCES['coco-stuff164k'].counts}
    source = served(server, 'coco-stuff164k', [zipped(trains), zipped(vals), zipped(masks)], counts)
    root = prepare(source, tmp_path)
    assert [row[0] for row in read(root / 'annotations/val2017/000000000000_labelTrainIds.png')] == [0, 11, 170] + [
        255
    ] * 3
    dataset = dataset_of('davpt-residual_vit-b16_upernet_160k_coco-stuff164k-512x512', root)
    assert len(dataset) == 2
    assert dataset[0]['gt_seg_map'].max() == 255
    assert len(dataset.metainfo['classes']) == 171
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*.png')}
    convert.coco_stuff164k(root)  # again: nothing to do
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*.png')}


def test_camvid(server, tmp_path):
    ids = np.zeros((6, 8))
    ids[0], ids[1] = 10, 11
    top = next(iter(SOURCES['camvid'].archives[0].places)).rpartition('/')[0]
    files = {f'{top}/train.txt': b''}
    for split in ('train', 'val', 'test'):
        files[f'{top}/{split}/a.png'] = png(np.full((6, 8, 3), 100))
        files[f'{top}/{split}annot/a.png'] = png(ids)
    counts = dict.fromkeys(SOURCES['camvid'].counts, 1)
    server.ranges = False  # as GitHub's archives
    root = prepare(served(server, 'camvid', [zipped(files)], counts), tmp_path)
    assert [row[0] for row in read(root / 'annotations/val/a.png')] == [10, 255, 0, 0, 0, 0]
    assert read(root / 'images/test/a.jpg')[0][0] == [100, 100, 100]
    assert not (root / 'segnet').exists()
    dataset = dataset_of('davpt-residual_vit-s14_upernet_300it_camvid-210x280', root)
    assert dataset[0]['gt_seg_map'][:3, 0].tolist() == [10, 255, 0]


def test_camvid_of_another_kind_is_refused(tmp_path):
    for kind in ('train', 'trainannot'):
        (tmp_path / 'segnet' / kind).mkdir(parents=True)
        (tmp_path / 'segnet' / kind / 'a.png').write_bytes(png(np.full((6, 8), 30)))
    with pytest.raises(ValueError, match=r'trainannot/a.png: expected ids 0 to 11, got .* to 30'):
        convert.camvid(tmp_path)


def test_loveda(server, tmp_path):
    archives = []
    for split, number in (('Train', 2), ('Val', 1)):
        files = {}
        for scene in ('Rural', 'Urban'):
            for index in range(number):
                name = f'{scene == "Urban":d}{index}.png'
                files[f'{split}/{scene}/images_png/{name}'] = png(np.zeros((6, 8, 3)))
                files[f'{split}/{scene}/masks_png/{name}'] = png(np.arange(48).reshape(6, 8) % 8)
        archives.append(zipped(files))
    counts = {pattern: 4 if '/train/' in pattern else 2 for pattern in SOURCES['loveda'].counts}
    root = prepare(served(server, 'loveda', archives, counts), tmp_path)
    dataset = dataset_of('davpt-residual_vit-b16_upernet_160k_loveda-512x512', root)
    assert len(dataset) == 4
    assert dataset[0]['gt_seg_map'][0].tolist() == [255, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_command_line_says_what_to_do_by_hand(tmp_path):
    code, printed = tool('prepare_dataset', 'cityscapes', '--root', tmp_path, check=False)
    assert code == 1
    assert 'https://www.cityscapes-dataset.com/downloads/' in printed
    assert f'{tmp_path}/downloads/leftImg8bit_trainvaltest.zip' in printed
    assert 'Traceback' not in printed


def test_command_line_says_what_is_ready(server, tmp_path, monkeypatch, capsys):
    files = {f'LoveDA/{kind}/a.png': b'x' for kind in ('i', 'm')}
    source = SOURCES['loveda']
    item = replace(source.archives[0], url=server.url('a.zip'), digest=None, places={'LoveDA': ''})
    server.files['a.zip'] = zipped(files)
    monkeypatch.setitem(SOURCES, 'loveda', replace(source, archives=(item,), counts={'i/*.png': 1, 'm/*.png': 1}))
    monkeypatch.setattr(sys, 'argv', ['prepare_dataset.py', 'loveda', '--root', str(tmp_path)])
    runpy.run_path(str(ROOT / 'tools/prepare_dataset.py'), run_name='__main__')
    printed = capsys.readouterr()
    assert f'Ready: data_root={tmp_path}/loveDA' in printed.out
    assert 'CC BY-NC-SA' in printed.out
    assert 'LoveDA-Train.zip: 100%' in printed.err  # the bar
