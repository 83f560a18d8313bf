"""Segment images: index masks, overlays and scores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmseg.apis import init_model
from mmseg.models import BaseSegmentor
from numpy.typing import NDArray
from tqdm import tqdm

from ..datasets.image_files import MAX_PIXELS, ImageFileError, first_line, read_header
from ..datasets.mask_files import file_ids, mask_meta, relative_name, require_distinct, write_image, write_mask
from ..reports.overlay import draw_overlay
from .checkpoints import require_complete, safe_checkpoints
from .images import read_image
from .prediction import Prediction, predict

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(paths: Sequence[str | Path], skip: str | Path | None = None) -> dict[Path, Path]:
    """Find the images that files and folders name, in all subfolders. Hidden files and folders are left out.

    Args:
        paths: Image files, and folders of images.
        skip: Folder to leave out: the one that results are written to.

    Returns:
        Image -> its path below the folder of the results: its file name, or its path in the folder that was given. With
        several paths, the name of that folder stands in front.

    Raises:
        FileNotFoundError: A path does not exist, or a folder holds no image.
        ValueError: Two images would have the same mask file.
    """
    images: dict[Path, Path] = {}
    for path in dict.fromkeys(map(Path, paths)):
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.rglob('*') if _is_image(file, path, skip))
        if not files or not files[0].exists():
            raise FileNotFoundError(f'{path}: no image there (known suffixes: {", ".join(SUFFIXES)})')
        root = path if path.is_dir() and len(paths) == 1 else path.absolute().parent
        images.update((file, relative_name(file, [root])) for file in files)
    require_distinct(images)
    return images


def _is_image(file: Path, folder: Path, skip: str | Path | None) -> bool:
    if skip is not None and file.absolute().is_relative_to(Path(skip).absolute()):
        return False
    hidden = any(part.startswith('.') for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()


def load_segmentor(
    cfg: Config, checkpoint: str | Path, device: str = 'cpu', trust_checkpoint: bool = False
) -> BaseSegmentor:
    """Build a segmentor and load a checkpoint of the whole model.

    Args:
        cfg: A full config.
        checkpoint: The file.
        device: Device of the model.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.

    Returns:
        The segmentor in eval mode, with ``dataset_meta`` (names and colors of the classes) and ``cfg``.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint does not fit the config.
        WeightsError: It is damaged or cannot be read safely.
    """
    with safe_checkpoints(trust_checkpoint):
        model = init_model(cfg, str(checkpoint), device=device)
    require_complete(model, checkpoint, trust_checkpoint)
    return model


def segment_images(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[Path] | Mapping[Path, Path],
    out: Path,
    opacity: float = 0.5,
    device: str = 'cpu',
    max_pixels: int = MAX_PIXELS,
    trust_checkpoint: bool = False,
    batch_size: int = 1,
    palette: bool = False,
    scores: bool = False,
    legend: bool = True,
) -> dict[Path, str]:
    """Segment images. An image that fails does not stop the others.

    Args:
        cfg: Config with a ``test_pipeline``.
        checkpoint: Checkpoint of the whole model, with the names and colors of the classes.
        images: Files to read; or each with its path below the folders of the results, from :func:`find_images`.
        out: Folder to write to. ``masks/NAME.png`` holds the classes as a mask of the config's dataset does: the ids
            of its mask files (:mod:`~mmseg_davpt.datasets.mask_files`), uint8, uint16 if one is above 255.
            ``overlays/NAME.jpg`` is the image under the colors of the classes. All are turned by the image's EXIF
            orientation, as the image is in training.
        opacity: Opacity of the classes in an overlay, in [0, 1].
        device: Device of the model.
        max_pixels: Largest number of pixels of an image.
        trust_checkpoint: Read the checkpoint with pickle, which runs the code that it holds.
        batch_size: Number of images of the same size that the model sees at once. The results differ by rounding alone.
        palette: Give the masks a palette: viewers show the colors of the classes, the ids stay.
        scores: Also write ``scores/NAME.png``, uint8: 255 times the softmax probability of the pixel's class.
        legend: Write the names of the classes below the overlays.

    Returns:
        Images that could not be segmented, each with the reason. The others are written.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The checkpoint does not fit the config; two images would have the same mask file; an option out of
            range.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size={batch_size}: expected a number >= 1')
    names = dict(images) if isinstance(images, Mapping) else {path: Path(path.name) for path in images}
    require_distinct(names)
    model = load_segmentor(cfg, checkpoint, device, trust_checkpoint)
    pipeline = Compose([step for step in cfg.test_pipeline if 'LoadAnnotations' not in step.type])
    classes, colors = model.dataset_meta['classes'], model.dataset_meta['palette']
    ids = file_ids(mask_meta(cfg, model.dataset_meta))
    failed: dict[Path, str] = {}

    def write(job: _Job, prediction: Prediction) -> None:
        mask, name = prediction.mask, names[job.path].with_suffix('')
        if mask.shape != job.image.shape[:2]:
            raise ImageFileError(f'test_pipeline reads {mask.shape}, opencv {job.image.shape[:2]} (height, width)')
        write_mask(out / 'masks' / f'{name}.png', mask, ids, colors if palette else None)
        overlay = draw_overlay(job.image[..., ::-1], mask, classes, colors, opacity, legend)
        write_image(out / 'overlays' / f'{name}.jpg', overlay[..., ::-1])
        if prediction.scores is not None:
            write_image(out / 'scores' / f'{name}.png', (255 * prediction.scores).round().astype(np.uint8))

    for batch in _batches(list(names), pipeline, max_pixels, batch_size, failed):
        for job, prediction in _predict_each(model, batch, scores, failed):
            try:
                write(job, prediction)
            except Exception as error:  # for instance a full disk
                failed[job.path] = _reason(error)
    return {path: failed[path] for path in names if path in failed}


