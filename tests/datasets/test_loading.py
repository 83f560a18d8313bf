"""Loaders that check: each fault with the names of image and mask; right files as the stock loaders read them."""

import warnings

import numpy as np
import pytest
from bad_images import chunk, encoded, huge_header, many_frames, png, save_turned, truncated_jpeg
from mmseg.registry import TRANSFORMS
from PIL import Image

from mmseg_davpt.datasets import loading
from mmseg_davpt.datasets.image_files import ImageFileError, check_file, read_header

DRAW = np.random.default_rng(0)
PHOTO = Image.fromarray(DRAW.integers(0, 256, (24, 32, 3), dtype=np.uint8))
IDS = DRAW.integers(0, 4, (24, 32), dtype=np.uint8)


@pytest.fixture
def files(tmp_path):
    """Paths of an image and its mask."""
    PHOTO.save(tmp_path / 'photo.jpg')
    Image.fromarray(IDS).save(tmp_path / 'mask.png')
    return tmp_path / 'photo.jpg', tmp_path / 'mask.png'


def load(files, image='CheckedLoadImageFromFile', reduced=False, label_map=None, **options):
    image_step = dict(image) if isinstance(image, dict) else dict(type=image)
    steps = [
        TRANSFORMS.build(image_step),
        TRANSFORMS.build(dict(type='CheckedLoadAnnotations', num_classes=4) | options),
    ]
    results = dict(
        img_path=str(files[0]),
        seg_map_path=str(files[1]),
        seg_fields=[],
        reduce_zero_label=reduced,
        label_map=label_map,
    )
    for step in steps:
        results = step(results)
    return results


def reason(files, **options):
    """Message of the error, which names both files."""
    with pytest.raises(ImageFileError) as error:
        load(files, **options)
    assert str(files[0]) in str(error.value)
    return str(error.value)


def mask_reason(files, data, **options):
    files[1].write_bytes(data)
    text = reason(files, **options)
    assert str(files[1]) in text
    return text


@pytest.mark.parametrize('image', ['CheckedLoadImageFromFile', 'LoadImageFromFile'])
def test_right_files_are_read_as_ever(files, image):
    results = load(files, image)
    stock = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(files[0])))
    assert np.array_equal(results['img'], stock['img'])
    assert np.array_equal(results['gt_seg_map'], IDS)
    assert results['gt_seg_map'].dtype == np.uint8


def test_stock_options_act(files):
    assert np.array_equal(load(files, reduced=True)['gt_seg_map'], np.where(IDS == 0, 255, IDS - 1))
    mapped = load(files, label_map={0: 1, 1: 0, 2: 255, 3: 255}, num_classes=2)['gt_seg_map']
    assert np.array_equal(mapped, np.array([1, 0, 255, 255], np.uint8)[IDS])
    assert 'Initialize dataset with' in reason(files, reduced=True, reduce_zero_label=False)


class TestImages:
    def test_damage(self, files):
        for data, why in (
            (b'', 'the file is empty'), (b'text', 'cannot be read'), (truncated_jpeg(PHOTO), 'truncated'),
            (encoded(PHOTO, 'JPEG')[:-200] + bytes(200), 'ends with zeros'), (huge_header(65000, 65000), '65000x65000'),
            (encoded(PHOTO, 'WEBP')[:-300], 'damaged'), (encoded(PHOTO, 'BMP')[:-300], 'truncated'),
        ):  # fmt: skip
            files[0].write_bytes(data)
            assert f'image {files[0]}: ' in reason(files)
            assert why in reason(files)
        files[0].unlink()
        assert 'No such file' in reason(files)

    @pytest.mark.parametrize('image', ['CheckedLoadImageFromFile', 'LoadImageFromFile'])
    def test_animation(self, files, image):
        """The stock loader takes the first picture; then the loader of the mask refuses the file."""
        many_frames(PHOTO, files[0].with_suffix('.gif'))
        assert 'animated' in reason((files[0].with_suffix('.gif'), files[1]), image=image)

    def test_limit_of_pixels(self, files):
        assert '32x24 are 768 pixels' in reason(files, image=dict(type='CheckedLoadImageFromFile', max_pixels=767))
        load(files, image=dict(type='CheckedLoadImageFromFile', max_pixels=768))

    def test_ignore_empty(self, files):
        files[0].write_bytes(b'')
        step = TRANSFORMS.build(dict(type='CheckedLoadImageFromFile', ignore_empty=True))
        assert step(dict(img_path=str(files[0]))) is None

    def test_a_page_that_is_a_smaller_copy_is_no_second_image(self, files):
        path = files[0].with_suffix('.tif')
        small = PHOTO.resize((8, 6))
        small.encoderinfo = dict(tiffinfo={254: 1})
        PHOTO.save(path, save_all=True, append_images=[small])
        with Image.open(path) as image:
            assert image.n_frames == 2
        load((path, files[1]))


