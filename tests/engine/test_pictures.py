"""Picture grid: image, truth and prediction side by side; and what it may not break."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import segmentor_cfg
from mmengine.logging import MMLogger
from mmengine.runner import IterBasedTrainLoop
from mmengine.structures import PixelData
from mmengine.visualization import LocalVisBackend, MLflowVisBackend, TensorboardVisBackend
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_davpt.apis import require_complete
from mmseg_davpt.engine import PictureGridHook
from mmseg_davpt.engine.pictures import add_figure
from mmseg_davpt.reports.picture_grid import draw_grid


def colors_in(path):
    """RGB colors in a picture, with the number of their pixels."""
    picture = cv2.imread(str(path))[..., ::-1].reshape(-1, 3)
    colors, counts = np.unique(picture, axis=0, return_counts=True)
    return {tuple(color): count for color, count in zip(colors.tolist(), counts.tolist())}


class TestDrawGrid:
    def test_more_than_256_classes(self, tmp_path):
        """Also class 255 has its color where the label of ignored pixels is another."""
        classes = [f'class {index}' for index in range(300)]
        palette = [[index % 256, 7, 200 - index // 256] for index in range(300)]
        image = np.full((40, 60, 3), 255, np.uint8)
        truth = np.full((40, 60), 255)
        prediction = np.full((40, 60), 299)
        draw_grid([(image, truth, prediction)], classes, palette, tmp_path / 'grid.png', ignore_index=65535)
        colors = colors_in(tmp_path / 'grid.png')
        assert colors[255, 7, 200] > 1000
        assert colors[299 % 256, 7, 199] > 1000

    def test_ignored_pixels_are_black(self, tmp_path):
        image = np.full((40, 60, 3), 255, np.uint8)
        rows = [(image, np.full((40, 60), 255), np.zeros((40, 60), int))]
        draw_grid(rows, ['a'], [[10, 200, 30]], tmp_path / 'new/grid.png')
        colors = colors_in(tmp_path / 'new/grid.png')
        assert colors[0, 0, 0] > 1000
        assert colors[10, 200, 30] > 1000

    def test_ids_without_a_color_are_black(self, tmp_path):
        """A truth with ids of no class does not stop the picture."""
        image = np.full((40, 60, 3), 255, np.uint8)
        rows = [(image, np.full((40, 60), 7), np.zeros((40, 60), int)), (image, None, np.zeros((40, 60), int))]
        draw_grid(rows, ['a'], [[10, 200, 30]], tmp_path / 'grid.png')
        assert colors_in(tmp_path / 'grid.png')[0, 0, 0] > 1000


class _Runner:
    """What the hook reads of a runner."""

    def __init__(self, work_dir, number=4):
        class Data:
            metainfo = dict(classes=('a', 'b'), palette=[[10, 200, 30], [200, 10, 30]])
            ignore_index = 255

        class Loader:
            dataset = Data()

            def __len__(self):
                return number

        self.work_dir, self.test_dataloader = str(work_dir), Loader()
        self.logger = MMLogger.get_instance('pictures')


@pytest.fixture
def collected(tmp_path):
    """(hook, runner) after a test of four images."""

    def collect(**options):
        cv2.imwrite(str(tmp_path / 'image.png'), np.full((40, 60, 3), 255, np.uint8))
        hook, runner = PictureGridHook(num=2, **options), _Runner(tmp_path)
        hook.before_test(runner)
        for index in range(4):
            sample = SegDataSample(
                gt_sem_seg=PixelData(data=torch.zeros(1, 40, 60, dtype=torch.int64)),
                pred_sem_seg=PixelData(data=torch.full((1, 40, 60), index % 2)),
            )
            sample.set_metainfo(dict(img_path=str(tmp_path / 'image.png')))
            hook.after_test_iter(runner, index, outputs=[sample])
        return hook, runner

    return collect


class TestHook:
    def test_writes_after_the_test(self, collected, tmp_path):
        hook, runner = collected()
        hook.after_test(runner)
        assert colors_in(tmp_path / 'picture_grid.png')[10, 200, 30] > 1000

    def test_failing_picture_keeps_the_test(self, collected, tmp_path):
        """What cannot be drawn is logged: the results of the test come after this hook."""
        hook, runner = collected()
        runner.test_dataloader.dataset.metainfo = dict(classes=('a', 'b'), palette='nonsense')
        hook.after_test(runner)
        assert not (tmp_path / 'picture_grid.png').exists()

    def test_draws_where_and_when_it_is_told(self, collected, tmp_path):
        """tools/test.py writes its results first, and one picture for each test."""
        hook, runner = collected(draw_after_test=False)
        hook.after_test(runner)
        assert not (tmp_path / 'picture_grid.png').exists()
        assert hook.draw(runner, tmp_path / 'single.png') == tmp_path / 'single.png'
        assert hook.draw(runner, tmp_path / 'multi.png') == tmp_path / 'multi.png'
        assert (tmp_path / 'single.png').is_file()
        hook.before_test(runner)
        assert hook.draw(runner, tmp_path / 'nothing.png') is None


@pytest.mark.parametrize(
    ('backend', 'name'), [(TensorboardVisBackend, 'grid'), (MLflowVisBackend, 'grid_7.png'), (LocalVisBackend, 'grid')]
)
def test_figures_are_named_as_a_backend_expects(backend, name, tmp_path, monkeypatch):
    """MLflow takes the name of a file: without a suffix it raises, which ends the training."""
    cv2.imwrite(str(tmp_path / 'grid.png'), np.full((4, 6, 3), (0, 0, 255), np.uint8))
    sent = []
    monkeypatch.setattr(backend, 'add_image', lambda self, *args: sent.append(args))
    backends = {'one': backend.__new__(backend)}
    runner = SimpleNamespace(
        iter=7,
        _train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop),
        visualizer=SimpleNamespace(_vis_backends=backends),
    )
    add_figure(runner, 'grid', tmp_path / 'grid.png')
    ((label, image, step),) = sent
    assert (label, image[0, 0].tolist(), step) == (name, [255, 0, 0], 7)


def test_checkpoint_of_a_wrapped_model_is_complete(tmp_path):
    """``torch.save`` of a model in DistributedDataParallel names everything ``module.``, which mmengine strips."""
    model = MODELS.build(segmentor_cfg())
    state = model.state_dict()
    torch.save({f'module.{name}': value for name, value in state.items()}, tmp_path / 'wrapped.pth')
    require_complete(model, tmp_path / 'wrapped.pth')
    del state['decode_head.conv_seg.weight']
    torch.save({f'module.{name}': value for name, value in state.items()}, tmp_path / 'part.pth')
    with pytest.raises(ValueError, match=r'part.pth does not fit this config: decode_head.conv_seg.weight is missing'):
        require_complete(model, tmp_path / 'part.pth')
