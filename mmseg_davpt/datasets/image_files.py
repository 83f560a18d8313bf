"""Checks of image and mask files: what decoders let pass in silence."""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow's limit. Decoded in 8 bits and 3 channels: 0.5 GB.
MAX_PIXELS = 178_956_970
# What opencv and Pillow both read. Pillow reads more formats, and starts other programs for some (EPS).
FORMATS = ('BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_PNG = b'\x89PNG\r\n\x1a\n'
_ORIENTATION = 0x0112  # EXIF tag
_REDUCED = 254  # TIFF tag; bit 0: the page is a smaller copy of another
_limit = threading.Lock()


class ImageFileError(ValueError):
    """An image or mask file that must not be used; the message gives the reason.

    Args:
        message: The reason.
        kind: What is wrong with a mask that can be read: ``color mask``, ``lossy mask`` or ``bad ids``.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Header:
    """What the header of an image file holds.

    Attributes:
        format: Pillow's name of the format, such as ``'JPEG'``.
        size: (width, height) as stored.
        mode: Pillow's mode, such as ``'L'`` or ``'RGB'``.
        orientation: EXIF orientation, 1 to 8; 1 if there is none.
        scaled: Whether decoders scale the values to 8 bits (gray PNG of 2 or 4 bits).
        bits: Bits of a channel in a PNG; ``None`` in other formats.
    """

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int = 1
    scaled: bool = False
    bits: int | None = None


def read_header(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Header | None:
    """Read the header of an image file; no pixel is decoded.

    Args:
        source: The bytes of the file, or its path.
        max_pixels: Largest number of pixels.

    Returns:
        The header; ``None`` if Pillow cannot read the format.

    Raises:
        ImageFileError: The file is empty or damaged, holds several images, or has too many pixels.
        OSError: The file cannot be opened.
    """
    with _open(source) as image:
        return None if image is None else _header(image, source, max_pixels)


def check_file(data: bytes, max_pixels: int = MAX_PIXELS, decode: bool = False) -> Header | None:
    """Find a damaged or truncated image file, which opencv (4) fills with gray and Pillow may read in part.

    PNG has checksums, and all of its damage is found. JPEG has none: it is only known to be complete.

    Args:
        data: The bytes of the file.
        max_pixels: Largest number of pixels.
        decode: Whether to decode formats strictly whose bytes can be checked (PNG, JPEG).

    Returns:
        The header; ``None`` if Pillow cannot read the format, so that nothing is checked.

    Raises:
        ImageFileError: As :func:`read_header`, or the file is damaged or truncated.
    """
    with _open(data) as image:
        if image is None:
            return None
        header = _header(image, data, max_pixels)
        if header.format == 'PNG':
            _check_chunks(data)
        elif header.format in ('JPEG', 'MPO'):
            complete = data.rfind(b'\xff\xd9') > data.rfind(b'\xff\xda')  # end of image, start of scan
            decode = decode or not complete
            if not complete and data.endswith(bytes(64)):
                raise ImageFileError('truncated: the file ends with zeros instead of the end of the image')
        else:
            decode = True
        if decode:
            try:
                image.load()
            except Exception as error:  # a decoder may raise any exception
                raise ImageFileError(f'damaged or truncated: {first_line(error)}') from error
    return header


def check_mask_file(data: bytes, backend: str = 'pillow') -> Header | None:
    """Find a mask file that is damaged, or whose values are no class ids when it is read.

    Args:
        data: The bytes of the file.
        backend: ``imdecode_backend`` that will read it.

    Returns:
        The header; ``None`` if Pillow cannot read the format, so that nothing is checked.

    Raises:
        ImageFileError: As :func:`check_file`, or the mask is no image of ids.
    """
    header = check_file(data)
    if header is None:
        return None
    if header.format in ('JPEG', 'MPO'):
        raise ImageFileError('a JPEG: its compression changes ids; save masks as PNG', 'lossy mask')
    if header.scaled:
        raise ImageFileError(
            f'a gray PNG of {header.bits} bits, whose values decoders scale to 0 to 255; save masks with 8 bits',
            'bad ids',
        )
    if header.mode == '1' and backend != 'pillow':
        raise ImageFileError(f'1 bit a pixel, which {backend} reads as 0 and 255; save masks with 8 bits', 'bad ids')
    if header.mode == 'F':
        raise ImageFileError('pixels are float, not integers', 'bad ids')
    if header.mode.startswith('I'):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            values = np.asarray(image)
        if values.min() < 0 or values.max() > 255:
            wrong = values[(values < 0) | (values > 255)]
            raise ImageFileError(f'{wrong[0]} in {wrong.size:,} pixels does not fit into 8 bits: no class', 'bad ids')
    elif header.mode not in ('1', 'L', 'P'):
        raise ImageFileError(
            f'colors ({header.mode}) instead of one id per pixel; save masks as 8-bit PNG with one channel',
            'color mask',
        )
    return header


def describe_mismatch(image: tuple[int, ...], mask: tuple[int, ...], orientation: int) -> str:
    """Message that image and mask differ in size.

    The rule: a mask belongs to the image as it is read, which for most readers is turned by its EXIF orientation.

    Args:
        image: (height, width) of the image as it is read.
        mask: (height, width) of the mask.
        orientation: EXIF orientation of the image file.
    """
    text = f'image {image[1]}x{image[0]}, mask {mask[1]}x{mask[0]}'
    if orientation >= 5 and tuple(image) == tuple(mask)[::-1]:
        text += (
            f' (width x height). EXIF orientation {orientation} turns the image when it is read, but never a mask: '
            'draw the mask on the turned image, or save the image without the tag'
        )
    return text


def describe_orientation(orientation: int) -> str:
    """Message about what an EXIF orientation other than 1 does."""
    return f'EXIF orientation {orientation}: the image is turned when it is read, its mask is not'


def first_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else "no message"}'


@contextmanager
def _open(source: bytes | Path) -> Iterator[Image.Image | None]:
    if isinstance(source, bytes) and not source:
        raise ImageFileError('the file is empty')
    try:
        with _limit:  # Pillow's own limit is one number for the process
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = before
    except UnidentifiedImageError:
        if isinstance(source, Path) and not source.stat().st_size:
            raise ImageFileError('the file is empty') from None
        yield None
        return
    except OSError as error:
        if error.errno is not None:  # of the file, not of its content
            raise
        raise ImageFileError(f'damaged: {first_line(error)}') from error
    except Exception as error:  # a parser of a header may raise any exception
        raise ImageFileError(f'damaged: {first_line(error)}') from error
    with image:
        yield image


def _header(image: Image.Image, source: bytes | Path, max_pixels: int) -> Header:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageFileError(f'{width}x{height} are {width * height:,} pixels, more than the limit of {max_pixels:,}')
    scaled, bits = False, None
    if image.format == 'PNG':
        start = source[:26] if isinstance(source, bytes) else _read_start(source)
        bits = start[24]
        scaled = start[25] == 0 and bits in (2, 4)  # gray
    orientation = _orientation(image, source)
    try:
        several = _holds_several(image)
    except Exception as error:  # as above
        raise ImageFileError(f'damaged: {first_line(error)}') from error
    if several:
        raise ImageFileError('animated or of several pages: save the one image that is meant')
    return Header(str(image.format), (width, height), image.mode, orientation, scaled, bits)


def _read_start(path: Path) -> bytes:
    with path.open('rb') as file:
        return file.read(26)


def _orientation(image: Image.Image, source: bytes | Path) -> int:
    # Pillow decodes the whole PNG to find an eXIf chunk that is not in front.
    if image.format == 'PNG' and 'exif' not in image.info and not (isinstance(source, bytes) and b'eXIf' in source):
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data: readers ignore it
        return 1
    return value if value in range(1, 9) else 1


def _holds_several(image: Image.Image) -> bool:
    if image.format != 'TIFF':
        return image.format in ('GIF', 'PNG', 'WEBP') and bool(getattr(image, 'is_animated', False))
    number, pages = 0, 0
    while number < 64:
        try:
            image.seek(number)
        except EOFError:
            break
        pages += not image.tag_v2.get(_REDUCED, 0) & 1  # type: ignore[attr-defined]
        number += 1
    image.seek(0)
    return pages > 1


def _check_chunks(data: bytes) -> None:
    """Check order, lengths and checksums of the chunks of a PNG."""
    position = len(_PNG)
    view = memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], 'big')
        kind = bytes(view[position + 4 : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], 'big'):
            raise ImageFileError(f'damaged: the checksum of chunk {kind!r} at byte {position:,} is wrong')
        if kind == b'IEND':
            return
        position = end + 4
    raise ImageFileError(f'truncated: the PNG ends at byte {len(data):,} without its last chunk')
