"""Segmenting images: bad files among good ones, EXIF orientation, large images in parts."""

import os

import cv2
import numpy as np
import pytest
import torch
from bad_images import huge_header, many_frames, save_turned, truncated_jpeg
from conftest import segmentor_cfg, spread
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from mmseg.models import EncoderDecoder
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from mmseg_davpt.apis import find_images, inference, prediction, segment_images

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 96), keep_ratio=True),
    dict(type='CheckedLoadAnnotations', num_classes=5),
    dict(type='PackSegInputs'),
]


def make_model(folder, num_classes=5, pipeline=PIPELINE, **test_cfg):
    """Config and checkpoint of a tiny model with random weights."""
    model = segmentor_cfg(num_classes, guidance=False)
    model.test_cfg.update(test_cfg)
    cfg = Config(dict(model=model, test_pipeline=pipeline))
    built = MODELS.build(model)
    spread(built)
    palette = np.random.default_rng(0).integers(0, 256, (num_classes, 3)).tolist()
    meta = dict(dataset_meta=dict(classes=[str(index) for index in range(num_classes)], palette=palette))
    torch.save(dict(state_dict=built.state_dict(), meta=meta), folder / 'model.pth')
    return cfg, folder / 'model.pth'


def noise(height, width, seed=0):
    """An image with regions, so that the classes differ."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return np.kron(small, np.ones((16, 16, 1), np.uint8))[:height, :width]


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def bad_images(folder):
    """Files that cannot be segmented: path -> part of the reason."""
    folder.mkdir()
    image = Image.fromarray(noise(48, 64))
    Image.fromarray(noise(3, 5000)).save(folder / 'flat.png')
    (folder / 'empty.jpg').touch()
    (folder / 'text.jpg').write_text('not a picture')
    (folder / 'folder.jpg').mkdir()
    (folder / 'truncated.jpg').write_bytes(truncated_jpeg(image))
    (folder / 'huge.png').write_bytes(huge_header(65000, 65000))
    (folder / 'large.png').write_bytes(huge_header(30000, 30000))
    for suffix in ('gif', 'webp', 'tiff', 'png'):
        many_frames(image, folder / f'animated_{suffix}.{suffix}')
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / 'float.tif')
    reasons = {
        'flat.png': '5000x3: test_pipeline fails',
        'empty.jpg': 'the file is empty', 'text.jpg': 'cannot be read as an image', 'folder.jpg': 'a folder',
        'truncated.jpg': 'truncated', 'huge.png': '65000x65000 are 4,225,000,000 pixels, more than the limit',
        'large.png': '30000x30000', 'float.tif': 'opencv cannot decode it',
    }  # fmt: skip
    reasons |= {f'animated_{kind}.{kind}': 'animated' for kind in ('gif', 'webp', 'tiff', 'png')}
    return {folder / name: why for name, why in reasons.items()}


def good_images(folder):
    """Unusual files that hold one image."""
    folder.mkdir()
    image = Image.fromarray(noise(48, 64))
    Image.fromarray(noise(3, 150)).save(folder / 'narrow.png')
    Image.new('RGB', (1, 1), (9, 99, 200)).save(folder / 'pixel.png')
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    Image.fromarray(noise(48, 64)[..., 0].astype(np.uint16) * 257).save(folder / 'deep.png')
    image.convert('L').save(folder / 'gray.png')
    image.convert('P').save(folder / 'palette.png')
    image.convert('RGBA').save(folder / 'alpha.png')
    image.save(folder / 'plain.gif')
    save_turned(image, folder / 'turned.jpg', 6)
    return sorted(folder.iterdir())


def test_bad_images_are_named_and_the_others_written(tmp_path, capfd):
    cfg, checkpoint = make_model(tmp_path)
    bad, good = bad_images(tmp_path / 'bad'), good_images(tmp_path / 'good')
    failed = segment_images(cfg, checkpoint, [*bad, *good], tmp_path / 'out')
    assert set(failed) == set(bad)
    for path, why in bad.items():
        assert why in failed[path], failed[path]
    assert {path.stem for path in (tmp_path / 'out/masks').iterdir()} == {path.stem for path in good}
    assert {path.stem for path in (tmp_path / 'out/overlays').iterdir()} == {path.stem for path in good}
    assert read(tmp_path / 'out/masks/narrow.png').shape == (3, 150)
    assert read(tmp_path / 'out/masks/pixel.png').shape == (1, 1)
    assert read(tmp_path / 'out/masks/turned.png').shape == (64, 48)
    assert read(tmp_path / 'out/overlays/turned.jpg').shape[0] > 64  # with a legend
    assert f'{tmp_path}/good/turned.jpg: EXIF orientation 6: image and mask are turned' in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_file_without_permission(tmp_path):
    cfg, checkpoint = make_model(tmp_path)
    Image.new('RGB', (8, 8)).save(tmp_path / 'secret.png')
    (tmp_path / 'secret.png').chmod(0)
    assert (
        'Permission denied'
        in segment_images(cfg, checkpoint, [tmp_path / 'secret.png'], tmp_path)[tmp_path / 'secret.png']
    )


def test_the_limit_of_pixels(tmp_path):
    cfg, checkpoint = make_model(tmp_path)
    Image.fromarray(noise(48, 64)).save(tmp_path / 'a.png')
    failed = segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path, max_pixels=48 * 64 - 1)
    assert '64x48 are 3,072 pixels, more than the limit of 3,071' in failed[tmp_path / 'a.png']
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path, max_pixels=48 * 64)


def test_a_mask_that_cannot_be_written_fails_alone(tmp_path):
    cfg, checkpoint = make_model(tmp_path)
    for name in ('a', 'b'):
        Image.fromarray(noise(48, 64)).save(tmp_path / f'{name}.png')
    (tmp_path / 'out/masks/a.png').mkdir(parents=True)
    failed = segment_images(cfg, checkpoint, [tmp_path / 'a.png', tmp_path / 'b.png'], tmp_path / 'out')
    assert list(failed) == [tmp_path / 'a.png']
    assert read(tmp_path / 'out/masks/b.png').shape == (48, 64)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
def test_small_images_are_predicted_by_mmseg(tmp_path, mode):
    slide = dict(mode='slide', crop_size=(64, 64), stride=(32, 32)) if mode == 'slide' else {}
    cfg, checkpoint = make_model(tmp_path, **slide)
    Image.fromarray(noise(100, 150)).save(tmp_path / 'a.png')
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path / 'out')
    stock = cfg.copy()
    stock.test_pipeline = [*PIPELINE[:2], PIPELINE[3]]
    expected = inference_model(init_model(stock, str(checkpoint), device='cpu'), str(tmp_path / 'a.png'))
    expected = expected.pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 2
    assert np.array_equal(read(tmp_path / 'out/masks/a.png'), expected)


@pytest.mark.parametrize('align_corners', [False, True])
def test_logits_resized_in_parts_are_those_of_mmseg(tmp_path, monkeypatch, align_corners):
    cfg, checkpoint = make_model(tmp_path)
    cfg.model.decode_head.align_corners = align_corners
    Image.fromarray(noise(300, 420)).save(tmp_path / 'a.png')
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path / 'whole')
    monkeypatch.setattr(prediction, 'MAX_LOGITS', 5 * 128 * 96)  # the input fits, the result does not
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path / 'parts')
    whole, parts = read(tmp_path / 'whole/masks/a.png'), read(tmp_path / 'parts/masks/a.png')
    assert len(np.unique(whole)) > 2
    assert (whole != parts).mean() < 1e-4  # ties


def test_tiles_cover_the_image_and_see_their_margin(tmp_path, monkeypatch):
    """A head that labels pixels by color gives the same mask in tiles."""
    pipeline = [PIPELINE[0], PIPELINE[3]]
    cfg, checkpoint = make_model(tmp_path, num_classes=2, pipeline=pipeline)
    image = noise(200, 260)
    Image.fromarray(image).save(tmp_path / 'a.png')
    seen = []

    def by_color(self, inputs, metas):
        seen.append(tuple(inputs.shape[-2:]))
        return torch.stack([-inputs[:, 0], inputs[:, 0]], 1)

    monkeypatch.setattr('mmseg.models.segmentors.EncoderDecoder.inference', by_color)
    for name, value in (('MAX_INPUT', 100 * 100), ('TILE', 64), ('MARGIN', 16)):
        monkeypatch.setattr(prediction, name, value)
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path)
    assert len(seen) == 4 * 5
    assert max(max(shape) for shape in seen) <= 64 + 2 * 16
    assert np.array_equal(read(tmp_path / 'masks/a.png'), (image[..., 0] > 127).astype(np.uint8))


CLASSES = ('Car', 'Sky', 'Road', 'Tree', 'Building')  # other ids than in CamVid's files


def dataset_cfg(folder, masks, classes, reduce_zero_label, pipeline=None):
    """The test data of a config: images in two subfolders, with the same names."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='CheckedLoadAnnotations', num_classes=5),
        dict(type='PackSegInputs'),
    ]
    kind = 'CamVidDataset' if classes is CLASSES else 'BaseSegDataset'
    return dict(
        type=kind, metainfo=dict(classes=classes), data_root=str(folder), img_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path=str(masks)), reduce_zero_label=reduce_zero_label,
        pipeline=steps if pipeline is None else pipeline,
    )  # fmt: skip