@dataclass(frozen=True)
class _Job:
    """An image that is read: its pixels, BGR, and what the test pipeline makes of it."""

    path: Path
    image: NDArray[np.uint8]
    sample: dict[str, Any]

    @property
    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the model's input and of the result; equal within a batch."""
        return tuple(self.sample['inputs'].shape), tuple(self.sample['data_samples'].ori_shape)


def _batches(
    paths: Sequence[Path], pipeline: Compose, max_pixels: int, batch_size: int, failed: dict[Path, str]
) -> Iterator[list[_Job]]:
    """Read images in the order of their sizes, so that those of one size follow each other."""
    batch: list[_Job] = []
    for path in tqdm(sorted(paths, key=_stored_size) if batch_size > 1 else paths, desc='segment'):
        try:
            image = read_image(path, max_pixels)
            job = _Job(path, image, _process(pipeline, path, image.shape))
        except Exception as error:  # readers and pipeline may raise any exception
            failed[path] = _reason(error)
            continue
        if batch and (len(batch) == batch_size or job.sizes != batch[0].sizes):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _stored_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as it is read, from its header alone; (0, 0) for what has none."""
    try:
        header = read_header(path, sys.maxsize)
    except Exception:  # its reason is found when it is read
        header = None
    if header is None:
        return 0, 0
    return header.size if header.orientation < 5 else (header.size[1], header.size[0])


def _predict_each(
    model: BaseSegmentor, batch: Sequence[_Job], with_scores: bool, failed: dict[Path, str]
) -> Iterator[tuple[_Job, Prediction]]:
    """Predict a batch; if that fails, its images one by one, so that one of them does not stop the others."""
    try:
        yield from zip(batch, predict(model, [job.sample for job in batch], with_scores))
    except Exception as error:  # a model may raise any exception
        if len(batch) == 1:
            failed[batch[0].path] = _reason(error)
            return
        for job in batch:
            yield from _predict_each(model, [job], with_scores, failed)


def _process(pipeline: Compose, path: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    try:
        sample: dict[str, Any] = pipeline(dict(img_path=str(path)))
    except Exception as error:  # for instance Resize, if a side would have no pixel
        raise ImageFileError(f'{shape[1]}x{shape[0]}: test_pipeline fails: {first_line(error)}') from error
    return sample


def _reason(error: Exception) -> str:
    if isinstance(error, ImageFileError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f'{os.strerror(error.errno)} ({error.filename})' if error.filename else os.strerror(error.errno)
    return first_line(error)
