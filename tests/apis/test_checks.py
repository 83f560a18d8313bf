"""Checks of a config before anything is built: its schedule and its class names."""

import pytest
from conftest import ROOT
from mmengine.config import Config, ConfigDict

from mmseg_davpt.apis.checks import check_classes, check_schedule

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


def poly(**options):
    return dict(type='PolyLR', eta_min=0.0, begin=0, end=100, by_epoch=False) | options


def config(*parts, **loop):
    return ConfigDict(param_scheduler=list(parts), train_cfg=dict(type='IterBasedTrainLoop', max_iters=200) | loop)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_pass(path):
    cfg = Config.fromfile(path)
    check_schedule(cfg)
    check_classes(cfg)


class TestSchedule:
    @pytest.mark.parametrize(
        'part', [poly(), poly(type='CosineAnnealingLR'), dict(poly(), type='LinearLR', end_factor=0.0)]
    )
    def test_that_ends_at_zero_before_the_training(self, part):
        with pytest.raises(ValueError, match=r'param_scheduler\[0\]\.end=100, train_cfg\.max_iters=200: .* is 0'):
            check_schedule(config(part))

    def test_names_the_last_part(self):
        warmup = dict(type='LinearLR', start_factor=0.1, begin=0, end=10, by_epoch=False)
        with pytest.raises(ValueError, match=r'--cfg-options param_scheduler\.1\.end=200'):
            check_schedule(config(warmup, poly(begin=10)))

    @pytest.mark.parametrize(
        'part',
        [
            poly(end=200),
            poly(end=300),
            poly(eta_min=1e-5),
            dict(type='MultiStepLR', milestones=[50], end=100, by_epoch=False),
            dict(type='LinearLR', start_factor=0.1, end=100, by_epoch=False),
        ],
    )
    def test_that_goes_on(self, part):
        check_schedule(config(part))
        check_schedule(ConfigDict(config(part), param_scheduler=part))

    def test_a_later_part_takes_over(self):
        check_schedule(config(poly(), poly(begin=100, end=200)))

    def test_counts_epochs_in_a_loop_of_iterations(self):
        part = poly()
        del part['by_epoch']
        with pytest.raises(ValueError, match=r'param_scheduler\[0\]\.by_epoch=False'):
            check_schedule(config(part))

    def test_epochs(self):
        loop = dict(type='EpochBasedTrainLoop', max_epochs=20)
        with pytest.raises(ValueError, match='max_epochs=20'):
            check_schedule(config(poly(end=10, by_epoch=True), **loop))
        check_schedule(config(poly(end=20, by_epoch=True), **loop))

    def test_no_schedule(self):
        check_schedule(config())
        check_schedule(ConfigDict())
        check_schedule(ConfigDict(train_cfg=None, param_scheduler=None))


class TestClasses:
    def check(self, classes):
        check_classes(ConfigDict(train_dataloader=dict(dataset=dict(metainfo=dict(classes=classes)))))

    @pytest.mark.parametrize('classes', ['road', '', 5, (), ('road', 'road'), ('road', 1), ('road', '')])
    def test_refused(self, classes):
        with pytest.raises(ValueError, match=r'train_dataloader\.dataset\.metainfo\.classes='):
            self.check(classes)

    def test_accepted(self, tmp_path):
        self.check(('background', 'road'))
        self.check(['background', 'road'])
        (tmp_path / 'classes.txt').write_text('background\nroad\n')
        self.check(str(tmp_path / 'classes.txt'))

    def test_inside_of_a_wrapper(self):
        inner = dict(type='BaseSegDataset', metainfo=dict(classes='road'))
        dataset = dict(type='RepeatDataset', times=2, dataset=inner)
        with pytest.raises(ValueError, match='test_dataloader'):
            check_classes(ConfigDict(test_dataloader=dict(dataset=dataset)))
