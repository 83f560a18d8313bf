"""Bad images and masks through check_dataset, the training pipeline and infer.

Every outcome is an error that names the file, or a correct reading: no crash, no hang, no wrong label in silence. JPEG
and WebP have no checksum: damage that leaves a decodable image of the right size cannot be told from a picture.
"""

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, segmentor_cfg, spread
from mmengine.config import Config
from mmseg.registry import DATASETS, MODELS
from PIL import Image

sys.path.insert(0, str(ROOT / 'tests'))
from bad_images import encoded, huge_header, png

from mmseg_davpt.apis import segment_images
from mmseg_davpt.datasets.audit import audit_config

CLASSES = 4
HEIGHT, WIDTH = 40, 56


class Pair:
    """Bytes of an image and its mask, with what a right reader returns.

    ``image`` and ``ids`` are the arrays to be read, ``None`` if the file must be refused. ``vague``: a damaged JPEG or
    WebP, of which only the size is known.
    """

    def __init__(self, draw):
        colors = draw.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        self.image = np.kron(colors, np.ones((8, 8, 1), np.uint8))
        self.ids = draw.integers(0, CLASSES, (HEIGHT, WIDTH), dtype=np.uint8)
        self.ids[:2, :3] = 255
        self.image_data = encoded(Image.fromarray(self.image))
        self.mask_data = encoded(Image.fromarray(self.ids))
        self.vague = self.damaged = False
        self.alone = None  # what infer may do: 'read', 'refuse', None = either


def flip(draw, data, number):
    data = bytearray(data)
    for place in draw.integers(0, len(data), number):
        data[place] ^= 1 << int(draw.integers(8))
    return bytes(data)


def cut(draw, data):
    return data[: int(draw.integers(0, len(data) - 1))]


def garbage(draw):
    return [
        b'', b'not an image', b'<html><body>404</body></html>', b'PK\x03\x04' + bytes(60),
        b'%!PS-Adobe-3.0 EPSF-3.0\n%%', b'%PDF-1.4\n', draw.bytes(300), b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0',
        b'II*\0' + draw.bytes(40), b'RIFF\x10\0\0\0WEBPVP8 ' + draw.bytes(20), b'BM' + draw.bytes(60),
        b'GIF89a' + draw.bytes(30),
    ][int(draw.integers(13))]  # fmt: skip


def huge(draw):
    width, height = (int(side) for side in draw.integers(20_000, 65_000, 2))
    bmp = bytearray(encoded(Image.new('RGB', (8, 8)), 'BMP'))
    bmp[18:26] = width.to_bytes(4, 'little') + height.to_bytes(4, 'little')
    gif = bytearray(encoded(Image.new('P', (8, 8)), 'GIF'))
    gif[6:10] = width.to_bytes(2, 'little') + height.to_bytes(2, 'little')
    return [huge_header(width, height), bytes(bmp), bytes(gif)][int(draw.integers(3))]


def frames(draw, pair):
    image = Image.fromarray(pair.image)
    kind = ('GIF', 'WEBP', 'TIFF', 'PNG')[int(draw.integers(4))]
    return encoded(image, kind, save_all=True, append_images=[image.rotate(180)])


def refuse(data):
    def change(draw, pair):
        pair.image_data, pair.image, pair.alone = data(draw, pair), None, 'refuse'

    return change


def damage_image(kind, how):
    def change(draw, pair):
        data = encoded(Image.fromarray(pair.image), kind)
        pair.image_data = flip(draw, data, int(draw.integers(1, 20))) if how == 'flip' else cut(draw, data)
        pair.damaged, pair.vague = True, kind != 'PNG'

    return change


def recode_image(draw, pair):
    mode = ('L', 'P', 'RGBA', 'CMYK', '1', 'I;16')[int(draw.integers(6))]
    image = Image.fromarray(pair.image)
    gray = np.asarray(image.convert('L'))
    if mode == 'I;16':
        image, kind = Image.fromarray(gray.astype(np.uint16) * 257), 'PNG'
    else:
        image, kind = image.convert(mode), 'TIFF' if mode == 'CMYK' else 'PNG'
    pair.image_data = encoded(image, kind)
    pair.image = np.stack([gray] * 3, -1) if mode in ('L', 'I;16') else np.asarray(image.convert('RGB'))
    pair.alone = 'read'


def float_image(draw, pair):
    data = encoded(Image.fromarray(draw.random((HEIGHT, WIDTH)).astype(np.float32)), 'TIFF')
    pair.image_data, pair.image, pair.alone = data, None, 'refuse'


