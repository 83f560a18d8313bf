"""tools/prepare_dataset.py against a server on loopback: resume, hashes, damage, counts, conversion."""

import ast
import hashlib
import http.server
import io
import runpy
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import mmseg
import numpy as np
import pytest
from conftest import ROOT, tool
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from scipy.io import savemat

from mmseg_davpt.datasets import convert
from mmseg_davpt.datasets import download as module
from mmseg_davpt.datasets.download import DataError, download, unpack
from mmseg_davpt.datasets.prepare import prepare
from mmseg_davpt.datasets.sources import SOURCES
from mmseg_davpt.engine import load_config


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; notes what was asked; can stop in the middle, or know no ranges."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.asked, self.cut, self.ranges = {}, [], 0, True

    def url(self, name):
        return f'http://127.0.0.1:{self.server_port}/{name}'


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, wanted = self.path.lstrip('/'), self.headers.get('Range')
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            return self.send_error(404)
        data = self.server.files[name]
        start = int(wanted.removeprefix('bytes=').rstrip('-')) if wanted and self.server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header('Content-Range', f'bytes */{len(data)}')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        if self.server.cut:  # the connection ends after that many bytes
            self.server.cut, end = 0, start + self.server.cut
            return self.wfile.write(data[start:end])
        return self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def digest(data):
    return f'md5:{hashlib.md5(data).hexdigest()}'


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, **({'format': 'PNG'} | options))
    return file.getvalue()


def jpg():
    return png(np.zeros((6, 8, 3)), format='JPEG')


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def tarred(files, mode='w'):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


DATA = np.random.default_rng(0).bytes(200_000)


class TestDownload:
    def get(self, server, tmp_path, known=None, **options):
        return download(server.url('file'), tmp_path / 'd/file', known, **({'tries': 1} | options))

    def test_whole(self, server, tmp_path):
        server.files['file'] = DATA
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA
        assert [path.name for path in (tmp_path / 'd').iterdir()] == ['file']
        self.get(server, tmp_path, digest(DATA))
        assert len(server.asked) == 1  # what is there is not asked for again

    def test_interrupted_and_resumed(self, server, tmp_path):
        server.files['file'], server.cut = DATA, 50_000
        with pytest.raises(DataError, match=r'50,000 of 200,000 bytes came|IncompleteRead.*(.|\n)*Run this again'):
            self.get(server, tmp_path)
        assert (tmp_path / 'd/file.part').read_bytes() == DATA[:50_000]
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA
        assert server.asked == [('file', None), ('file', 'bytes=50000-')]

    def test_goes_on_by_itself(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(module.time, 'sleep', lambda seconds: None)
        server.files['file'], server.cut = DATA, 50_000
        assert self.get(server, tmp_path, digest(DATA), tries=2).read_bytes() == DATA
        assert server.asked[1] == ('file', 'bytes=50000-')

    def test_server_without_ranges(self, server, tmp_path):
        server.files['file'], server.cut, server.ranges = DATA, 50_000, False
        with pytest.raises(DataError):
            self.get(server, tmp_path)
        assert self.get(server, tmp_path, digest(DATA)).read_bytes() == DATA

    @pytest.mark.parametrize('known', [True, False])
    def test_complete_part_needs_no_byte(self, server, tmp_path, known):
        server.files['file'] = DATA
        (tmp_path / 'd').mkdir()
        (tmp_path / 'd/file.part').write_bytes(DATA)
        assert self.get(server, tmp_path, digest(DATA) if known else None).read_bytes() == DATA
        assert server.asked == [('file', f'bytes={len(DATA)}-')]

    def test_part_longer_than_the_file(self, server, tmp_path):
        server.files['file'] = DATA
        (tmp_path / 'd').mkdir()
        (tmp_path / 'd/file.part').write_bytes(DATA + b'more')
        assert self.get(server, tmp_path).read_bytes() == DATA
        assert [wanted for _, wanted in server.asked] == ['bytes=200004-', None]

    def test_wrong_hash(self, server, tmp_path):
        server.files['file'] = b'another file'
        with pytest.raises(DataError, match=r'not the expected file: expected md5:\w+, got md5:\w+. Removed'):
            self.get(server, tmp_path, digest(DATA))
        assert list((tmp_path / 'd').iterdir()) == []
        (tmp_path / 'd/file').write_bytes(b'put there by hand')
        with pytest.raises(DataError, match='delete it and run this again'):
            self.get(server, tmp_path, digest(DATA))
        assert (tmp_path / 'd/file').is_file()  # not ours to delete

    def test_what_the_server_says(self, server, tmp_path):
        with pytest.raises(DataError, match='404'):
            self.get(server, tmp_path)
        url = server.url('file')
        server.shutdown()
        server.server_close()
        with pytest.raises(DataError, match=r'refused.*Run this again'):
            download(url, tmp_path / 'file', tries=1)

    def test_full_disk_is_said_before(self, server, tmp_path, monkeypatch):
        server.files['file'] = DATA
        monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: type('Usage', (), dict(free=300_000)))
        with pytest.raises(DataError, match=r'200,000 bytes\) and what is in it need'):
            self.get(server, tmp_path)
        assert not (tmp_path / 'd/file.part').exists()


