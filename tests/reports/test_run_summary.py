"""The lines before and after a training: what they say, and how many there are."""

from types import SimpleNamespace

import timm
from conftest import segmentor_cfg
from mmseg.registry import MODELS
from safetensors.torch import save_file

from mmseg_davpt.reports.run_summary import GroupRate, Progress, Validation, end_lines, start_lines
from mmseg_davpt.weights.formats import write_hash

CLASSES = [f'a class with a long name {index}' for index in range(150)]
RATES = [GroupRate('prompts', 5e-5, 5e-3, 1.3e-5), GroupRate('heads', 4e-3, 4e-3, 0.0)]
CFG = dict(work_dir='runs/one', default_hooks=dict(checkpoint=dict(max_keep_ckpts=2, save_best='mIoU')))


class _Dataset:
    data_root, metainfo = 'data/streets', dict(classes=CLASSES)

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


def lines(**progress):
    datasets = dict(training=_Dataset(367), validation=_Dataset(101))
    known = dict(done=0, total=300, per_epoch=92, validation_every=100, checkpoint_every=50) | progress
    return start_lines(CFG, MODELS.build(segmentor_cfg()), datasets, RATES, Progress(**known), 4)


def test_at_most_twelve_short_lines_even_with_150_classes():
    found = lines(done=50, source='runs/one/iter_50.pth')
    assert len(found) <= 12
    assert max(map(len, found)) <= 118


def test_every_part_is_said():
    text = '\n'.join(lines())
    for part in (
        '367 training, 101 validation images, 150 classes, crops of 64x64',
        'test_vit, 0.3 M parameters; weights: random',
        'prompts (18 prompts in 6 blocks); guided at block 5',
        '300 iterations = 3.26 epochs of 92 iterations, 4 images each',
        'prompts 5e-05 to 1.3e-05 (highest 0.005); heads 0.004 to 0',
        'Validation   every 100 iterations',
        'every 50 iterations (the newest 2 are kept), the last, the best mIoU',
        'Folder       runs/one',
    ):
        assert part in text, text
    assert 'continues after iteration 50, from a.pth' in '\n'.join(lines(done=50, source='a.pth'))
    assert 'Validation   none' in '\n'.join(lines(validation_every=None))


def test_it_says_whether_the_weights_were_checked(tmp_path):
    """The line that names the command may be longer by the path; with it, there are at most 12."""
    path = tmp_path / 'w.safetensors'
    save_file(timm.create_model('test_vit').state_dict(), path)
    cfg = segmentor_cfg(pretrained=str(path), allow_random=False)

    def found():
        model = MODELS.build(cfg)
        model.init_weights()
        known = Progress(50, 300, 92, 100, 50, source='runs/one/iter_50.pth')
        found = start_lines(CFG, model, dict(training=_Dataset(3), validation=_Dataset(1)), RATES, known, 4)
        assert len(found) <= 12
        assert max(len(line.replace(str(path), '')) for line in found) <= 118
        return found

    remedy = f'write one: python tools/get_weights.py --checksum {path}'
    assert f'Weights      Not checked: the file has no checksum; {remedy}' in found()
    write_hash(path)
    assert 'Weights      Checked: SHA-256 in w.safetensors.sha256' in found()


def test_a_stock_backbone_has_a_summary_too():
    model = SimpleNamespace(
        backbone=MODELS.build(dict(type='ResNetV1c', depth=18, num_stages=4, strides=(1, 2, 2, 2))),
        named_parameters=lambda: [],
    )
    text = '\n'.join(start_lines({}, model, dict(training=_Dataset(3)), [], Progress(0, 10, 3), 1))
    assert 'ResNetV1c' in text


def test_the_end_names_best_last_classes_and_the_next_command():
    validations = [
        Validation(100, dict(mIoU=41.0), dict(road=90.0, car=None)),
        Validation(200, dict(mIoU=40.0), dict(road=80.0, car=12.345)),
        Validation(300, {}, {}),
    ]
    found = end_lines(validations, 300, 'runs/a b', 'runs/a b/c.py', dict(best='best.pth', last='iter_300.pth'))
    assert 'Best mIoU 41.00 after iteration 100, last 40.00 after iteration 200' in found
    assert 'road      90.00     80.00' in found
    assert 'car           -     12.35' in found or 'car           -     12.34' in found
    assert "Next: python tools/test.py 'runs/a b/c.py' best.pth" in found


def test_the_end_without_validation():
    found = end_lines([], 10, 'run', 'c.py', dict(last='iter_10.pth'))
    assert found[0] == 'Training finished: 10 iterations.'
    assert 'Next: python tools/test.py c.py iter_10.pth' in found
