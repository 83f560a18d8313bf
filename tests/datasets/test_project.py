"""From a folder of images and one of masks to a config: what is read, chosen and written."""

import re
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import SHARED, run
from layouts import IGNORED, LAYOUTS, make_layout, real_pairs, synthetic_pairs
from mmengine.dataset import Compose
from mmseg.registry import DATASETS
from PIL import Image

from mmseg_davpt.apis import load_config
from mmseg_davpt.apis.checks import check_config
from mmseg_davpt.apis.project import init_project
from mmseg_davpt.datasets.miniscenes.scenes import paint_scene
from mmseg_davpt.datasets.project import (
    Machine,
    PairingError,
    class_weights,
    make_plan,
    pair_files,
    read_classes,
    read_labels,
    scan_data,
    split_pairs,
)
from mmseg_davpt.datasets.project.plan import GIB

CPU = Machine('cpu', 8 * GIB, 2)


def check_layout(function, root, pairs):
    """Every image of the written config gives the expected ids; every image is used once."""
    layout = make_layout(function, root, pairs)
    classes = None
    if layout.classes:
        classes = root / 'classes.txt'
        classes.write_text('\n'.join(layout.classes), encoding='utf-8')
    out = root / 'my_project.py'
    project = init_project(layout.images, layout.masks, out, 'trunk.safetensors', classes, layout.ignored, CPU)
    cfg = load_config(out)
    check_config(cfg)
    seen = {}
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        dataset = DATASETS.build({**loader.dataset, 'pipeline': []})
        load = Compose([step for step in loader.dataset.pipeline if 'Annotations' in step.type])
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            assert info['img_path'] not in seen, 'an image is in two parts'
            seen[info['img_path']] = load(info)['gt_seg_map']
            assert (loader is cfg.val_dataloader) == (info['img_path'] in layout.val) or not layout.val
    assert seen.keys() == layout.expected.keys()
    for path, ids in layout.expected.items():
        assert np.array_equal(seen[path], ids), path
    assert (out.with_suffix('') / 'masks').exists() is not layout.in_place
    number = 1 + max(int(ids[ids != IGNORED].max()) for ids in layout.expected.values())
    assert len(cfg.classes) == cfg.model.decode_head.num_classes == cfg.model.guidance.num_classes == number
    assert len(project.train) + len(project.val) == len(layout.expected)
    return cfg


@pytest.mark.parametrize('function', LAYOUTS, ids=lambda function: function.__name__)
def test_layout(function, tmp_path):
    check_layout(function, tmp_path, synthetic_pairs())


@pytest.mark.parametrize('name', ['camvid', 'ccp'])
@pytest.mark.parametrize('function', LAYOUTS, ids=lambda function: function.__name__)
def test_layout_of_real_images(name, function, tmp_path):
    if not (SHARED / 'data' / name).is_dir():
        pytest.skip(f'{name} is not beside the project')
    check_layout(function, tmp_path, real_pairs(SHARED / 'data' / name, 8))


def write_masks(root, *masks):
    """Images and masks of the given arrays."""
    for index, mask in enumerate(masks):
        for folder, picture in (('a', Image.new('RGB', mask.shape[1::-1])), ('b', Image.fromarray(mask))):
            (root / folder).mkdir(exist_ok=True)
            picture.save(root / folder / f'{index}.png')
    return root / 'a', root / 'b'


def ids(*values):
    return np.array([values] * 2, np.uint8)