def turn_image(draw, pair):
    """With a mask drawn on the turned or, wrongly, on the stored image."""
    orientation, kind = int(draw.integers(2, 9)), ('JPEG', 'PNG', 'WEBP')[int(draw.integers(3))]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pair.image_data = encoded(Image.fromarray(pair.image), kind, exif=exif)
    turned = orientation >= 5
    pair.vague, pair.alone = kind != 'PNG', 'read'
    pair.image = {
        2: pair.image[:, ::-1], 3: pair.image[::-1, ::-1], 4: pair.image[::-1], 5: pair.image.transpose(1, 0, 2),
        6: np.rot90(pair.image, -1), 7: np.rot90(pair.image, 2).transpose(1, 0, 2), 8: np.rot90(pair.image),
    }[orientation]  # fmt: skip
    if turned and draw.random() < 0.5:
        pair.ids = np.ascontiguousarray(np.rot90(pair.ids, -1))
        pair.mask_data = encoded(Image.fromarray(pair.ids))
    elif turned:
        pair.ids = None


def resize_image(draw, pair):
    height, width = (int(side) for side in draw.integers(8, 90, 2))
    pair.image = np.asarray(Image.fromarray(pair.image).resize((width, height)))
    pair.image_data, pair.alone = encoded(Image.fromarray(pair.image)), 'read'
    if (height, width) != (HEIGHT, WIDTH):
        pair.ids = None


def refuse_mask(data):
    def change(draw, pair):
        pair.mask_data, pair.ids = data(draw, pair), None

    return change


def damage_mask(how):
    def change(draw, pair):
        data = pair.mask_data
        pair.mask_data = flip(draw, data, int(draw.integers(1, 20))) if how == 'flip' else cut(draw, data)
        pair.damaged = True

    return change


def recode_mask(draw, pair):
    kind = int(draw.integers(5))
    if kind == 0:  # 16 bits, small ids
        pair.mask_data = encoded(Image.fromarray(pair.ids.astype(np.uint16)))
    elif kind == 1:
        image = Image.fromarray(pair.ids)
        image.putpalette(draw.bytes(768))
        pair.mask_data = encoded(image)
    elif kind == 2:  # one bit: 0 and 1 for Pillow
        pair.ids = (pair.ids % 2).astype(np.uint8)
        pair.mask_data = encoded(Image.fromarray(pair.ids.astype(bool)))
    elif kind == 3:
        pair.mask_data = encoded(Image.fromarray(pair.ids), 'TIFF')
    else:
        pair.mask_data = encoded(Image.fromarray(pair.ids), 'BMP')


def wrong_ids(draw, pair):
    wrong = pair.ids.astype(np.int32)
    places = draw.integers(0, wrong.size, int(draw.integers(1, 6)))
    high = draw.random() < 0.5
    wrong.reshape(-1)[places] = draw.integers(256, 65536) if high else draw.integers(CLASSES, 255)
    pair.mask_data, pair.ids = encoded(Image.fromarray(wrong.astype(np.uint16 if high else np.uint8))), None


def no_ids(draw, pair):
    image = Image.fromarray(pair.ids)
    kind = int(draw.integers(6))
    if kind < 3:
        pair.mask_data = encoded(image.convert(('RGB', 'RGBA', 'LA')[kind]))
    elif kind == 3:
        pair.mask_data = encoded(image, 'JPEG', quality=int(draw.integers(50, 101)))
    elif kind == 4:
        pair.mask_data = encoded(Image.fromarray(pair.ids.astype(np.float32)), 'TIFF')
    else:  # gray of 2 bits, which decoders scale
        packed = ((pair.ids % 4).reshape(HEIGHT, -1, 4) << np.array([6, 4, 2, 0], np.uint8)).sum(2, dtype=np.uint8)
        pair.mask_data = png(WIDTH, HEIGHT, b''.join(b'\0' + row.tobytes() for row in packed), bits=2)
    pair.ids = None


def resize_mask(draw, pair):
    ids = pair.ids
    while ids.shape == pair.ids.shape:
        ids = [pair.ids.T, pair.ids[: int(draw.integers(1, HEIGHT))], pair.ids[:1, :1], pair.ids[:, :1]][
            int(draw.integers(4))
        ]
    pair.mask_data, pair.ids = encoded(Image.fromarray(np.ascontiguousarray(ids))), None