@pytest.fixture
def two_folders(tmp_path):
    for name, seed, size in (('a/0', 0, (64, 64)), ('b/0', 1, (64, 64)), ('b/1', 2, (48, 80))):
        path = tmp_path / f'images/{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*size, seed)).save(path)
    return tmp_path


@pytest.mark.parametrize('palette', [False, True])
@pytest.mark.parametrize('classes', [('0', '1', '2', '3', '4'), CLASSES], ids=['all classes', 'some classes'])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_the_dataset_of_the_config_reads_the_masks(two_folders, reduce_zero_label, classes, palette):
    cfg, checkpoint = make_model(two_folders)
    out = two_folders / 'out'
    cfg.test_dataloader = dict(dataset=dataset_cfg(two_folders, out / 'masks', classes, reduce_zero_label))
    assert not segment_images(cfg, checkpoint, find_images([two_folders / 'images']), out, palette=palette)
    stock = cfg.copy()
    stock.test_pipeline = [*PIPELINE[:2], PIPELINE[3]]
    model = init_model(stock, str(checkpoint), device='cpu')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    samples = {item['data_samples'].img_path: item['data_samples'] for item in dataset}
    for name in ('a/0', 'b/0', 'b/1'):
        path = str(two_folders / f'images/{name}.png')
        expected = inference_model(model, path).pred_sem_seg.data
        assert len(np.unique(expected)) > 2
        assert torch.equal(samples[path].gt_sem_seg.data.long(), expected), name
        assert not reduce_zero_label or np.asarray(Image.open(out / f'masks/{name}.png')).min() >= 1
    if palette:
        mask = Image.open(out / 'masks/a/0.png')
        shown, ids = np.asarray(mask.convert('RGB')), inference_model(model, str(two_folders / 'images/a/0.png'))
        colors = np.array(model.dataset_meta['palette'])
        assert np.array_equal(shown, colors[ids.pred_sem_seg.data[0].numpy()])


