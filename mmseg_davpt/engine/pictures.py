"""``PictureGridHook``: pictures of the predictions of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from ..options import check_bool, check_integer, wrong
from ..reports.picture_grid import Labels, draw_grid


@HOOKS.register_module()
class PictureGridHook(Hook):
    """Collect a few test images and write a picture: image | truth | prediction, with a legend.

    Args:
        num: Number of images, spread over the test set.
        path: File to write; ``picture_grid.png`` in the run's folder by default.
        draw_after_test: Whether to write it at the end of the test. ``False``: the caller calls :meth:`draw`, for
            instance after saving the results.
    """

    def __init__(self, num: int = 6, path: str | Path | None = None, draw_after_test: bool = True) -> None:
        self.num = check_integer('PictureGridHook.num', num)
        if not isinstance(path, (str, Path, type(None))):
            raise wrong('PictureGridHook.path', path, 'the path of a picture, or None')
        self.path, self.draw_after_test = path, check_bool('PictureGridHook.draw_after_test', draw_after_test)
        self.rows: list[tuple[str | None, Labels | None, Labels]] = []  # path of the image, truth, prediction

    def before_test(self, runner: Runner) -> None:
        """Drop the images of an earlier test."""
        self.rows = []

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence[SegDataSample] = (),
    ) -> None:
        """Keep one image in every ``len(loader) / num`` batches."""
        every = max(1, len(runner.test_dataloader) // self.num)
        if is_main_process() and batch_idx % every == 0 and len(self.rows) < self.num and outputs:
            sample = outputs[0]
            truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
            self.rows.append((sample.get('img_path'), truth, sample.pred_sem_seg.data[0].cpu().numpy()))

    def after_test(self, runner: Runner) -> None:
        """Write the picture if ``draw_after_test``."""
        if self.draw_after_test:
            self.draw(runner, self.path or Path(runner.work_dir, 'picture_grid.png'))

    def draw(self, runner: Runner, path: str | Path) -> Path | None:
        """Write the picture of the last test. A failure is logged, not raised: it must not end a test.

        Args:
            runner: The runner of the test.
            path: File to write.

        Returns:
            The file; ``None`` if there is no image, on other processes than the main one, or after a failure.
        """
        if not self.rows:
            return None
        dataset = runner.test_dataloader.dataset
        try:
            meta, ignore_index = dataset.metainfo, getattr(dataset, 'ignore_index', 255)
            rows = [(mmcv.imread(image, channel_order='rgb'), *labels) for image, *labels in self.rows]
            draw_grid(rows, meta['classes'], meta['palette'], path, ignore_index)
        except Exception:  # for instance a missing image, bad colors, a full disk
            runner.logger.exception(f'The picture grid {path} could not be written')
            return None
        runner.logger.info(f'Picture grid (image | truth | prediction): {path}')
        return Path(path)
