"""Generated scenes, repeatable draws, and data that is not there."""

import random
import warnings

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, tool
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.datasets import MultiImageMixDataset
from mmseg.registry import DATASETS
from torch.utils.data import DataLoader, Subset

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets import (
    ReplayableSampler,
    SeedPerDraw,
    check_data_roots,
    check_sampler,
    images_per_pass,
    make_miniscenes,
)
from mmseg_davpt.datasets.miniscenes import dataset as module
from mmseg_davpt.datasets.miniscenes.canvas import CLASSES
from mmseg_davpt.datasets.miniscenes.scenes import paint_scene
from mmseg_davpt.datasets.sampling import Draw

CAMVID = ROOT / 'configs/davpt-residual_vit-s14_upernet_300it_camvid-210x280.py'


def test_scenes_are_deterministic_and_differ():
    image, mask = paint_scene((0, 0, 3))
    again = paint_scene((0, 0, 3))
    assert np.array_equal(image, again[0])
    assert np.array_equal(mask, again[1])
    assert not np.array_equal(image, paint_scene((1, 0, 3))[0])
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((240, 320, 3), np.uint8, (240, 320), np.uint8)


def test_scenes_hold_every_class_some_of_them_rare():
    counts = sum(np.bincount(paint_scene((0, 0, i))[1].ravel(), minlength=len(CLASSES) + 1) for i in range(40))
    assert len(counts) == len(CLASSES) + 1  # no id beyond the classes
    shares = counts / counts.sum()
    assert (shares > 0).all()  # every class, and void pixels
    assert shares[1:].max() > 0.1
    assert (shares[1:] < 0.005).sum() >= 2


def test_dataset_has_ade20k_layout(scenes):
    for split, number in (('training', 8), ('validation', 3)):
        dataset = DATASETS.build(
            dict(
                type='MiniScenesDataset',
                data_root=str(scenes),
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)],
            )
        )
        assert len(dataset) == number
        labels = np.unique(np.concatenate([dataset[i]['gt_seg_map'].ravel() for i in range(number)]))
        assert set(labels) <= {*range(len(CLASSES)), 255}
        assert 255 in labels
    raw = cv2.imread(str(next((scenes / 'seed0/annotations/training').iterdir())), cv2.IMREAD_UNCHANGED)
    assert 0 in raw  # as in ADE20K: 0 is unlabeled


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    """A dataset is either whole or not there."""

    def fail(job):
        raise KeyboardInterrupt

    class Pool:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, function, jobs):
            yield function(jobs[0])
            fail(jobs[1])

    monkeypatch.setattr(module, 'ThreadPoolExecutor', Pool)
    with pytest.raises(KeyboardInterrupt):
        make_miniscenes(tmp_path / 'seed0', splits={'training': 2})
    assert list(tmp_path.iterdir()) == []


def test_existing_dataset_is_kept(scenes):
    before = sorted(path.stat().st_mtime_ns for path in scenes.rglob('*.png'))
    make_miniscenes(scenes / 'seed0')
    assert before == sorted(path.stat().st_mtime_ns for path in scenes.rglob('*.png'))


class TestDraws:
    def draws(self, number, **options):
        sampler = ReplayableSampler(range(7), seed=3, **options)
        iterator = iter(sampler)
        return [next(iterator) for _ in range(number)]

    def test_each_pass_shows_every_sample_in_another_order(self):
        draws = self.draws(14)
        assert sorted(draws[:7]) == sorted(draws[7:]) == list(range(7))
        assert draws[:7] != draws[7:]
        assert [draw.number for draw in draws] == list(range(14))

    def test_skipping_goes_on_where_it_was(self):
        sampler = ReplayableSampler(range(7), seed=3)
        sampler.skip(9)
        iterator = iter(sampler)
        rest = [next(iterator) for _ in range(5)]
        expected = self.draws(14)[9:]
        assert rest == expected
        assert [draw.number for draw in rest] == [draw.number for draw in expected]

    def test_ranks_share_the_draws(self, monkeypatch):
        every = self.draws(12)
        for rank in range(2):
            monkeypatch.setattr('mmseg_davpt.datasets.sampling.get_dist_info', lambda rank=rank: (rank, 2))
            assert [d.number for d in self.draws(6)] == [d.number for d in every[rank::2]]

    def test_augmentation_depends_on_the_draw_alone(self):
        def augment(draw):
            SeedPerDraw().transform(dict(sample_idx=draw))
            return np.random.rand()

        assert augment(Draw(3, 5, 0)) == augment(Draw(3, 5, 0))
        assert len({augment(Draw(3, number, seed)) for number in range(3) for seed in range(3)}) == 9
        np.random.seed(0)
        first = augment(4)  # a plain index: nothing is seeded
        assert augment(4) != first

    def test_draws_reach_workers(self):
        """Through pickling into a worker process, whatever their number."""
        seen = []
        for workers in (0, 2):
            loader = DataLoader(_Echo(), batch_size=2, sampler=ReplayableSampler(_Echo(), seed=1), num_workers=workers)
            iterator = iter(loader)
            seen.append([next(iterator).tolist() for _ in range(4)])
        assert seen[0] == seen[1]