class TestLabels:
    def labels(self, root, *masks, names=(), colors=(), ignored=()):
        return read_labels(scan_data(*write_masks(root, *masks)), names, colors, ignored)

    @pytest.mark.parametrize(
        ('values', 'names', 'table', 'reduce', 'rewrite'),
        [
            ((0, 1, 2), '', {0: 0, 1: 1, 2: 2}, False, False),
            ((0, 1, 255), '', {0: 0, 1: 1, 255: 255}, False, False),
            ((1, 2, 3), '', {1: 0, 2: 1, 3: 2}, True, False),
            ((0, 2), 'abc', {0: 0, 2: 2}, False, False),  # b is in no mask
            ((0, 1, 2, 255), 'ab', {0: 255, 1: 0, 2: 1, 255: 255}, True, False),
            ((0, 255), '', {0: 0, 255: 1}, False, True),
            ((0, 127, 255), '', {0: 0, 127: 1, 255: 2}, False, True),
            ((0, 127, 255), 'ab', {0: 0, 127: 1, 255: 255}, False, True),  # the names say that 255 is no class
            ((0, 4, 5), '', {0: 0, 4: 1, 5: 2}, False, True),
            ((7, 8, 11), 'abc', {7: 0, 8: 1, 11: 2}, False, True),
            ((0, 7, 8, 11), 'abc', {0: 255, 7: 0, 8: 1, 11: 2}, False, True),
        ],
    )
    def test_ids(self, tmp_path, values, names, table, reduce, rewrite):
        labels = self.labels(tmp_path, ids(*values), ids(*values), names=tuple(names))
        assert labels.table == table
        assert (labels.reduce_zero_label, bool(labels.rewrite)) == (reduce, rewrite)

    def test_more_ids_than_names(self, tmp_path):
        with pytest.raises(ValueError, match=r'2 classes are named, but the masks hold 4 ids: 0, 1, 2, 3\. .*--ignore'):
            self.labels(tmp_path, ids(0, 1, 2, 3), ids(0), names=('a', 'b'))

    def test_one_class_is_none(self, tmp_path):
        with pytest.raises(ValueError, match='1 classes; expected 2 to 255'):
            self.labels(tmp_path, ids(0, 0), ids(0))

    def test_names_without_their_colors(self, tmp_path):
        colors = np.array([[[255, 0, 0], [0, 0, 9]]], np.uint8)
        with pytest.raises(ValueError, match=r'name R G B\)\. Found: 0 0 9, 255 0 0'):
            self.labels(tmp_path, colors, colors, names=('a', 'b'))

    def test_photographs_as_masks(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        with pytest.raises(ValueError, match='colors, too many for classes'):
            self.labels(tmp_path, noise, noise)

    def test_file_of_classes(self, tmp_path):
        path = tmp_path / 'classes.txt'
        path.write_text('\ufeff# name, color\ncar 10 0 0\n\n0,20,0,tall tree\nsky: #0000ff\n', encoding='utf-8')
        assert read_classes(path) == (('car', 'tall tree', 'sky'), ((10, 0, 0), (0, 20, 0), (0, 0, 255)))
        path.write_text('lane 2\nroad\n')
        assert read_classes(path) == (('lane 2', 'road'), ())
        for text, message in (('a 1 2 3\nb', '1 of 2 lines'), ('a\na', 'different names'), ('', 'found none')):
            path.write_text(text)
            with pytest.raises(ValueError, match=message):
                read_classes(path)


class TestFaults:
    def test_no_names_fit(self, tmp_path):
        images, masks = write_masks(tmp_path, ids(0, 1), ids(0, 1))
        for index, path in enumerate(sorted(masks.iterdir())):
            path.rename(masks / f'{"xy"[index]}.png')
        with pytest.raises(PairingError, match=r'0 of 2 images .* First image: .*a/0\.png, first mask: .*b/x\.png'):
            pair_files(images, masks)

    def test_images_without_mask_are_left_out(self, tmp_path):
        images, masks = write_masks(tmp_path, *[ids(0, 1)] * 4)
        (masks / '2.png').unlink()
        summary = scan_data(images, masks)
        assert [pair.image.stem for pair in summary.pairs] == ['0', '1', '3']
        assert summary.left_out == {images / '2.png': 'no mask of this name'}

    @pytest.mark.parametrize(
        ('fault', 'message'), [('size', 'image 2x2, mask 3x2'), ('jpeg', 'a JPEG'), ('cut', 'truncated')]
    )
    def test_bad_masks_are_named(self, tmp_path, fault, message):
        images, masks = write_masks(tmp_path, ids(0, 1), ids(0, 1), ids(0, 1))
        path = masks / '1.png'
        if fault == 'size':
            Image.fromarray(ids(0, 1, 1)).save(path)
        elif fault == 'jpeg':
            Image.fromarray(ids(0, 1)).save(path, format='JPEG')
        else:
            path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(ValueError, match=rf'2 of 3 pairs can be used(.|\n)*1\.png: .*{message}'):
            scan_data(images, masks)

    def test_an_edited_config_is_kept(self, tmp_path):
        images, masks = write_masks(tmp_path, ids(0, 1), ids(0, 1))
        (tmp_path / 'mine.py').write_text('# edited')
        with pytest.raises(FileExistsError, match=r'mine\.py exists and may hold your changes'):
            init_project(images, masks, tmp_path / 'mine.py', 'w')


def test_split_has_every_class(tmp_path):
    """Also classes of 3 images among 40; a class of a single image is for training."""
    masks = [ids(0, *[label for label, every in ((1, 2), (2, 14)) if index % every == 0]) for index in range(40)]
    masks[7] = ids(0, 3)
    summary = scan_data(*write_masks(tmp_path, *masks))
    table = {value: value for value in range(4)}
    train, val, _ = split_pairs(summary.pairs, table)
    assert not {pair.image for pair in train} & {pair.image for pair in val}
    counts = [Counter(value for pair in part for value in pair.pixels) for part in (train, val)]
    assert [sum(part.values()) and part[2] for part in counts] == [2, 1]
    assert [part[3] for part in counts] == [1, 0]
    assert len(val) == counts[1][0] == pytest.approx(8, abs=1)
    assert counts[1][1] == pytest.approx(4, abs=1)
    assert split_pairs(summary.pairs, table) == (train, val, _)


class TestWeights:
    def test_by_hand(self, tmp_path):
        """9 pixels of one class, 4 of another, 36 ignored; the third class is in no mask."""
        mask = np.array([0] * 9 + [1] * 4 + [255] * 36, np.uint8)[None]
        summary = scan_data(*write_masks(tmp_path, mask, mask))
        labels = read_labels(summary, ('a', 'b', 'c'), ())
        mean = (9 * 1 / 3 + 4 * 1 / 2) / 13  # of 1 / sqrt(count) over the pixels
        assert class_weights(summary.pairs, labels) == [round(1 / 3 / mean, 2), round(1 / 2 / mean, 2), 1.0]

    def test_weights_of_very_rare_classes_are_bounded(self, tmp_path):
        mask = np.zeros((200, 200), np.uint8)
        mask[0, 0] = 1
        summary = scan_data(*write_masks(tmp_path, mask, mask))
        assert class_weights(summary.pairs, read_labels(summary, (), ())) == [1.0, 10.0]

    @pytest.mark.slow
    def test_of_make_train(self):
        """The config of ``make train`` holds the weights of its training images."""
        counts = np.sum(
            [np.bincount(paint_scene((0, 0, index))[1].ravel(), minlength=17)[1:] for index in range(240)], 0
        )
        weights = 1 / np.sqrt(counts)
        cfg = load_config('mmseg_davpt::davpt_upernet_miniscenes.py')
        assert cfg.class_weight == pytest.approx(weights * counts.sum() / (weights * counts).sum(), abs=0.006)
        assert cfg.model.decode_head.loss_decode.class_weight == cfg.class_weight


class TestPlan:
    @pytest.fixture(scope='class')
    def summary(self, tmp_path_factory):
        """1280x720."""
        mask = np.zeros((720, 1280), np.uint8)
        mask[:9] = 1
        return scan_data(*write_masks(tmp_path_factory.mktemp('plan'), mask, mask))

    def test_small_sets_train_longer_per_image(self, summary):
        numbers = (10, 100, 1000, 10000, 100000)
        for machine, low, high in ((CPU, 200, 4000), (Machine('cuda', 24 * GIB, 8), 500, 40000)):
            plans = [make_plan(summary, number, machine) for number in numbers]
            iterations = [plan.max_iters.value for plan in plans]
            epochs = [i * plan.batch_size.value / n for i, plan, n in zip(iterations, plans, numbers)]
            assert iterations == sorted(iterations) and epochs == sorted(epochs, reverse=True)
            assert iterations[0] >= low and high / 2 < iterations[-1] <= high
            assert all(plan.warmup.value < plan.interval.value <= plan.max_iters.value // 2 for plan in plans)

    def test_memory_bounds_the_batch(self, summary):
        sizes = [make_plan(summary, 100, Machine('cuda', memory * GIB, 8)).batch_size.value for memory in (2, 8, 24)]
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 16

    def test_sizes(self, summary):
        cpu, gpu = make_plan(summary, 100, CPU), make_plan(summary, 100, Machine('cuda', 24 * GIB, 8))
        assert cpu.scale.value == (853, 480) and gpu.scale.value == (1138, 640)
        assert (cpu.crop.value, gpu.crop.value) == (224, 518)
        assert cpu.test.value == 'slide'  # 853x480 has 8 times the pixels of a crop
        assert all(choice.reason for choice in vars(cpu).values())
        assert (cpu.dtype.value, gpu.dtype.value) == ('auto', 'float32')

    def test_make_train_shows_what_a_project_gets(self, scenes):
        """The config of ``make train`` has the settings that are chosen for its images on two CPU cores."""
        data = scenes / 'seed0'
        plan = make_plan(scan_data(data / 'images', data / 'annotations'), 240, CPU)
        cfg = load_config('mmseg_davpt::davpt_upernet_miniscenes.py')
        resize, crop = cfg.train_dataloader.dataset.pipeline[3:5]
        warmup, decay = cfg.param_scheduler
        found = dict(
            scale=resize.scale,
            ratio_range=resize.ratio_range,
            crop=crop.crop_size[0],
            batch_size=cfg.train_dataloader.batch_size,
            max_iters=cfg.train_cfg.max_iters,
            warmup=warmup.end,
            lr=cfg.optim_wrapper.optimizer.lr,
            dtype=cfg.optim_wrapper.dtype,
            interval=cfg.train_cfg.val_interval,
            test=cfg.model.test_cfg.mode,
            workers=cfg.train_dataloader.num_workers,
        )
        assert found == {name: choice.value for name, choice in vars(plan).items()}
        assert cfg.test_dataloader.dataset.pipeline[1].scale == resize.scale
        assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
        assert crop.crop_size == cfg.model.data_preprocessor.size == (plan.crop.value,) * 2
        assert decay.begin == warmup.end


def test_the_schedule_follows_max_iters(tmp_path):
    """Of the written config, and of the short recipe; the long ones keep their numbers."""
    images, masks = write_masks(tmp_path, *[ids(0, 1)] * 4)
    out = tmp_path / 'mine.py'
    init_project(images, masks, out, 'trunk.safetensors', machine=CPU)
    for path in (out, 'mmseg_davpt::davpt_upernet_miniscenes.py'):
        for length in (7, 1234):
            cfg = load_config(path, {'train_cfg.max_iters': length})
            assert max(length, cfg.param_scheduler[-1].begin + 1) == cfg.param_scheduler[-1].end
    assert load_config('mmseg_davpt::davpt_upernet_ade20k.py').param_scheduler[-1].end == 160000
    assert load_config('mmseg_davpt::davpt_upernet_miniscenes.py').param_scheduler[-1].end == 500


TINY = """
_base_ = 'my_project.py'
model = dict(
    backbone=dict(arch='test_vit', pretrained=False, allow_random=True, out_indices=(1, 2, 3, 5),
                  prompts=dict(num=3)),
    neck=dict(embed_dim=64), decode_head=dict(in_channels=[64] * 4, channels=8))
train_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0)
val_dataloader = dict(num_workers=0, persistent_workers=False, timeout=0)
"""
COMMANDS = f"""
from pathlib import Path
from mmseg_davpt.apis import project
from mmseg_davpt.apis.commands import main
from mmseg_davpt.weights import fetch
fetch.fetch_weights = lambda arch, out, file: f'{{file}} as {{out}}'
project.STEPS = 3
main(['init', 'a', 'b', '--classes', 'classes.txt', '--weights', 'mine.pth', '--no-probe'])
Path('tiny.py').write_text({TINY!r})
print(project.probe_training(Path('tiny.py')))
main(['train', 'tiny.py', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2'])
main(['infer', 'tiny.py', 'work_dirs/tiny/iter_2.pth', 'a/1.jpg', '--out', 'found'])
"""


@pytest.mark.slow
def test_three_commands(tmp_path):
    """init, train and infer, in one process; the trunk is tiny, and its weights are not fetched."""
    layout = make_layout(LAYOUTS[5], tmp_path, synthetic_pairs(6))
    (tmp_path / 'classes.txt').write_text('\n'.join(layout.classes))
    printed = run(sys.executable, '-c', COMMANDS, cwd=tmp_path)
    assert 'weights     weights/vit_small_patch14_dinov2.safetensors, from mine.pth as weights/vit_small' in printed
    assert re.search(r'images +5 training, 1 validation', printed)
    assert re.search(r'#07fa29 +1 +\d+\.\d+% +5 +1  thing 1', printed)
    assert re.search(r'Probe\(step=\d+\.\d+, image=\d+\.\d+, memory=\d{8,}\)', printed)
    assert re.search(r'thing 3 +\|', printed), 'validated with IoU per class'
    assert Image.open(tmp_path / 'found/masks/1.png').size == (48, 40)
    assert list((tmp_path / 'work_dirs/tiny').glob('best_mIoU_*.pth'))
