"""Convert the published masks of a dataset to those that mmseg reads.

Each function takes the folder of the dataset, continues an interrupted run, and never leaves a partial file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import mmseg
import numpy as np
from PIL import Image
from tqdm import tqdm

# Ids of the 59 classes among the 459 of PASCAL Context's labels.txt, in the order of PascalContextDataset59.
PASCAL_CONTEXT59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

# Ids of the 19 classes in Cityscapes' labelIds, in the order of CityscapesDataset.
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def pascal_context59(root: Path) -> None:
    """``context/*.mat`` (459 classes) -> ``SegmentationClassContext/*.png`` (0 = none of the 59), and the split lists.

    The split is VOC 2010's. mmseg's converter needs a compiled package and a file that is no longer served.
    """
    from scipy.io import loadmat

    table = np.zeros(460, np.uint8)
    table[list(PASCAL_CONTEXT59)] = np.arange(1, 60)
    out = root / 'SegmentationClassContext'

    def write(mat: Path) -> None:
        labels = loadmat(mat)['LabelMap']
        if labels.ndim != 2 or labels.max() > 459:
            raise ValueError(f'{mat}: expected a map of ids 0 to 459, got {labels.shape} up to {labels.max()}')
        _save(Image.fromarray(table[labels]), out / f'{mat.stem}.png')

    mats = sorted((root / 'context').glob('*.mat'))
    _run(write, [mat for mat in mats if not (out / f'{mat.stem}.png').is_file()], 'masks of 59 classes')
    lists = root / 'ImageSets/SegmentationContext'
    lists.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val'):
        names = (root / f'ImageSets/Main/{split}.txt').read_text().split()
        names = [name for name in names if (out / f'{name}.png').is_file()]
        missing = [name for name in names if not (root / f'JPEGImages/{name}.jpg').is_file()]
        if missing:
            raise FileNotFoundError(
                f'{root}/JPEGImages lacks {len(missing)} images of {split}, such as {missing[0]}.jpg'
            )
        (lists / f'{split}.txt').write_text(''.join(f'{name}\n' for name in names))
    shutil.rmtree(root / 'context', ignore_errors=True)


def cityscapes(root: Path) -> None:
    """``gtFine/{train,val}/*/*_labelIds.png`` -> ``*_labelTrainIds.png`` in the same folder: 19 classes, 255 = ignored.

    mmseg's converter draws the polygons again with another package; the published ids hold the same pixels.
    """
    table = np.full(256, 255, np.uint8)
    table[list(CITYSCAPES)] = np.arange(19)

    def write(path: Path) -> None:
        _save(Image.fromarray(table[np.array(Image.open(path))]), _train_ids(path))

    paths = [
        path for split in ('train', 'val') for path in sorted(root.glob(f'gtFine/{split}/*/*_gtFine_labelIds.png'))
    ]
    _run(write, [path for path in paths if not _train_ids(path).is_file()], 'masks of 19 classes')


def _train_ids(path: Path) -> Path:
    return path.with_name(path.name.replace('_labelIds.png', '_labelTrainIds.png'))


def coco_stuff164k(root: Path) -> None:
    """``annotations/*2017/*.png`` (ids to 181) -> ``*_labelTrainIds.png`` in the same folder, with mmseg's table."""
    stock = _stock_converter('coco_stuff164k')
    partial = root / 'annotations/.part'
    for split in ('train2017', 'val2017'):
        (partial / split).mkdir(parents=True, exist_ok=True)
        folder = root / 'annotations' / split

        def write(mask: Path, split: str = split, folder: Path = folder) -> None:
            stock.convert_to_trainID(str(mask), str(partial), is_train=split == 'train2017')
            name = f'{mask.stem}_labelTrainIds.png'
            os.replace(partial / split / name, folder / name)

        masks = [mask for mask in sorted(folder.glob('*.png')) if not mask.stem.endswith('_labelTrainIds')]
        masks = [mask for mask in masks if not (folder / f'{mask.stem}_labelTrainIds.png').is_file()]
        _run(write, masks, f'{split}: masks of 171 classes')
    shutil.rmtree(partial, ignore_errors=True)


def camvid(root: Path) -> None:
    """SegNet's files -> ``images/SPLIT/*.jpg`` (quality 95) and ``annotations/SPLIT/*.png``, where 11 (void) is 255."""
    table = np.arange(256, dtype=np.uint8)
    table[11] = 255

    def write(job: tuple[str, Path]) -> None:
        split, path = job
        mask = np.array(Image.open(root / f'segnet/{split}annot' / path.name))
        if mask.ndim != 2 or mask.max() > 11:
            raise ValueError(f'segnet/{split}annot/{path.name}: expected ids 0 to 11, got {mask.shape} to {mask.max()}')
        _save(Image.open(path).convert('RGB'), root / f'images/{split}/{path.stem}.jpg', quality=95)
        _save(Image.fromarray(table[mask]), root / f'annotations/{split}/{path.stem}.png')

    jobs = [(split, path) for split in ('train', 'val', 'test') for path in sorted(root.glob(f'segnet/{split}/*.png'))]
    _run(write, [job for job in jobs if not (root / f'annotations/{job[0]}/{job[1].name}').is_file()], 'CamVid')
    shutil.rmtree(root / 'segnet', ignore_errors=True)


def _save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.part-{path.name}')
    image.save(partial, **options)
    os.replace(partial, path)


def _run(function: Callable[[Any], None], jobs: Sequence[Any], title: str) -> None:
    if not jobs:
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(function, jobs), total=len(jobs), desc=title, mininterval=1):
            pass


def _stock_converter(name: str) -> ModuleType:
    package = Path(mmseg.__file__).parent
    places = [folder / f'tools/dataset_converters/{name}.py' for folder in (package / '.mim', package.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"mmseg's converter {name}.py is neither at {places[0]} nor at {places[1]}")
    spec = importlib.util.spec_from_file_location(f'mmseg_converter_{name}', path)
    if spec is None or spec.loader is None:
        raise ImportError(f'{path} cannot be imported')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