class _Echo:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        SeedPerDraw().transform(dict(sample_idx=index))
        return np.random.rand()


class _Augmented(BaseDataset):
    """Samples whose only content is what the augmentation draws."""

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, size=5):
        self.size = size
        super().__init__(pipeline=[SeedPerDraw(), _augment], serialize_data=False)

    def load_data_list(self):
        return [dict(image=index) for index in range(self.size)]

    def get_cat_ids(self, idx):
        return [int(idx > 0)]


def _augment(results):
    return dict(image=results['image'], value=np.random.rand(), other=random.random())


class _Mix:
    """Like mmseg's mosaic: mixes in another image of the dataset."""

    def get_indices(self, dataset):
        return random.randrange(len(dataset))

    def __call__(self, results):
        return dict(results, other=results['mix_results'][0]['value'])


def _inner(size=5):
    return dict(type=_Augmented, size=size)


def _concat():
    return ConcatDataset([_inner(3), _inner(4)])


def _repeat():
    return RepeatDataset(_inner(), times=3)


def _mix():
    dataset = MultiImageMixDataset(_inner(), pipeline=[dict(type='PackSegInputs')])
    dataset.pipeline, dataset.pipeline_types = [_Mix()], ['_Mix']
    return dataset


def _nested():
    repeated = dict(type=RepeatDataset, dataset=_inner(2), times=2)
    return RepeatDataset(dict(type=ConcatDataset, datasets=[_inner(3), repeated]), times=2)


def _balanced():
    return ClassBalancedDataset(_inner(), oversample_thr=0.5)


