"""Images of any kind as arrays."""

from __future__ import annotations

import sys
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..datasets.image_files import MAX_PIXELS, ImageFileError, check_file, read_header

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def read_image(path: Path, max_pixels: int) -> np.ndarray:
    """Read an image file.

    Args:
        path: The file.
        max_pixels: Largest number of pixels.

    Returns:
        BGR, uint8, ``(H, W, 3)``, turned by its EXIF orientation.

    Raises:
        ImageFileError: The file cannot be read as an image, or has more pixels.
    """
    if not path.is_file():
        raise ImageFileError('no file' if not path.is_dir() else 'a folder')
    if read_header(path, max_pixels) is None:
        raise ImageFileError('cannot be read as an image: unknown format')
    data = path.read_bytes()
    header = check_file(data, max_pixels, decode=True)
    image: np.ndarray | None = mmcv.imfrombytes(data)
    if image is None:
        raise ImageFileError('cannot be read as an image: opencv cannot decode it')
    if header is not None and header.orientation != 1:
        tqdm.write(f'{path}: EXIF orientation {header.orientation}: image and mask are turned', sys.stderr)
    return image


def to_rgb(image: ImageLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read or convert an image.

    Args:
        image: See :meth:`~mmseg_davpt.TaskSegmenter.__call__`. Files and PIL images are turned by their EXIF
            orientation.
        max_pixels: Largest number of pixels.

    Returns:
        RGB, uint8, ``(H, W, 3)``.

    Raises:
        ImageFileError: A file cannot be read as an image.
        TypeError: No image.
        ValueError: An array or tensor of another shape or type, or too many pixels.
    """
    if isinstance(image, (str, Path)):
        return np.ascontiguousarray(read_image(Path(image), max_pixels)[..., ::-1])
    if isinstance(image, Image.Image):
        array = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    elif isinstance(image, Tensor):
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(f'a tensor of shape {tuple(image.shape)}: expected (3, H, W)')
        array = image.detach().cpu().permute(1, 2, 0).numpy()
        if image.is_floating_point():
            if not 0 <= float(image.min()) <= float(image.max()) <= 1:
                raise ValueError('a tensor of floats: expected values in [0, 1], not normalised')
            array = (array * 255).round().astype(np.uint8)
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise TypeError(f'{type(image).__name__}: expected a path, a PIL image, a NumPy array or a tensor')
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f'an array of {array.dtype}, {array.shape}: expected uint8 of shape (H, W, 3), RGB')
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ValueError(f'{array.shape[1]}x{array.shape[0]} pixels: more than max_pixels={max_pixels}')
    return np.ascontiguousarray(array)