class TestUnpack:
    FILES = {
        'top/images/a.jpg': b'a' * 50,
        'top/images/deep/b.jpg': b'b' * 70_000,
        'top/readme': b'no',
        'top/imagesX/c': b'',
    }

    @pytest.mark.parametrize('pack', [zipped, tarred, lambda files: tarred(files, 'w:gz')], ids=['zip', 'tar', 'gz'])
    def test_wanted_folders_alone_and_again(self, tmp_path, pack):
        archive = tmp_path / 'x'
        archive.write_bytes(pack(self.FILES))
        assert unpack(archive, tmp_path / 'out', {'top/images': 'img'}) == 2
        found = {str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*') if path.is_file()}
        assert found == {'img/a.jpg', 'img/deep/b.jpg'}
        kept = tmp_path / 'out/img/deep/b.jpg'
        before = kept.stat().st_mtime_ns
        (tmp_path / 'out/img/a.jpg').write_bytes(b'half')
        unpack(archive, tmp_path / 'out', {'top/images': 'img'})
        assert kept.stat().st_mtime_ns == before
        assert (tmp_path / 'out/img/a.jpg').read_bytes() == b'a' * 50

    @pytest.mark.parametrize('name', ['../evil', '/evil', 'top/images/../../../evil'])
    @pytest.mark.parametrize('pack', [zipped, tarred], ids=['zip', 'tar'])
    def test_nothing_is_written_outside(self, tmp_path, pack, name):
        (tmp_path / 'x').write_bytes(pack({name: b'evil'}))
        with pytest.raises(DataError, match='outside'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'': '', 'top/images': ''})
        assert not list(tmp_path.rglob('evil'))

    def test_links_are_not_followed(self, tmp_path):
        with tarfile.open(tmp_path / 'x', 'w') as archive:
            link = tarfile.TarInfo('top/link')
            link.type, link.linkname = tarfile.SYMTYPE, '/etc'
            archive.addfile(link)
            archive.addfile(tarfile.TarInfo('top/file'))
        assert unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''}) == 1
        assert [path.name for path in (tmp_path / 'out').iterdir()] == ['file']

    @pytest.mark.parametrize('pack', [zipped, tarred, lambda files: tarred(files, 'w:gz')], ids=['zip', 'tar', 'gz'])
    def test_truncated(self, tmp_path, pack):
        data = pack({'top/images/a': DATA})
        (tmp_path / 'x').write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match='damaged'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})
        assert not [path for path in (tmp_path / 'out').rglob('*') if path.is_file() and not path.name.startswith('.')]

    def test_flipped_bit(self, tmp_path):
        data = bytearray(zipped({'top/a': DATA}))
        data[1000] ^= 1
        (tmp_path / 'x').write_bytes(data)
        with pytest.raises(DataError, match='CRC'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})

    def test_another_archive(self, tmp_path):
        (tmp_path / 'x').write_bytes(zipped({'else/a': b''}))
        with pytest.raises(DataError, match='holds none of top'):
            unpack(tmp_path / 'x', tmp_path / 'out', {'top': ''})


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
    loading = [step for step in cfg.train_pipeline if step.type.startswith('Load')]
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
    dataset = dataset_of('davpt_upernet_pascal-context59', root)
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
    dataset = dataset_of('davpt_upernet_cityscapes', root)
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
    dataset = dataset_of('davpt_upernet_coco-stuff164k', root)
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
    dataset = dataset_of('davpt_upernet_camvid', root)
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
    dataset = dataset_of('davpt_upernet_loveda', root)
    assert len(dataset) == 4
    assert dataset[0]['gt_seg_map'][0].tolist() == [255, 0, 1, 2, 3, 4, 5, 6]


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