CHANGES = {
    'image: JPEG, flipped bits': damage_image('JPEG', 'flip'),
    'image: JPEG, cut': damage_image('JPEG', 'cut'),
    'image: PNG, flipped bits': damage_image('PNG', 'flip'),
    'image: PNG, cut': damage_image('PNG', 'cut'),
    'image: WebP, flipped bits': damage_image('WEBP', 'flip'),
    'image: WebP, cut': damage_image('WEBP', 'cut'),
    'image: end is zeros': refuse(lambda draw, pair: encoded(Image.fromarray(pair.image), 'JPEG')[:-100] + bytes(100)),
    'image: empty, text, other files': refuse(lambda draw, pair: garbage(draw)),
    'image: huge header': refuse(lambda draw, pair: huge(draw)),
    'image: animated, pages': refuse(frames),
    'image: other modes, 16 bits': recode_image,
    'image: float': float_image,
    'image: EXIF orientation': turn_image,
    'image: other size': resize_image,
    'mask: flipped bits': damage_mask('flip'),
    'mask: cut': damage_mask('cut'),
    'mask: empty, text, other files': refuse_mask(lambda draw, pair: garbage(draw)),
    'mask: huge header': refuse_mask(lambda draw, pair: huge(draw)),
    'mask: 1 and 16 bits, palette, TIFF, BMP': recode_mask,
    'mask: ids of no class': wrong_ids,
    'mask: colors, JPEG, float, 2 bits': no_ids,
    'mask: other size': resize_mask,
    'mask: several images': refuse_mask(
        lambda draw, pair: encoded(
            Image.fromarray(pair.ids), 'TIFF', save_all=True, append_images=[Image.fromarray(pair.ids)]
        )
    ),
}


def make_pairs(root, number, seed=0):
    """Write pairs, one fault each, as a dataset of one split; the pairs by name."""
    draw = np.random.default_rng(seed)
    for folder in ('images', 'masks'):
        (root / folder).mkdir(parents=True)
    pairs = {}
    for index in range(number):
        kind = list(CHANGES)[index % len(CHANGES)]
        pair = Pair(draw)
        CHANGES[kind](draw, pair)
        pair.kind, name = kind, f'{index:04d}'
        (root / f'images/{name}.jpg').write_bytes(pair.image_data)
        (root / f'masks/{name}.png').write_bytes(pair.mask_data)
        pairs[name] = pair
    return pairs


def make_config(root):
    pipeline = [
        dict(type='CheckedLoadImageFromFile'), dict(type='CheckedLoadAnnotations', num_classes=CLASSES),
        dict(type='PackSegInputs'),
    ]  # fmt: skip
    dataset = dict(
        type='BaseSegDataset', metainfo=dict(classes=[str(index) for index in range(CLASSES)]), data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=pipeline,
    )  # fmt: skip
    return Config(dict(train_dataloader=dict(dataset=dataset)))


def train_outcome(dataset, index, pair, root, name):
    """Read a sample as training does: 'refused' or 'read'."""
    image, mask = str(root / f'images/{name}.jpg'), str(root / f'masks/{name}.png')
    try:
        sample = dataset[index]
    except Exception as error:
        assert image in str(error), f'{pair.kind}: {error}'
        assert mask in str(error) or not pair.kind.startswith('mask'), f'{pair.kind}: {error}'
        assert len(str(error)) > len(image) + 15
        expected = pair.image is not None and pair.ids is not None and not pair.damaged
        assert not expected, f'{pair.kind}: a good file is refused: {error}'
        return 'refused'
    assert pair.image is not None, f'{pair.kind} is read: {image}'
    assert pair.ids is not None, f'{pair.kind} is read: {mask}'
    ids = sample['data_samples'].gt_sem_seg.data[0].numpy()
    assert np.array_equal(ids, pair.ids), f'{pair.kind}: wrong labels: {mask}'
    pixels = sample['inputs'].numpy().transpose(1, 2, 0)[..., ::-1]
    if pair.vague:
        assert pixels.shape == pair.image.shape, f'{pair.kind}: wrong size: {image}'
    else:
        assert np.abs(pixels.astype(int) - pair.image).max() <= 1, f'{pair.kind}: wrong pixels: {image}'
    return 'read'


def infer_outcome(pair, failed, path, out):
    if path in failed:
        assert len(failed[path]) > 5
        assert pair.alone != 'read', f'{pair.kind}: a good file is refused: {failed[path]}'
        return 'refused'
    assert pair.alone != 'refuse', f'{pair.kind} is read: {path}'
    with Image.open(out / 'masks' / f'{path.stem}.png') as mask:
        size = mask.size[::-1]
    if pair.image is not None and not (pair.vague and pair.damaged):
        assert size == pair.image.shape[:2], f'{pair.kind}: wrong size: {path}'
    return 'read'


def tiny_model(folder):
    model = segmentor_cfg(CLASSES, guidance=False)
    built = MODELS.build(model)
    spread(built)
    names = [str(index) for index in range(CLASSES)]
    meta = dict(dataset_meta=dict(classes=names, palette=[[index] * 3 for index in range(CLASSES)]))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), folder / 'model.pth')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackSegInputs')]
    return Config(dict(model=model, test_pipeline=pipeline)), folder / 'model.pth'


