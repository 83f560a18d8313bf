"""Hooks that write a file for each image of a test."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from ..datasets.mask_files import file_ids, relative_name, require_distinct, write_image, write_mask
from ..datasets.sampling import inner_datasets
from ..options import wrong
from ..reports.overlay import draw_comparison


class _TestWriter(Hook):
    """Writes one file for each image, in the same folders as the images.

    Args:
        out_dir: Folder to write to.
    """

    def __init__(self, out_dir: str | Path) -> None:
        if not isinstance(out_dir, (str, Path)) or not str(out_dir):
            raise wrong(f'{type(self).__name__}.out_dir', out_dir, 'the path of a folder')
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        """Take classes and folders from the dataset.

        Raises:
            ValueError: Two images of the test would have the same file.
        """
        dataset = runner.test_dataloader.dataset
        self.meta = dataset.metainfo
        prefixes = [getattr(leaf, 'data_prefix', {}).get('img_path') for leaf in _leaves(dataset)]
        self.roots = [prefix for prefix in prefixes if prefix]
        images = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
        require_distinct({Path(image): relative_name(image, self.roots) for image in images})

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence[SegDataSample] = (),
    ) -> None:
        """Write the files of a batch."""
        for sample in outputs:
            self.write(self.out_dir / relative_name(sample.img_path, self.roots).with_suffix('.png'), sample)

    @abstractmethod
    def write(self, path: Path, sample: SegDataSample) -> None:
        """Write the file of an image.

        Args:
            path: The file.
            sample: The image's result.
        """


@HOOKS.register_module()
class MaskWriterHook(_TestWriter):
    """Write the masks of a test as the dataset's own masks are written, in the same folders as the images.

    ``out_dir`` can take the place of ``data_prefix.seg_map_path``: the dataset reads the predictions back from it.
    Images are named after the files, so a dataset whose masks have other names needs another ``seg_map_suffix`` for it.

    Args:
        out_dir: Folder to write to.
    """

    def write(self, path: Path, sample: SegDataSample) -> None:
        """Write a mask."""
        mask = sample.pred_sem_seg.data[0].long().cpu().numpy()  # float for one channel
        write_mask(path, mask, file_ids(self.meta))


@HOOKS.register_module()
class ComparisonWriterHook(_TestWriter):
    """Write a picture of each image of a test: image | truth | prediction, with a legend.

    Args:
        out_dir: Folder to write to; its subfolders are those of the images.
    """

    def write(self, path: Path, sample: SegDataSample) -> None:
        """Write a picture."""
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        truth = sample.gt_sem_seg.data[0].cpu().numpy() if 'gt_sem_seg' in sample else None
        prediction = sample.pred_sem_seg.data[0].long().cpu().numpy()
        picture = draw_comparison(image, truth, prediction, self.meta['classes'], self.meta['palette'])
        write_image(path, picture[..., ::-1])


def _leaves(dataset: Any) -> Iterator[Any]:
    """Datasets inside of wrappers, or the dataset itself."""
    inner = inner_datasets(dataset)
    if not inner:
        yield dataset
    for part in inner:
        yield from _leaves(part)
