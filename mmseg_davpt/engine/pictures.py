"""``PictureGridHook``: image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import mmcv
import numpy as np
from matplotlib.patches import Patch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

matplotlib.use('Agg')
from matplotlib import pyplot as plt


@HOOKS.register_module()
class PictureGridHook(Hook):
    """Collect a few test images and write ``picture_grid.png``: image | truth | prediction, with a legend.

    Args:
        num: Number of images, spread over the test set.
        path: File to write; in the run's folder by default.
    """

    def __init__(self, num: int = 6, path: str | None = None) -> None:
        self.num, self.path = num, path
        self.rows: list[tuple[np.ndarray, np.ndarray | None, np.ndarray]] = []

    def before_test(self, runner: Runner) -> None:
        """Start anew."""
        self.rows = []
        self.path = str(self.path or Path(runner.work_dir, 'picture_grid.png'))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence[SegDataSample] = ()
    ) -> None:
        """Keep every so many-th image."""
        every = max(1, len(runner.test_dataloader) // self.num)
        if is_main_process() and batch_idx % every == 0 and len(self.rows) < self.num and outputs:
            sample = outputs[0]
            truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            self.rows.append((image, truth, sample.pred_sem_seg.data[0].cpu().numpy()))

    def after_test(self, runner: Runner) -> None:
        """Write the picture."""
        if not is_main_process() or not self.rows:
            return
        meta = runner.test_dataloader.dataset.metainfo
        draw_grid(self.rows, meta['classes'], meta['palette'], self.path)
        runner.logger.info(f'Picture grid (image | truth | prediction): {self.path}')


def draw_grid(
    rows: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: str | Path,
) -> None:
    """Draw rows of image ``(H, W, 3)`` RGB, truth ``(H, W)`` (255 = void, black) or ``None``, prediction ``(H, W)``."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    height, width = rows[0][0].shape[:2]
    figure, axes = plt.subplots(len(rows), 3, figsize=(10.5, 3.5 * len(rows) * height / width + 1), squeeze=False)
    for (image, truth, prediction), line in zip(rows, axes):
        pictures = (image, None if truth is None else colours[truth], colours[prediction])
        for axis, picture in zip(line, pictures):
            axis.set_axis_off()
            if picture is not None:
                axis.imshow(picture)
    for axis, title in zip(axes[0], ('image', 'truth', 'prediction')):
        axis.set_title(title)
    shown = np.unique(np.concatenate([np.ravel(part) for row in rows for part in row[1:] if part is not None]))
    patches = [Patch(color=colours[index] / 255, label=classes[index]) for index in shown if index < len(classes)]
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles=patches, loc='lower center', ncol=8, fontsize='small', frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
