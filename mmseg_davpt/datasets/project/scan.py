"""Read every pair of image and mask once: sizes, values, faults."""

from __future__ import annotations

import io
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..image_files import ImageFileError, check_file, check_mask_file, describe_mismatch, read_header
from .pairing import named_split, pair_files

Value = int | tuple[int, int, int]  # of a mask's pixel: an id, or a color (red, green, blue)
MAX_VALUES = 1024  # of a mask; more are a photograph, or a mask with soft edges


@dataclass(frozen=True)
class Pair:
    """An image with its mask.

    Attributes:
        image: File of the image.
        mask: File of the mask.
        size: (width, height) of the image as it is read.
        pixels: Value in the mask -> number of its pixels.
        split: ``train``, ``val`` or ``test`` if the name of a folder gives it.
    """

    image: Path
    mask: Path
    size: tuple[int, int]
    pixels: dict[Value, int]
    split: str | None = None


@dataclass
class DataSummary:
    """What is in the two folders.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        pairs: The usable pairs, sorted by image.
        left_out: File -> why it is not used.
        palette: Id -> color, of masks with a palette.
        rewrite: Why the masks must be written anew, whatever their ids; empty if they can be read as they are.
    """

    images: Path
    masks: Path
    pairs: list[Pair]
    left_out: dict[Path, str] = field(default_factory=dict)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    rewrite: str = ''

    @property
    def values(self) -> Counter[Value]:
        """Value in the masks -> number of its pixels."""
        total: Counter[Value] = Counter()
        for pair in self.pairs:
            total.update(pair.pixels)
        return total

    @property
    def colors(self) -> bool:
        """Whether the masks hold colors."""
        return any(isinstance(value, tuple) for pair in self.pairs for value in pair.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Median (width, height)."""
        width, height = np.median([pair.size for pair in self.pairs], axis=0)
        return int(width), int(height)


def scan_data(images: Path, masks: Path, workers: int | None = None) -> DataSummary:
    """Pair the files of two folders and read them all.

    Args:
        images: Folder of images.
        masks: Folder of masks.
        workers: Threads; all CPUs if ``None``.

    Raises:
        FileNotFoundError: A folder does not exist or holds no image.
        PairingError: The names do not fit.
        ValueError: More than a tenth of the pairs cannot be used, or fewer than two can.
    """
    files, lonely_images, lonely_masks = pair_files(images, masks)
    summary = DataSummary(images, masks, [])
    summary.left_out = {path: 'no mask of this name' for path in lonely_images}
    summary.left_out |= {path: 'no image of this name' for path in lonely_masks}
    faults: dict[Path, str] = {}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        found = pool.map(partial(_read_pair, images), files)
        for (image, _), result in zip(files, tqdm(found, 'read pairs', total=len(files), mininterval=1)):
            if isinstance(result, str):
                faults[image] = result
                continue
            pair, palette, rewrite = result
            summary.pairs.append(pair)
            summary.palette |= palette
            summary.rewrite = summary.rewrite or rewrite
    summary.left_out |= faults
    if 10 * len(faults) > len(files) or len(summary.pairs) < 2:
        shown = '\n'.join(f'  {path}: {why}' for path, why in list(faults.items())[:5])
        raise ValueError(
            f'{len(summary.pairs)} of {len(files)} pairs can be used; at least 2 and nine tenths are needed:\n{shown}'
        )
    return summary


def _read_pair(images: Path, files: tuple[Path, Path]) -> tuple[Pair, dict[int, tuple[int, int, int]], str] | str:
    """The pair, its palette and why it must be written anew; or why it cannot be used."""
    image, mask = files
    try:
        header = read_header(image)
        if header is None:
            return 'not an image that Pillow reads'
        width, height = header.size
        if header.orientation >= 5:
            width, height = height, width
        values, palette, rewrite = read_mask(mask)
    except (ImageFileError, OSError) as error:
        return str(error)
    if values.shape[:2] != (height, width):
        return describe_mismatch((height, width), values.shape[:2], header.orientation)
    pixels = count_values(values)
    if len(pixels) > MAX_VALUES:
        return f'{mask}: {len(pixels):,} different values: no mask of classes, or one with soft or lossy edges'
    return Pair(image, mask, (width, height), pixels, named_split(image, images)), palette, rewrite


def read_mask(path: Path) -> tuple[np.ndarray, dict[int, tuple[int, int, int]], str]:
    """Read the values of a mask.

    Args:
        path: The file.

    Returns:
        Ids ``(H, W)`` or colors ``(H, W, 3)``; id -> color of a palette; why mmseg cannot read this file as it is,
        empty if it can.

    Raises:
        ImageFileError: The file is damaged, lossy, or transparent.
        OSError: The file cannot be opened.
    """
    data, rewrite = path.read_bytes(), ''
    try:
        header = check_mask_file(data)
    except ImageFileError as error:
        header = check_file(data)
        if error.kind == 'lossy mask' or header is None or header.mode == 'F':
            raise ImageFileError(f'{path}: {error}', error.kind) from error
        rewrite = str(error)
    if header is None:
        raise ImageFileError(f'{path}: not an image that Pillow reads')
    with Image.open(io.BytesIO(data)) as image:
        if header.scaled and header.bits:  # Pillow scales 2 and 4 bits to 0 to 255
            return np.asarray(image.convert('L')) // (255 // (2**header.bits - 1)), {}, rewrite
        if image.mode == 'P':
            entries = image.getpalette() or []
            palette = {index: tuple(entries[3 * index : 3 * index + 3]) for index in range(len(entries) // 3)}
            return np.asarray(image), palette, rewrite  # type: ignore[return-value]
        if image.mode in ('1', 'L') or image.mode.startswith('I'):
            values = np.asarray(image)
            return (values.astype(np.uint8) if image.mode == '1' else values), {}, rewrite
        return np.asarray(image.convert('RGB')), {}, rewrite


def count_values(values: np.ndarray) -> dict[Value, int]:
    """Count ids or colors.

    Args:
        values: Ids ``(H, W)`` or colors ``(H, W, 3)``.
    """
    if values.ndim == 3:
        codes = values.astype(np.int64) @ np.array([65536, 256, 1])
        found, counts = np.unique(codes, return_counts=True)
        return {(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255): int(n) for c, n in zip(found, counts)}
    if values.dtype == np.uint8:
        counts = np.bincount(values.reshape(-1), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {int(value): int(number) for value, number in zip(found, counts)}
