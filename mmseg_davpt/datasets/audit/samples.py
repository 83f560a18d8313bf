"""Check one image and its mask, read as the pipeline reads them."""

from __future__ import annotations

import hashlib
import io
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
from PIL import Image, UnidentifiedImageError


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
            if name.startswith('Load'):
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
    shape = _inspect_image(info, reader, sample)
    if info.get('seg_map_path') is not None:
        mask = _inspect_mask(info['seg_map_path'], reader, sample)
        if mask is not None and shape is not None and mask.shape != tuple(shape):
            what = f'image {shape[1]}x{shape[0]}, mask {mask.shape[1]}x{mask.shape[0]}'
            sample.faults.append(('size mismatch', info['seg_map_path'], what))
    return sample


def _inspect_image(info: Mapping[str, Any], reader: Reader, sample: Sample) -> tuple[int, int] | None:
    path = info['img_path']
    try:
        data = fileio.get(path, backend_args=reader.backend_args)
        sample.digest = hashlib.blake2b(data, digest_size=16).digest()
        _decode_whole(data)
        return reader.load_image(dict(info))['img'].shape[:2]
    except Exception as error:  # a decoder may raise any exception
        sample.faults.append(('unreadable image', path, _text(error)))
        return None


def _inspect_mask(path: str, reader: Reader, sample: Sample) -> np.ndarray | None:
    def fault(kind: str, what: str) -> None:
        sample.faults.append((kind, path, what))

    if not fileio.exists(path, backend_args=reader.backend_args):
        fault('missing mask', 'the image has no mask')
        return None
    try:
        data = fileio.get(path, backend_args=reader.backend_args)
        form = _decode_whole(data)
        mask = mmcv.imfrombytes(data, flag='unchanged', backend=reader.backend).squeeze()
    except Exception as error:  # as above
        fault('unreadable mask', _text(error))
        return None
    if mask.ndim != 2:
        fault('colour mask', f'{mask.shape[2]} channels instead of one id per pixel')
        return mask[..., 0]
    if form == 'JPEG':
        fault('lossy mask', 'JPEG changes ids')
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


def _decode_whole(data: bytes) -> str | None:
    """Decode strictly (opencv fills what a truncated file lacks); the format, ``None`` if Pillow does not know it."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if not data:
            raise
        return None  # the reader of the pipeline may know it
    image.load()
    return image.format


def _text(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