class TestMasks:
    def test_damage(self, files):
        data = encoded(Image.fromarray(IDS))
        assert 'the file is empty' in mask_reason(files, b'')
        assert 'truncated' in mask_reason(files, data[:-30])
        assert "the checksum of chunk b'IDAT'" in mask_reason(files, data[:60] + bytes([data[60] ^ 4]) + data[61:])
        files[1].unlink()
        assert 'No such file' in reason(files)

    def test_every_flipped_bit_of_a_png_is_found(self, files):
        data = encoded(Image.fromarray(IDS))
        for place in range(len(data)):
            flipped = data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
            try:
                header = check_file(flipped)
            except ImageFileError:
                continue
            assert header is None, place  # the signature: no PNG any more, and the reader fails
            mask_reason(files, flipped)

    def test_no_ids(self, files):
        colors = Image.fromarray(np.stack([IDS] * 3, -1))
        assert 'colors (RGB) instead of one id per pixel' in mask_reason(files, encoded(colors))
        assert 'colors (RGBA)' in mask_reason(files, encoded(colors.convert('RGBA')))
        assert 'a JPEG: its compression changes ids' in mask_reason(files, encoded(Image.fromarray(IDS), 'JPEG'))
        assert 'pixels are float' in mask_reason(files, encoded(Image.fromarray(IDS.astype(np.float32)), 'TIFF'))

    def test_ids_of_no_class(self, files):
        text = mask_reason(files, encoded(Image.fromarray(np.where(IDS == 3, 77, IDS).astype(np.uint8))))
        assert 'id 77 (after reduce_zero_label=False) in' in text
        assert 'there are 4 classes: 0 to 3, 255 = ignored' in text
        load(files, num_classes=78)
        load(files, num_classes=None)
        wide = IDS.astype(np.uint16)
        load((files[0], save(wide, files[1])))
        wide[5, 5] = 257  # the stock loader reads 1
        assert '257 in 1 pixels does not fit into 8 bits' in mask_reason(files, encoded(Image.fromarray(wide)))

    def test_gray_values_that_decoders_scale(self, files):
        """In a gray PNG of 2 bits, decoders read id 1 as 85 and id 3 as 255."""
        packed = (IDS.reshape(24, 8, 4) << np.array([6, 4, 2, 0], np.uint8)).sum(2, dtype=np.uint8)
        rows = b''.join(b'\0' + row.tobytes() for row in packed)
        assert 'gray PNG of 2 bits' in mask_reason(files, png(32, 24, rows, bits=2))
        one = Image.fromarray(IDS > 1)
        assert set(np.unique(load((files[0], save(one, files[1])))['gt_seg_map'])) == {0, 1}
        assert '1 bit a pixel, which cv2 reads as 0 and 255' in reason(files, imdecode_backend='cv2')

    def test_one_pixel(self, files):
        """The stock loader drops sides of one pixel."""
        for shape in ((1, 1), (1, 9), (9, 1)):
            Image.fromarray(DRAW.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(files[0])
            save(np.ones(shape, np.uint8), files[1])
            assert load(files)['gt_seg_map'].shape == shape

    def test_palette(self, files):
        image = Image.fromarray(IDS).convert('L')
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9] + [0] * 756)
        assert np.array_equal(load((files[0], save(image, files[1])))['gt_seg_map'], IDS)
        assert 'channels instead of one id' in reason(files, imdecode_backend='cv2')

    def test_samples_of_no_dataset_pass(self):
        results = dict(img=np.zeros((2, 2, 3)))
        assert TRANSFORMS.build(dict(type='CheckedLoadAnnotations'))(results) is results

    def test_a_dataset_without_masks(self, files):
        step = TRANSFORMS.build(dict(type='CheckedLoadAnnotations'))
        with pytest.raises(ImageFileError, match='names no mask'):
            step(dict(img_path=str(files[0]), seg_fields=[]))


def save(image, path):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


class TestOrientation:
    """A mask belongs to the image as it is read."""

    @pytest.fixture(autouse=True)
    def forget(self, monkeypatch):
        monkeypatch.setattr(loading, '_warned', set())

    @pytest.mark.parametrize('kind', ['jpg', 'png', 'webp'])
    @pytest.mark.parametrize('orientation', range(1, 9))
    def test_every_orientation(self, files, kind, orientation):
        path = files[0].with_suffix(f'.{kind}')
        save_turned(PHOTO, path, orientation)
        assert read_header(path).orientation == orientation
        shape = (32, 24) if orientation >= 5 else (24, 32)
        save(np.zeros(shape, np.uint8), files[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for _ in range(2):
                assert load((path, files[1]))['gt_seg_map'].shape == shape
        texts = [str(entry.message) for entry in caught if 'EXIF orientation' in str(entry.message)]
        assert len(texts) == (orientation != 1)
        assert all(f'{path}: EXIF orientation {orientation}: the image is turned' in text for text in texts)
        save(np.zeros(shape[::-1], np.uint8), files[1])
        text = reason((path, files[1]))
        assert (f'EXIF orientation {orientation} turns the image' in text) == (orientation >= 5)
        assert f'image {shape[1]}x{shape[0]}, mask {shape[0]}x{shape[1]}' in text

    def test_a_reader_that_turns_nothing(self, files):
        save_turned(PHOTO, files[0], 6)
        load(files, image=dict(type='CheckedLoadImageFromFile', color_type='color_ignore_orientation'))

    def test_a_tag_without_meaning(self, files):
        save_turned(PHOTO, files[0], 77)
        load(files)
        assert read_header(files[0]).orientation == 1

    def test_a_tag_at_the_end_of_a_png(self, files):
        data, exif = encoded(PHOTO), Image.Exif()
        exif[0x0112] = 6
        path = files[0].with_suffix('.png')
        path.write_bytes(data[:-12] + chunk(b'eXIf', exif.tobytes().removeprefix(b'Exif\0\0')) + data[-12:])
        shape = load_image(path).shape[:2]
        assert check_file(path.read_bytes()).orientation == 6
        save(np.zeros(shape, np.uint8), files[1])
        load((path, files[1]))


def load_image(path):
    return TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))['img']
