"""Loaders of images and masks that check what they read and name the files in every error."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from .image_files import (
    MAX_PIXELS,
    ImageFileError,
    check_file,
    check_mask_file,
    describe_mismatch,
    describe_orientation,
    first_line,
)

# EXIF orientations that this process has warned about.
_warned: set[int] = set()


@TRANSFORMS.register_module()
class CheckedLoadImageFromFile(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, with errors that name the file, also for truncated and animated files.

    Args:
        max_pixels: Largest number of pixels of an image.
        **kwargs: As for ``LoadImageFromFile``.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.max_pixels = max_pixels

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load the image.

        Args:
            results: Information on the sample, with ``img_path``.

        Returns:
            ``results`` with ``img``, ``img_shape``, ``ori_shape`` and ``exif_orientation``; ``None`` for an unreadable
            image if ``ignore_empty``.

        Raises:
            ImageFileError: The image cannot be read, or is damaged.
        """
        path = results['img_path']
        try:
            results['exif_orientation'] = _check_image(path, self.backend_args, self.max_pixels)
            return super().transform(results)
        except Exception as error:  # a decoder may raise any exception
            if self.ignore_empty:
                return None
            raise ImageFileError(f'image {path}: {_reason(error)}') from error


@TRANSFORMS.register_module()
class CheckedLoadAnnotations(LoadAnnotations):
    """mmseg's ``LoadAnnotations``, which refuses what would train on wrong labels, and names the files.

    A mask must have the size of the image as it was read, that is turned by its EXIF orientation with the usual
    readers; one id of a class, or ``ignore_index``, per pixel; and no damage. Samples of no dataset, as in
    ``mmseg.apis.inference_model``, pass unchanged: they have no mask.

    Args:
        num_classes: Number of classes; ids are not checked if ``None``.
        ignore_index: Id of pixels without a class, after ``reduce_zero_label``.
        **kwargs: As for ``LoadAnnotations``.
    """

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # reduce_zero_label is not deprecated here: it must agree with the dataset's
            warnings.filterwarnings('ignore', message='`reduce_zero_label` will be deprecated')
            super().__init__(**kwargs)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load the mask.

        Args:
            results: Information on the sample, with ``img_path`` and ``seg_map_path``, and the shape of its image.

        Returns:
            ``results`` with ``gt_seg_map``, uint8, ``(H, W)``.

        Raises:
            ImageFileError: The mask cannot be read, is damaged, or does not fit the image or the classes.
        """
        if 'seg_fields' not in results:
            return results
        image, path = results.get('img_path'), results.get('seg_map_path')
        try:
            if path is None:
                raise ImageFileError('the dataset names no mask: set data_prefix.seg_map_path')
            self._load_checked(results, path)
        except Exception as error:  # as above
            raise ImageFileError(f'mask {path} of image {image}: {_reason(error)}') from error
        return results

    def _load_checked(self, results: dict[str, Any], path: str) -> None:
        if 'exif_orientation' not in results and 'img_path' in results:  # another loader read the image
            try:
                results['exif_orientation'] = _check_image(results['img_path'], self.backend_args, sys.maxsize)
            except ImageFileError as error:
                raise ImageFileError(f'the image is {error}') from error
        header = check_mask_file(fileio.get(path, backend_args=self.backend_args), self.imdecode_backend)
        self._load_seg_map(results)
        mask: np.ndarray = results['gt_seg_map']
        if mask.ndim < 2 and header is not None:  # LoadAnnotations squeezes masks that are one pixel high or wide
            mask = results['gt_seg_map'] = mask.reshape(header.size[::-1])
        if mask.ndim != 2:
            raise ImageFileError(f'{mask.shape[-1]} channels instead of one id per pixel')
        shape = results.get('ori_shape')
        if shape is not None and mask.shape != tuple(shape[:2]):
            raise ImageFileError(describe_mismatch(shape, mask.shape, results.get('exif_orientation', 1)))
        if self.num_classes is not None:
            wrong = mask[(mask >= self.num_classes) & (mask != self.ignore_index)]
            if wrong.size:
                raise ImageFileError(
                    f'id {wrong[0]} (after reduce_zero_label={self.reduce_zero_label}) in {wrong.size:,} pixels, but '
                    f'there are {self.num_classes} classes: 0 to {self.num_classes - 1}, {self.ignore_index} = ignored '
                    '(num_classes and ignore_index of CheckedLoadAnnotations). Run tools/check_dataset.py'
                )


def _check_image(path: str, backend_args: dict[str, Any] | None, max_pixels: int) -> int:
    """Check an image file; its EXIF orientation."""
    header = check_file(fileio.get(path, backend_args=backend_args), max_pixels)
    orientation = 1 if header is None else header.orientation
    if orientation != 1 and orientation not in _warned:
        _warned.add(orientation)
        warnings.warn(
            f'{path}: {describe_orientation(orientation)}. Further images with this orientation are not named; '
            'tools/check_dataset.py lists them',
            stacklevel=2,
        )
    return orientation


def _reason(error: Exception) -> str:
    if isinstance(error, ImageFileError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f'cannot be read ({first_line(error)})'