def test_the_checkpoint_tells_what_the_config_leaves_open(two_folders):
    """MiniScenes sets reduce_zero_label itself: the config does not name it."""
    cfg, checkpoint = make_model(two_folders)
    state = torch.load(checkpoint)
    state['meta']['dataset_meta'].update(reduce_zero_label=True, label_map=None)
    torch.save(state, checkpoint)
    images = [two_folders / 'images/a/0.png']
    for given, lowest in ((None, 1), (False, 0), (True, 1)):
        cfg.test_dataloader = dict(dataset=dict(type='MiniScenesDataset', reduce_zero_label=given))
        assert not segment_images(cfg, checkpoint, images, two_folders)
        assert np.unique(read(two_folders / 'masks/0.png')).min() == lowest


def test_batches_and_scores_are_those_of_single_images(two_folders, monkeypatch):
    cfg, checkpoint = make_model(two_folders)
    images = find_images([two_folders / 'images'])
    seen, whole = [], EncoderDecoder.encode_decode

    def count(self, inputs, metas):
        seen.append(len(inputs))
        return whole(self, inputs, metas)

    monkeypatch.setattr(EncoderDecoder, 'encode_decode', count)
    assert not segment_images(cfg, checkpoint, images, two_folders / 'single', scores=True)
    assert seen == [1, 1, 1]
    assert not segment_images(cfg, checkpoint, images, two_folders / 'batches', scores=True, batch_size=3)
    assert seen[3:] == [2, 1] or seen[3:] == [1, 2]
    monkeypatch.setattr(prediction, 'MAX_LOGITS', 5 * 128 * 96)
    monkeypatch.setattr(prediction, 'MAX_INPUT', 2000)
    assert not segment_images(cfg, checkpoint, images, two_folders / 'parts', scores=True)
    for name in ('a/0.png', 'b/0.png', 'b/1.png'):
        mask, scores = (read(two_folders / 'single' / kind / name) for kind in ('masks', 'scores'))
        for folder in ('batches', 'parts'):
            other = read(two_folders / folder / 'masks' / name)
            difference = np.abs(scores.astype(int) - read(two_folders / folder / 'scores' / name))
            if folder == 'batches':  # the tiles of the model's input see another image
                assert (mask != other).mean() < 1e-3
                assert difference.max() <= 1
            assert difference.shape == mask.shape
    stock = cfg.copy()
    stock.test_pipeline = [*PIPELINE[:2], PIPELINE[3]]
    model = init_model(stock, str(checkpoint), device='cpu')
    logits = inference_model(model, str(two_folders / 'images/b/1.png')).seg_logits.data
    expected = 255 * logits.softmax(0).amax(0).numpy()
    assert np.abs(read(two_folders / 'single/scores/b/1.png') - expected).max() <= 0.51