class TestWrappers:
    """Datasets around datasets, as mmengine and mmseg have them."""

    def samples(self, dataset, start, stop, noise):
        """Samples of the draws from ``start`` to ``stop``, in a process whose random state is ``noise``."""
        random.seed(noise)
        np.random.seed(noise)
        sampler = ReplayableSampler(dataset, seed=3)
        sampler.skip(start)
        draws = iter(sampler)
        return [dataset[next(draws)] for _ in range(stop - start)]

    @pytest.mark.parametrize('build', [_concat, _repeat, _mix, _nested])
    def test_resumed_run_sees_the_same_samples(self, build):
        whole = self.samples(build(), 0, 20, noise=0)
        assert len({sample['value'] for sample in whole}) == 20
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert self.samples(build(), 9, 20, noise=1) == whole[9:]

    def test_wrapper_that_loses_the_draws_is_named(self):
        with pytest.warns(UserWarning, match='ClassBalancedDataset .* not repeatable'):
            ReplayableSampler(_balanced(), seed=0)
        with pytest.warns(UserWarning, match='Subset .* not repeatable'):
            ReplayableSampler(Subset(_Augmented(), [0, 2]), seed=0)

    def test_arithmetic_keeps_number_and_seed(self):
        for index, value in ((Draw(17, 5, 3) % 7, 3), (Draw(17, 5, 3) - 7, 10), (Draw(17, 5, 3) // 7, 2)):
            assert (index, index.number, index.seed) == (value, 5, 3)

    def test_images_per_pass(self):
        expected = {_concat: 7, _repeat: 5, _mix: 5, _nested: 5, _balanced: 5}
        assert {build: images_per_pass(build()) for build in expected} == expected
        assert images_per_pass(_Augmented(6)) == 6
        assert images_per_pass(Subset(_Augmented(6), [0, 2])) == 2


class _Model(BaseModel):
    """Keeps the images of each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.images = []

    def forward(self, image, value, other, mode):
        self.images.append((image, value))
        return dict(loss=self.weight * sum(value))


class TestEpochs:
    """``EpochBasedTrainLoop`` ends an epoch after one pass."""

    def train(self, work_dir, epochs, **options):
        model = _Model()
        runner = Runner(
            model,
            str(work_dir),
            train_dataloader=dict(
                batch_size=2, num_workers=0, dataset=_Augmented(),
                sampler=dict(type='ReplayableSampler', seed=3, endless=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            randomness=dict(seed=0),
            default_hooks=dict(logger=None),
            default_scope='mmengine',
            experiment_name=f'{work_dir.name}-{len(options)}',
            **options,
        )  # fmt: skip
        runner.train()
        assert runner.iter == 3 * epochs
        return model.images

    def test_an_epoch_is_one_pass(self, tmp_path):
        images = self.train(tmp_path, 3)
        passes = [[image for batch, _ in images[i : i + 3] for image in batch] for i in (0, 3, 6)]
        assert [sorted(one) for one in passes] == [list(range(5))] * 3
        assert passes[0] != passes[1] != passes[2]
        endless = iter(ReplayableSampler(range(5), seed=3))
        assert [image for one in passes for image in one] == [next(endless) for _ in range(15)]

    def test_resumed_run_equals_uninterrupted_run(self, tmp_path):
        whole = self.train(tmp_path / 'whole', 3)
        resumed = self.train(tmp_path / 'resumed', 3, load_from=str(tmp_path / 'whole/epoch_2.pth'), resume=True)
        assert resumed == whole[6:]

    def test_ranks_see_as_many_images(self, monkeypatch):
        """5 images on 2 ranks: 3 each, one of them twice; as DefaultSampler does."""
        passes = []
        for rank in range(2):
            monkeypatch.setattr('mmseg_davpt.datasets.sampling.get_dist_info', lambda rank=rank: (rank, 2))
            sampler = ReplayableSampler(range(5), seed=3, endless=False)
            assert len(sampler) == 3
            for epoch in range(2):
                sampler.set_epoch(epoch)
                passes.append(list(sampler))
        for epoch in range(2):
            first, second = passes[epoch], passes[2 + epoch]
            assert len(first) == len(second) == 3
            assert {*first, *second} == set(range(5))
        assert len({draw.number for one in passes for draw in one}) == 12

    def test_loops_get_the_sampler_they_need(self):
        sampler = dict(type='ReplayableSampler', shuffle=True)
        for loop in (dict(by_epoch=True, max_epochs=2), dict(type='EpochBasedTrainLoop', max_epochs=2)):
            cfg = ConfigDict(train_dataloader=dict(sampler=sampler), train_cfg=loop)
            with pytest.raises(ValueError, match=r'train_dataloader\.sampler\.endless=False'):
                check_sampler(cfg)
            cfg.train_dataloader.sampler.endless = False
            check_sampler(cfg)
        for loop in (dict(by_epoch=False, max_iters=2), dict(type='IterBasedTrainLoop', max_iters=2)):
            cfg = ConfigDict(train_dataloader=dict(sampler=sampler), train_cfg=loop)
            check_sampler(cfg)
            cfg.train_dataloader.sampler.endless = False
            with pytest.raises(ValueError, match=r'train_dataloader\.sampler\.endless=True'):
                check_sampler(cfg)
        check_sampler(ConfigDict(test_dataloader={}))
        with pytest.raises(ValueError, match='endless=True'):
            ReplayableSampler(range(5), seed=3, endless=False).skip(4)


class TestMissingData:
    @pytest.mark.parametrize(
        ('name', 'where'), [('davpt_upernet_ade20k', 'ADEChallengeData2016.zip'), (CAMVID.stem, 'CamVid')]
    )
    def test_says_where_to_get_it_and_what_runs_without(self, name, where, tmp_path):
        cfg = load_config(ROOT / f'configs/{name}.py', {'data_root': str(tmp_path / 'nowhere')})
        with pytest.raises(FileNotFoundError, match=f'nowhere.*{where}.*davpt_upernet_miniscenes'):
            check_data_roots(cfg)

    @pytest.mark.slow
    def test_command_line(self, tmp_path):
        code, printed = tool(
            'train',
            CAMVID,
            '--cfg-options',
            f'data_root={tmp_path}/nowhere',
            check=False,
        )
        assert code != 0
        assert 'nowhere' in printed.splitlines()[-1]
        assert 'davpt_upernet_miniscenes' in printed

    def test_generated_data_is_not_missed(self):
        check_data_roots(load_config(ROOT / 'configs/davpt_upernet_miniscenes.py'))
