"""``MiniScenes``: a generated dataset in ADE20K's layout, which needs no download."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
from mmengine.dist import barrier
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from tqdm import tqdm

from .canvas import CLASSES, PALETTE
from .scenes import paint_scene

SPLITS = {'training': 240, 'validation': 60}


@DATASETS.register_module()
class MiniScenesDataset(BaseSegDataset):
    """Generated indoor and outdoor scenes, 16 classes, 240 training and 60 validation images of 240x320 pixels.

    Masks hold class id + 1 and 0 where nothing is labeled, as in ADE20K. Generated on first use.

    Args:
        data_root: Folder of the dataset; created if it does not exist.
        seed: Seed of the scenes; each seed has a separate folder.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)

    def __init__(self, data_root: str = 'data/miniscenes', seed: int = 0, **kwargs: object) -> None:
        root = Path(data_root) / f'seed{seed}'
        if int(os.environ.get('LOCAL_RANK', 0)) == 0:  # one process a node
            make_miniscenes(root, seed)
        barrier()
        super().__init__(
            data_root=str(root), img_suffix='.jpg', seg_map_suffix='.png', reduce_zero_label=True, **kwargs
        )


def make_miniscenes(root: str | Path, seed: int = 0, splits: dict[str, int] | None = None) -> Path:
    """Generate the dataset, unless it exists.

    It is written to a temporary folder that is renamed when complete: an interrupted run leaves no partial dataset.

    Args:
        root: Folder to create, with ``images/{training,validation}/*.jpg`` and ``annotations/.../*.png``.
        seed: Seed of all scenes.
        splits: Number of images of each split; 240 and 60 by default.

    Returns:
        ``root``.
    """
    root = Path(root)
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    try:
        jobs = []
        for number, (split, size) in enumerate((splits or SPLITS).items()):
            for folder in ('images', 'annotations'):
                (partial / folder / split).mkdir(parents=True)
            jobs += [(partial, split, index, (seed, number, index)) for index in range(size)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy and opencv release the GIL
            for _ in tqdm(pool.map(_write_scene, jobs), total=len(jobs), desc=f'MiniScenes -> {root}', mininterval=1):
                pass
        partial.chmod(0o755)
        try:
            partial.rename(root)
        except OSError:
            if not root.is_dir():  # otherwise another node was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _write_scene(job: tuple[Path, str, int, tuple[int, ...]]) -> None:
    folder, split, index, seed = job
    image, mask = paint_scene(seed)
    jpg = folder / 'images' / split / f'{index:04d}.jpg'
    png = folder / 'annotations' / split / f'{index:04d}.png'
    written = cv2.imwrite(str(jpg), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]) and cv2.imwrite(str(png), mask)
    if not written:
        raise OSError(f'cannot write {jpg} or {png}: is the disk full?')
