"""Masks that predictions are written to: with the ids that the masks of the dataset have.

The convention of every command: a written mask means the same as a mask of the dataset, and the dataset of the same
config reads the predicted classes back from it. Under ``reduce_zero_label=True`` a class is written as its id + 1, and
0, which means "not labeled", never occurs.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmseg.registry import DATASETS
from numpy.typing import NDArray
from PIL import Image

from ..files import replacing
from .check import leaf_datasets
from .image_files import first_line


def file_ids(meta: Mapping[str, Any]) -> NDArray[np.int64]:
    """Id of each class in a mask file; the inverse of what ``LoadAnnotations`` does with the ids that it reads.

    Args:
        meta: ``classes``, and optionally ``reduce_zero_label`` and ``label_map`` (id in the file, after
            ``reduce_zero_label``, -> id of the class), as in the ``metainfo`` of mmseg's datasets.

    Returns:
        Array ``(C,)``.
    """
    number = len(meta['classes'])
    ids = np.arange(number)
    for old, new in (meta.get('label_map') or {}).items():
        if 0 <= new < number:  # a class that is left out has the ignored id
            ids[new] = old
    return ids + bool(meta.get('reduce_zero_label'))


def mask_meta(cfg: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """How the masks of a config's test data are read, from the config alone: no data is needed.

    Args:
        cfg: A full config.
        known: ``dataset_meta`` of a checkpoint, for what the config leaves open.

    Returns:
        ``classes``, ``reduce_zero_label`` and ``label_map``, for :func:`file_ids`.
    """
    dataset = next(leaf_datasets((cfg.get('test_dataloader') or {}).get('dataset') or {}))
    kind = dataset.get('type')
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    steps = dataset.get('pipeline') or cfg.get('test_pipeline') or ()
    options = [dataset, *(step for step in steps if 'LoadAnnotations' in str(step.get('type')))]
    values = [option.get('reduce_zero_label') for option in options]
    if cls is not None and 'reduce_zero_label' in inspect.signature(cls).parameters:
        values.append(inspect.signature(cls).parameters['reduce_zero_label'].default)
    values.append(known.get('reduce_zero_label', False))
    label_map = known.get('label_map')
    if cls is not None and hasattr(cls, 'get_label_map') and dataset.get('metainfo'):
        classes = cls._load_metainfo(dict(dataset['metainfo'])).get('classes')
        if classes is not None and len(classes) == len(known['classes']):
            label_map = cls.get_label_map(classes)
    reduced = next(value for value in values if value is not None)
    return dict(classes=known['classes'], reduce_zero_label=reduced, label_map=label_map)


def relative_name(image: str | Path, roots: Iterable[str | Path]) -> Path:
    """The path of an image below the first of the folders that holds it; its file name if none does."""
    path = Path(image).absolute()
    root = next((root for root in map(Path, roots) if path.is_relative_to(root.absolute())), path.parent)
    return path.relative_to(root.absolute())


def require_distinct(names: Mapping[Path, Path]) -> None:
    """Refuse images whose masks would have the same file.

    Args:
        names: Image -> its path below the folder of the masks.

    Raises:
        ValueError: The message names two of them.
    """
    seen: dict[Path, Path] = {}
    for image, name in names.items():
        other = seen.setdefault(name.with_suffix(''), image)
        if other != image:
            raise ValueError(
                f'{other} and {image}: the masks of both would be {name.with_suffix(".png")}. Rename one, or put them '
                'into subfolders of one folder'
            )


def write_mask(
    path: Path, mask: NDArray[np.integer], ids: NDArray[np.int64], palette: Sequence[Sequence[int]] | None = None
) -> None:
    """Write a mask as PNG: uint8, or uint16 if an id is above 255, which mmseg's datasets cannot read.

    Args:
        path: File to write; its folder is made.
        mask: Class ids, ``(H, W)``.
        ids: From :func:`file_ids`.
        palette: RGB color of each class. The PNG then shows colors in a viewer, and holds the same ids. Pillow, and
            so ``LoadAnnotations``, reads the ids; opencv reads the colors.

    Raises:
        ValueError: A palette for ids above 255.
        OSError: The file cannot be written.
    """
    values = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)[mask]
    if palette is None:
        write_image(path, values)
        return
    if values.dtype != np.uint8:
        raise ValueError(f'a PNG with a palette holds ids up to 255, and there is a class with id {ids.max()}')
    colors = np.zeros((256, 3), np.uint8)
    colors[ids] = np.asarray(palette)
    image = Image.fromarray(values)
    image.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_image(path: Path, image: NDArray[Any]) -> None:
    """Write an image in the format of its suffix, under its final name only when it is complete.

    Args:
        path: File to write; its folder is made.
        image: ``(H, W)``, or BGR ``(H, W, 3)``.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        done, data = cv2.imencode(path.suffix, image)
    except cv2.error as error:
        raise OSError(f'{path} cannot be written: {first_line(error)}') from error
    if not done:
        raise OSError(f'{path} cannot be written: {image.shape[1]}x{image.shape[0]} are too large for the format')
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data.tobytes())
