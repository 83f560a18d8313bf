"""Check one image and its mask, read as the pipeline reads them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmseg.registry import TRANSFORMS
from PIL import Image

from ..image_files import (
    MAX_PIXELS,
    ImageFileError,
    check_file,
    check_mask_file,
    describe_mismatch,
    describe_orientation,
    first_line,
)


@dataclass(frozen=True)
class Reader:
    """How the samples of one dataset are read.

    Attributes:
        load_image: The transform of the pipeline that loads the image.
        backend: ``imdecode_backend`` of its ``LoadAnnotations``.
        backend_args: ``backend_args`` of the dataset, for mmengine's file client.
        table: Id in a file -> id after ``LoadAnnotations`` (``reduce_zero_label``, ``label_map``), 256 entries.
        valid: Which of the 256 ids a mask may hold.
    """

    load_image: BaseTransform
    backend: str
    backend_args: dict[str, Any] | None
    table: np.ndarray
    valid: np.ndarray


@dataclass
class Sample:
    """Result for one sample.

    Attributes:
        ids: Id in the mask's file -> number of its pixels.
        digest: Hash of the bytes of the image file; ``None`` if it cannot be read.
        faults: (kind, path, description).
    """

    ids: dict[int, int] = field(default_factory=dict)
    digest: bytes | None = None
    faults: list[tuple[str, str, str]] = field(default_factory=list)


def find_steps(pipeline: list[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Configs of the transforms that load the image and the mask; mmseg's default if there is none."""
    found: dict[str, Mapping[str, Any]] = {}

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            name = str(node.get('type', '')).rpartition('.')[2]
            if 'Load' in name:
                found.setdefault('mask' if 'Annotation' in name else 'image', node)
            node = list(node.values())
        if isinstance(node, (list, tuple)):
            for child in node:
                walk(child)

    walk(pipeline)
    image, mask = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
    return found.get('image', image), found.get('mask', mask)


def id_table(step: Mapping[str, Any], info: Mapping[str, Any]) -> np.ndarray:
    """Ids that ``LoadAnnotations`` returns for the ids 0 to 255, found with a mask that holds them all.

    Args:
        step: Config of the transform.
        info: Information of the dataset on a sample: ``reduce_zero_label``, ``label_map``.

    Returns:
        Array of shape ``(256,)``.

    Raises:
        AssertionError: The transform and the dataset disagree on ``reduce_zero_label``.
    """
    step = {key: value for key, value in step.items() if key not in ('num_classes', 'ignore_index')}
    if str(step['type']).endswith('CheckedLoadAnnotations'):  # it would refuse ids beyond the classes
        step['type'] = 'LoadAnnotations'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'ids.png')
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        results = {**info, 'seg_map_path': str(path), 'seg_fields': []}
        table: np.ndarray = TRANSFORMS.build(step)(results)['gt_seg_map'].reshape(-1)
        return table


def inspect_sample(info: Mapping[str, Any], reader: Reader) -> Sample:
    """Read one sample and list its faults.

    Args:
        info: ``img_path`` and, if there is one, ``seg_map_path``.
        reader: How to read it.
    """
    sample = Sample()
    found = _inspect_image(info, reader, sample)
    if info.get('seg_map_path') is not None:
        mask = inspect_mask(info['seg_map_path'], reader, sample)
        if mask is not None and found is not None and mask.shape != found[0]:
            sample.faults.append(
                ('size mismatch', info['seg_map_path'], describe_mismatch(found[0], mask.shape, found[1]))
            )
    return sample


def _inspect_image(info: Mapping[str, Any], reader: Reader, sample: Sample) -> tuple[tuple[int, int], int] | None:
    """Shape of the image as the pipeline reads it, and its EXIF orientation; ``None`` if it cannot be read."""
    path, orientation = info['img_path'], 1
    try:
        data = fileio.get(path, backend_args=reader.backend_args)
        sample.digest = hashlib.blake2b(data, digest_size=16).digest()
        if getattr(reader.load_image, 'imdecode_backend', None) != 'tifffile':  # it reads what Pillow does not
            header = check_file(data, getattr(reader.load_image, 'max_pixels', MAX_PIXELS), decode=True)
            orientation = 1 if header is None else header.orientation
        height, width = reader.load_image(dict(info))['img'].shape[:2]
    except Exception as error:  # a decoder may raise any exception
        sample.faults.append(('unreadable image', path, _text(error)))
        return None
    if orientation != 1:
        sample.faults.append(('turned image', path, describe_orientation(orientation)))
    return (height, width), orientation


def inspect_mask(path: str, reader: Reader, sample: Sample) -> np.ndarray | None:
    """Read a mask, count its ids and list its faults.

    Args:
        path: File of the mask.
        reader: How to read it.
        sample: The sample; its ids are set and its faults extended.

    Returns:
        The ids in the file, ``(H, W)``; ``None`` if there is no mask of one id per pixel.
    """

    def fault(kind: str, what: str) -> None:
        sample.faults.append((kind, path, what))

    if not fileio.exists(path, backend_args=reader.backend_args):
        fault('missing mask', 'the image has no mask')
        return None
    try:
        data = fileio.get(path, backend_args=reader.backend_args)
        check_mask_file(data, reader.backend)
        mask: np.ndarray = mmcv.imfrombytes(data, flag='unchanged', backend=reader.backend)
    except ImageFileError as error:
        fault(error.kind or 'unreadable mask', str(error))
        return None
    except Exception as error:  # as above
        fault('unreadable mask', first_line(error))
        return None
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    if mask.ndim != 2:
        fault('color mask', f'{mask.shape[2]} channels instead of one id per pixel')
        return None
    if mask.dtype == bool:
        mask = mask.astype(np.uint8)
    if not np.issubdtype(mask.dtype, np.integer):
        fault('bad ids', f'pixels are {mask.dtype}, not integers')
        return mask
    values, counts = np.unique(mask, return_counts=True) if mask.dtype != np.uint8 else _count(mask)
    sample.ids = {int(value): int(count) for value, count in zip(values, counts)}
    wrong = [value for value in sample.ids if not 0 <= value < 256 or not reader.valid[value]]
    if wrong:
        pixels = sum(sample.ids[value] for value in wrong)
        shown = ', '.join(map(str, wrong[:8])) + (', ...' if len(wrong) > 8 else '')
        fault('bad ids', f'{shown} in {pixels:,} pixels: no class has this id')
    return mask


def _count(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(mask.reshape(-1), minlength=256)
    return np.flatnonzero(counts), counts[counts > 0]


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ImageFileError) else first_line(error)
