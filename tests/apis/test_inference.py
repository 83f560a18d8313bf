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
from mmseg.registry import MODELS
from PIL import Image

from mmseg_davpt.apis import inference, segment_images

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
    assert read(tmp_path / 'out/overlays/turned.jpg').shape == (64, 48, 3)
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
    monkeypatch.setattr(inference, 'MAX_LOGITS', 5 * 128 * 96)  # the input fits, the result does not
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path / 'parts')
    whole, parts = read(tmp_path / 'whole/masks/a.png'), read(tmp_path / 'parts/masks/a.png')
    assert len(np.unique(whole)) > 2
    assert (whole != parts).mean() < 1e-4  # ties


def test_tiles_cover_the_image_and_see_their_margin(tmp_path, monkeypatch):
    """A head that labels pixels by colour gives the same mask in tiles."""
    pipeline = [PIPELINE[0], PIPELINE[3]]
    cfg, checkpoint = make_model(tmp_path, num_classes=2, pipeline=pipeline)
    image = noise(200, 260)
    Image.fromarray(image).save(tmp_path / 'a.png')
    seen = []

    def by_colour(self, inputs, metas):
        seen.append(tuple(inputs.shape[-2:]))
        return torch.stack([-inputs[:, 0], inputs[:, 0]], 1)

    monkeypatch.setattr('mmseg.models.segmentors.EncoderDecoder.inference', by_colour)
    for name, value in (('MAX_INPUT', 100 * 100), ('TILE', 64), ('MARGIN', 16)):
        monkeypatch.setattr(inference, name, value)
    assert not segment_images(cfg, checkpoint, [tmp_path / 'a.png'], tmp_path)
    assert len(seen) == 4 * 5
    assert max(max(shape) for shape in seen) <= 64 + 2 * 16
    assert np.array_equal(read(tmp_path / 'masks/a.png'), (image[..., 0] > 127).astype(np.uint8))