def test_an_image_that_fails_leaves_its_batch(two_folders, monkeypatch):
    cfg, checkpoint = make_model(two_folders)
    step = prediction.predict
    bad = str(two_folders / 'images/a/0.png')

    def fail(model, samples, with_scores=False):
        if any(sample['data_samples'].img_path == bad for sample in samples):
            raise RuntimeError('no memory')
        return step(model, samples, with_scores)

    monkeypatch.setattr(inference, 'predict', fail)
    failed = segment_images(cfg, checkpoint, find_images([two_folders / 'images']), two_folders / 'out', batch_size=2)
    assert failed == {two_folders / 'images/a/0.png': 'RuntimeError: no memory'}
    assert read(two_folders / 'out/masks/b/0.png') is not None


def test_names_in_several_folders(two_folders):
    folder = two_folders / 'images'
    names = find_images([folder / 'a', folder / 'b'])
    assert [str(name) for name in names.values()] == ['a/0.png', 'b/0.png', 'b/1.png']
    (folder / '.hidden').mkdir()
    Image.fromarray(noise(8, 8)).save(folder / '.hidden/2.png')
    assert [str(name) for name in find_images([folder]).values()] == ['a/0.png', 'b/0.png', 'b/1.png']
    names = find_images([folder], skip=folder / 'b')  # the folder of the results of an earlier run
    assert [str(name) for name in names.values()] == ['a/0.png']
    (folder / 'a/0.jpg').touch()
    with pytest.raises(ValueError, match=r'0\.jpg and .*0\.png: the masks of both would be a/0\.png'):
        find_images([folder])


def test_overlays_have_a_legend(two_folders):
    cfg, checkpoint = make_model(two_folders)
    images = [two_folders / 'images/b/1.png']
    assert not segment_images(cfg, checkpoint, images, two_folders / 'plain', legend=False)
    assert not segment_images(cfg, checkpoint, images, two_folders / 'legend')
    plain, legend = (read(two_folders / folder / 'overlays/1.jpg') for folder in ('plain', 'legend'))
    assert plain.shape == (48, 80, 3)
    assert legend.shape[0] > 48
    assert np.abs(legend[:40, :80].astype(int) - plain[:40]).max() < 40  # JPEG
