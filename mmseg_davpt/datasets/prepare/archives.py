"""Unpack archives, with bounds; an interrupted unpacking is continued."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tqdm import tqdm

from .download import DataError

_BLOCK = 1 << 20
# Bounds of what an archive unpacks to; COCO's largest has 118,287 files.
_MAX_FILES, _MAX_RATIO, _SMALL = 1_000_000, 100, 100 << 20
_MAX_HEADER = 16 << 20


def unpack(archive: Path, root: Path, places: Mapping[str, str]) -> int:
    """Unpack folders of a zip or tar archive. Existing files of the right size are kept.

    Args:
        archive: ``.zip``, ``.tar`` or ``.tar.gz``.
        root: Folder of the dataset; nothing is written outside of it.
        places: Folder in the archive -> folder below ``root``.

    Returns:
        Number of files in these folders of the archive.

    Raises:
        DataError: The archive is damaged, has a path outside of its folder, has none of these folders, or unpacks to
            far more than its own size.
    """
    number, allowance = 0, _Allowance(archive)
    try:
        for name, size, read in tqdm(
            _members(archive, allowance), desc=f'unpack {archive.name}', unit=' files', mininterval=1
        ):
            allowance.spend(size)
            target = _target(archive, name, places)
            if target is None:
                continue
            number += 1
            path = root / target
            if path.is_file() and path.stat().st_size == size:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial_path = path.with_name(f'.part-{path.name}')
            with read() as source, partial_path.open('wb') as file:
                shutil.copyfileobj(source, file, _BLOCK)
            if partial_path.stat().st_size != size:
                partial_path.unlink()
                raise EOFError(f'{name} ends early')
            os.replace(partial_path, path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, NotImplementedError) as error:
        raise DataError(f'{archive} is damaged ({error}): delete it and run this again') from error
    if not number:
        raise DataError(f'{archive} holds none of {", ".join(places)}: is it another archive of this name?')
    return number


class _Allowance:
    """What an archive may unpack to: published data is images, which hardly compress. A bomb unpacks to far more.

    Args:
        archive: The archive.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.files, self.bytes = _MAX_FILES, max(_SMALL, _MAX_RATIO * archive.stat().st_size)

    def spend(self, size: int) -> None:
        """Count what is about to be unpacked.

        Raises:
            DataError: More than the archive may unpack to.
        """
        self.files -= 1
        self.bytes -= size
        if min(self.files, self.bytes) < 0:
            raise DataError(
                f'{self.archive} unpacks to more than {_MAX_FILES:,} files or {_MAX_RATIO} times its size: it is not '
                'the expected archive'
            )


class _Bounded(io.RawIOBase):
    """A tar file, maybe compressed, of which a limited number of bytes is read: tarfile trusts the sizes in headers.

    Attributes:
        left: Bytes that may still be read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.left = file, _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f'a header of more than {_MAX_HEADER:,} bytes')
        self.left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _members(archive: Path, allowance: _Allowance) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and opener of every regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if info.flag_bits & 1:
                    raise zipfile.BadZipFile(f'{info.filename} is encrypted')
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(file.open, info)
    else:
        with archive.open('rb') as raw:
            compressed = raw.read(2) == b'\x1f\x8b'
            raw.seek(0)
            content = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if compressed else raw)
            bounded = _Bounded(content)
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode='r:') as file:
                for member in file:
                    if member.isfile():
                        bounded.left = member.size
                        yield member.name, member.size, partial(_open_member, file, member)
                    else:
                        allowance.spend(member.size)
                    bounded.left = _MAX_HEADER


def _open_member(file: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(member)
    assert content is not None, f'{member.name} is no regular file'
    return content


def _target(archive: Path, name: str, places: Mapping[str, str]) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or '..' in path.parts or '\\' in name:
        raise DataError(f'{archive} has the path {name!r}, outside of its folder: it is not the expected archive')
    for theirs, ours in places.items():
        if path.is_relative_to(theirs):
            return str(PurePosixPath(ours) / path.relative_to(theirs))
    return None
