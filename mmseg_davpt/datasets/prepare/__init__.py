"""Download, check, unpack, convert and count published datasets."""

from .download import DataError
from .prepare import prepare
from .sources import SOURCES, Source

__all__ = ['SOURCES', 'DataError', 'Source', 'prepare']