def check(tmp_path, number, seed=0):
    root = tmp_path / 'set'
    pairs = make_pairs(root, number, seed)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    warnings.simplefilter('ignore')
    cfg = make_config(root)
    audit = audit_config(cfg, workers=2, allow_missing=[str(index) for index in range(CLASSES)])
    named = {Path(fault.path).stem for fault in audit.errors}
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model, checkpoint = tiny_model(tmp_path)
    images = {name: root / f'images/{name}.jpg' for name in pairs}
    failed = segment_images(model, checkpoint, list(images.values()), tmp_path / 'out')
    outcomes = {kind: Counter() for kind in ('check_dataset', 'training', 'infer')}
    for index, (name, pair) in enumerate(pairs.items()):
        trained = train_outcome(dataset, index, pair, root, name)
        if not (pair.vague and pair.damaged and trained == 'read'):  # check_dataset decodes those twice
            assert (name in named) == (trained == 'refused'), f'{pair.kind}: check_dataset disagrees: {name}'
        outcomes['check_dataset']['error' if name in named else 'read'] += 1
        outcomes['training'][trained] += 1
        outcomes['infer'][infer_outcome(pair, failed, images[name], tmp_path / 'out')] += 1
    turned = {Path(fault.path).stem for fault in audit.faults if fault.kind == 'turned image'}
    assert turned >= {name for name, pair in pairs.items() if pair.kind == 'image: EXIF orientation'}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < 800, f'{grown} MB'
    text = '; '.join(f'{place}: ' + ', '.join(f'{n} {o}' for o, n in row.items()) for place, row in outcomes.items())
    print(f'\nbad images and masks: {number} cases, {text}; {time.monotonic() - start:.0f} s, {grown} MB')
    return outcomes


def test_one_of_each(tmp_path):
    outcomes = check(tmp_path, len(CHANGES))
    assert min(min(row.values()) for row in outcomes.values()) >= 2


@pytest.mark.faults
def test_500_bad_images_and_masks(tmp_path):
    outcomes = check(tmp_path, 500, seed=1)
    assert all(sum(row.values()) == 500 and len(row) == 2 for row in outcomes.values())


def test_the_oracle_reads_good_pairs(tmp_path):
    """The comparison itself: right pairs are read, and exchanged labels are noticed."""
    draw = np.random.default_rng(0)
    pair = Pair(draw)
    pair.kind = 'mask: none'
    for folder, data, suffix in (('images', pair.image_data, 'jpg'), ('masks', pair.mask_data, 'png')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f'0000.{suffix}').write_bytes(data)
    dataset = DATASETS.build(make_config(tmp_path).train_dataloader.dataset)
    assert train_outcome(dataset, 0, pair, tmp_path, '0000') == 'read'
    Image.fromarray((pair.ids % 2).astype(np.uint8)).save(tmp_path / 'masks/0000.png')
    with pytest.raises(AssertionError, match='wrong labels'):
        train_outcome(dataset, 0, pair, tmp_path, '0000')


SCRIPT = """
import json, resource, sys
from pathlib import Path
import torch
import mmseg_davpt
from test_inference import make_model, noise
from mmseg_davpt.apis import segment_images
from PIL import Image
torch.set_num_threads(2)
from mmengine.registry import init_default_scope
init_default_scope('mmseg')
folder = Path(sys.argv[1])
resize = [dict(type='Resize', scale=(512, 512), keep_ratio=True)] if sys.argv[2] == 'resized' else []
pipeline = [dict(type='LoadImageFromFile'), *resize, dict(type='PackSegInputs')]
cfg, checkpoint = make_model(folder, num_classes=150, pipeline=pipeline)
Image.fromarray(noise(4000, 6000)).save(folder / 'photo.jpg')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (9 << 30, 9 << 30))
failed = segment_images(cfg, checkpoint, [folder / 'photo.jpg'], folder)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = {path.name: why for path, why in failed.items()}, before // 1024, peak // 1024
(folder / 'result.json').write_text(json.dumps(result))
"""


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('case', ['resized', 'in tiles'])
def test_memory_for_a_photo_of_24_megapixels_and_150_classes(tmp_path, case):
    """Without bounds the logits alone take 14 GB."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tests/apis'))))
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(tmp_path), case],
        env=environment,
        text=True,
        capture_output=True,
        timeout=1700,
    )
    assert (tmp_path / 'result.json').exists(), done.stdout[-1000:] + done.stderr[-3000:]
    failed, before, peak = json.loads((tmp_path / 'result.json').read_text())
    assert failed == {}
    print(f'\nphoto of 24 megapixels, 150 classes, {case}: {before} MB before, peak {peak} MB')
    assert peak - before < 3000
    with Image.open(tmp_path / 'masks/photo.png') as mask:
        assert mask.size == (6000, 4000)
