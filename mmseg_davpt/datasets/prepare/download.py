"""Download and unpack archives; both continue after an interruption."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

_BLOCK = 1 << 20


class DataError(RuntimeError):
    """A dataset cannot be prepared or is incomplete; the message names the remedy."""


def download(url: str, path: Path, digest: str | None = None, tries: int = 5, timeout: float = 30) -> Path:
    """Download a file, or continue an interrupted download.

    An incomplete file is called ``PATH.part``. A server without range requests sends the whole file again.

    Args:
        url: ``http`` or ``https``.
        path: File to write. An existing file is checked and kept.
        digest: Expected ``ALGORITHM:HEX`` of the file; not checked if ``None``.
        tries: Number of connections before giving up.
        timeout: Seconds to wait for data.

    Returns:
        ``path``.

    Raises:
        DataError: No connection, not enough space, an incomplete transfer, or another file than expected.
    """
    if path.is_file():
        if digest is not None and _digest(path, digest) != digest:
            raise DataError(f'{path} is not the expected file ({digest}): delete it and run this again')
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    for attempt in range(tries):
        time.sleep(min(attempt, 10))
        try:
            total = _fetch(url, part, timeout)
        except urllib.error.HTTPError as error:
            raise DataError(f'{url}: the server answers {error.code} {error.reason}') from error
        except (OSError, http.client.HTTPException) as error:
            failure, total = f'{type(error).__name__}: {error}', None
        else:
            have = part.stat().st_size
            if total is None or have == total:
                break
            if have > total:
                part.unlink()
            failure = f'{have:,} of {total:,} bytes came'
        print(f'{url}: {failure} (try {attempt + 1} of {tries})')
    else:
        raise DataError(f'{url}: {failure}. Run this again: it continues from {part}')
    if digest is not None and (found := _digest(part, digest)) != digest:
        part.unlink()
        raise DataError(f'{url} is not the expected file: expected {digest}, got {found}. Removed: run this again')
    os.replace(part, path)
    return path


def _fetch(url: str, part: Path, timeout: float) -> int | None:
    """Download over one connection. Returns the size of the whole file in bytes, ``None`` if the server states none."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {'User-Agent': 'mmseg_davpt'} | ({'Range': f'bytes={have}-'} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        stated = error.headers.get('Content-Range', '').rpartition('/')[2]
        if stated == str(have):
            return have  # complete: only the renaming was missed
        part.unlink()  # longer than the file that is served now
        return _fetch(url, part, timeout)
    with response:
        length = response.headers.get('Content-Length')
        begin, _, stated = response.headers.get('Content-Range', '').removeprefix('bytes ').partition('/')
        resumed = response.status == 206 and begin.partition('-')[0] == str(have)
        start = have if resumed else 0
        total = int(stated) if resumed and stated.isdigit() else int(length) if length and not resumed else None
        if total is not None:
            require_space(part.parent, 2 * total - start, f'{url} ({total:,} bytes) and its contents')
        with (
            part.open('ab' if resumed else 'wb') as file,
            tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=part.stem, mininterval=1) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    return total


def require_space(folder: Path, size: int, content: str) -> None:
    """Check the free space on the disk.

    Args:
        folder: Folder to write to.
        size: Bytes to write.
        content: Name of the content, for the message.

    Raises:
        DataError: Less than ``size`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DataError(f'{folder} has {free / 1e9:.1f} GB left, {content} need {size / 1e9:.1f} GB')


def _digest(path: Path, like: str) -> str:
    algorithm, size = like.partition(':')[0], path.stat().st_size
    state = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open('rb') as file,
        tqdm(total=size, unit='B', unit_scale=True, desc=f'{algorithm} of {path.name}', mininterval=1) as bar,
    ):
        while block := file.read(_BLOCK):
            state.update(block)
            bar.update(len(block))
    return f'{algorithm}:{state.hexdigest()}'


def unpack(archive: Path, root: Path, places: Mapping[str, str]) -> int:
    """Unpack folders of a zip or tar archive. Existing files of the right size are kept.

    Args:
        archive: ``.zip``, ``.tar`` or ``.tar.gz``.
        root: Folder of the dataset; nothing is written outside of it.
        places: Folder in the archive -> folder below ``root``.

    Returns:
        Number of files in these folders of the archive.

    Raises:
        DataError: The archive is damaged, has a path outside of its folder, or has none of these folders.
    """
    number = 0
    try:
        for name, size, read in tqdm(_members(archive), desc=f'unpack {archive.name}', unit=' files', mininterval=1):
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
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f'{archive} is damaged ({error}): delete it and run this again') from error
    if not number:
        raise DataError(f'{archive} holds none of {", ".join(places)}: is it another archive of this name?')
    return number


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and opener of every regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, partial(file.open, info)
    else:
        with tarfile.open(archive) as file:
            for member in file:
                if member.isfile():
                    yield member.name, member.size, partial(_open_member, file, member)


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
