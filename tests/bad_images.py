"""Image and mask files with faults, for the tests of everything that reads images."""

import io
import struct
import zlib

from PIL import Image


def encoded(image, kind='PNG', **options):
    """Bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def truncated_jpeg(image):
    data = encoded(image, 'JPEG', quality=95)
    start = data.rfind(b'\xff\xda')  # of the scan
    return data[: (start + len(data)) // 2]


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, rows, bits=8, color=0):
    """A PNG from its raw rows, each with its filter byte in front."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def huge_header(width, height):
    """A small file that claims to be a large image."""
    return png(width, height, b'')


def many_frames(image, path):
    image.save(path, save_all=True, append_images=[image.rotate(90), image.rotate(180)])


def save_turned(image, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
