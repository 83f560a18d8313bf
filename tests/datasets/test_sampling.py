"""Generated scenes, repeatable draws, and data that is not there."""

import cv2
import numpy as np
import pytest
from conftest import ROOT, tool
from mmseg.registry import DATASETS
from torch.utils.data import DataLoader

from mmseg_davpt.apis import load_config
from mmseg_davpt.datasets import ReplayableSampler, SeedPerDraw, check_data_roots, make_miniscenes
from mmseg_davpt.datasets.miniscenes import dataset as module
from mmseg_davpt.datasets.miniscenes.canvas import CLASSES
from mmseg_davpt.datasets.miniscenes.scenes import paint_scene
from mmseg_davpt.datasets.sampling import Draw


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
    assert 0 in raw  # as in ADE20K: 0 is unlabelled


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


class TestMissingData:
    @pytest.mark.parametrize(
        ('name', 'where'), [('davpt_upernet_ade20k', 'ADEChallengeData2016.zip'), ('davpt_upernet_camvid', 'CamVid')]
    )
    def test_says_where_to_get_it_and_what_runs_without(self, name, where, tmp_path):
        cfg = load_config(ROOT / f'configs/{name}.py', {'data_root': str(tmp_path / 'nowhere')})
        with pytest.raises(FileNotFoundError, match=f'nowhere.*{where}.*davpt_upernet_miniscenes'):
            check_data_roots(cfg)

    def test_command_line(self, tmp_path):
        code, printed = tool(
            'train',
            ROOT / 'configs/davpt_upernet_camvid.py',
            '--cfg-options',
            f'data_root={tmp_path}/nowhere',
            check=False,
        )
        assert code != 0
        assert 'nowhere' in printed.splitlines()[-1]
        assert 'davpt_upernet_miniscenes' in printed

    def test_generated_data_is_not_missed(self):
        check_data_roots(load_config(ROOT / 'configs/davpt_upernet_miniscenes.py'))
