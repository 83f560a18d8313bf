"""``PictureGridHook``: pictures of the predictions of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import LocalVisBackend, MLflowVisBackend, Visualizer
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

from ..options import check_bool, check_choice, check_integer, wrong
from ..reports.picture_grid import Labels, draw_grid


@HOOKS.register_module()
class PictureGridHook(Hook):
    """Collect a few images of a test and write a picture: image | truth | prediction, with a legend.

    With ``loop='val'`` it does so in the validations of a training, for the visual backends (TensorBoard ...): the
    picture goes to them as ``picture_grid``. Nothing happens there if the config names none but ``LocalVisBackend``.

    Args:
        num: Number of images, spread over the test set.
        path: File to write; ``picture_grid.png`` in the run's folder by default.
        draw_after_test: Whether to write it at the end of the test. ``False``: the caller calls :meth:`draw`, for
            instance after saving the results.
        loop: ``'test'`` or ``'val'``.
    """

    def __init__(
        self, num: int = 6, path: str | Path | None = None, draw_after_test: bool = True, loop: str = 'test'
    ) -> None:
        self.num = check_integer('PictureGridHook.num', num)
        if not isinstance(path, (str, Path, type(None))):
            raise wrong('PictureGridHook.path', path, 'the path of a picture, or None')
        self.path, self.draw_after_test = path, check_bool('PictureGridHook.draw_after_test', draw_after_test)
        self.loop = check_choice('PictureGridHook.loop', loop, ('test', 'val'))
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
        if self.loop == 'test':
            self._keep(len(runner.test_dataloader), batch_idx, outputs)

    def before_val_epoch(self, runner: Runner) -> None:
        """Drop the images of an earlier validation."""
        self.rows = []

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence[SegDataSample] = (),
    ) -> None:
        """As in a test, if a backend shows pictures."""
        if self.loop == 'val' and shows_figures(runner.visualizer):
            self._keep(len(runner.val_dataloader), batch_idx, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the picture, and send it to the backends."""
        if self.loop == 'val' and self.rows:
            path = self._write(
                runner, self.path or Path(runner.work_dir, 'picture_grid_val.png'), runner.val_dataloader
            )
            if path is not None:
                add_figure(runner, 'picture_grid', path)

    def _keep(self, batches: int, batch_idx: int, outputs: Sequence[SegDataSample]) -> None:
        every = max(1, batches // self.num)
        if is_main_process() and batch_idx % every == 0 and len(self.rows) < self.num and outputs:
            sample = outputs[0]
            truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
            self.rows.append((sample.get('img_path'), truth, sample.pred_sem_seg.data[0].cpu().numpy()))

    def after_test(self, runner: Runner) -> None:
        """Write the picture if ``draw_after_test``."""
        if self.loop == 'test' and self.draw_after_test:
            self.draw(runner, self.path or Path(runner.work_dir, 'picture_grid.png'))

    def draw(self, runner: Runner, path: str | Path) -> Path | None:
        """Write the picture of the last test. A failure is logged, not raised: it must not end a test.

        Args:
            runner: The runner of the test.
            path: File to write.

        Returns:
            The file; ``None`` if there is no image, on other processes than the main one, or after a failure.
        """
        return self._write(runner, path, runner.test_dataloader)

    def _write(self, runner: Runner, path: str | Path, loader: DataLoader[Any]) -> Path | None:
        if not self.rows:
            return None
        dataset: Any = loader.dataset
        try:
            meta, ignore_index = dataset.metainfo, getattr(dataset, 'ignore_index', 255)
            rows = [(mmcv.imread(image, channel_order='rgb'), *labels) for image, *labels in self.rows]
            draw_grid(rows, meta['classes'], meta['palette'], path, ignore_index)
        except Exception:  # for instance a missing image, bad colors, a full disk
            runner.logger.exception(f'The picture grid {path} could not be written')
            return None
        runner.logger.info(f'Picture grid (image | truth | prediction): {path}')
        return Path(path)


def shows_figures(visualizer: Visualizer) -> bool:
    """Whether a visualizer has a backend beside ``LocalVisBackend``, which only writes files."""
    return any(not isinstance(backend, LocalVisBackend) for backend in visualizer._vis_backends.values())


def add_figure(runner: Runner, name: str, path: str | Path) -> None:
    """Send a picture to the visual backends, under the present iteration.

    Args:
        runner: The runner of a training.
        name: Name of the picture.
        path: A file that holds it.
    """
    step = runner.iter if isinstance(runner._train_loop, BaseLoop) else 0
    image = mmcv.imread(str(path), channel_order='rgb')
    for backend in runner.visualizer._vis_backends.values():
        # MLflow takes the name of a file, with its format, and no step.
        file = f'{name}_{step}.png' if isinstance(backend, MLflowVisBackend) else name
        backend.add_image(file, image, step)
