"""Download files; an interrupted download is continued."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

_BLOCK = 1 << 20


class DataError(RuntimeError):
    """A dataset cannot be prepared or is incomplete; the message names the remedy."""


def download(url: str, path: Path, digest: str | None = None, tries: int = 5, timeout: float = 30) -> Path:
    """Download a file, or continue an interrupted download.

    An incomplete file is called ``PATH.part``. It is continued where a wrong result would be noticed: the digest is
    known, or the server still has the version (``ETag`` or ``Last-Modified``, kept in ``PATH.part.version``) that the
    first part is of. Otherwise the download begins anew.

    Args:
        url: ``https``; ``http`` only with ``digest``, or from this machine itself.
        path: File to write. An existing file is checked and kept.
        digest: Expected ``ALGORITHM:HEX`` of the file; not checked if ``None``.
        tries: Number of connections before giving up.
        timeout: Seconds to wait for data.

    Returns:
        ``path``.

    Raises:
        DataError: No connection, an address that anybody on the way could answer for, not enough space, an incomplete
            transfer, a web page in place of a file, or another file than expected.
    """
    if path.is_file():
        if digest is not None and _digest(path, digest) != digest:
            raise DataError(f'{path} is not the expected file ({digest}): delete it and run this again')
        return path
    _require_safe(url, digest is not None, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version = path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.part.version')
    for attempt in range(tries):
        time.sleep(min(attempt, 10))
        try:
            total = _fetch(url, part, version, digest is not None, timeout)
        except urllib.error.HTTPError as error:
            raise DataError(f'{url}: the server answers {error.code} {error.reason}') from error
        except (OSError, http.client.HTTPException, _WrongPart) as error:
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
    if digest is not None:
        found = _digest(part, digest)
        wrong = None if found == digest else f'expected {digest}, got {found}'
    else:
        wrong = _why_damaged(part, path.suffix)
    if wrong is not None:
        part.unlink()
        version.unlink(missing_ok=True)
        raise DataError(f'{url} is not the expected file: {wrong}. Removed: run this again')
    os.replace(part, path)
    version.unlink(missing_ok=True)
    return path


class _WrongPart(Exception):
    """The server sent something else than the rest of the file. The next connection begins anew."""


def _require_safe(url: str, pinned: bool, path: Path) -> None:
    """Plain http may be answered by anybody on the way: it needs a digest. Loopback crosses no network."""
    address = urllib.parse.urlsplit(url)
    local = address.hostname in ('127.0.0.1', '::1', 'localhost')
    if address.scheme != 'https' and not (address.scheme == 'http' and (pinned or local)):
        raise DataError(
            f'{url}: without a known hash of the file, only https is safe. Download it by other means, check it, and '
            f'put it to {path}'
        )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that the first request could have had."""

    def __init__(self, pinned: bool, path: Path) -> None:
        self.pinned, self.path = pinned, path

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _require_safe(newurl, self.pinned, self.path)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, part: Path, version: Path, pinned: bool, timeout: float) -> int | None:
    """Download over one connection.

    Args:
        url: Address.
        part: The incomplete file.
        version: Holds the server's name of the version that ``part`` is of.
        pinned: The digest of the whole file is known.
        timeout: Seconds to wait for data.

    Returns:
        The size of the whole file in bytes, ``None`` if the server states none but marks the end of the data.
    """
    known = version.read_text().strip() if version.is_file() else ''
    have = part.stat().st_size if part.is_file() and (pinned or known) else 0
    headers = {'User-Agent': 'mmseg_davpt'}
    if have:
        headers |= {'Range': f'bytes={have}-'} | ({'If-Range': known} if known else {})
    opener = urllib.request.build_opener(_SafeRedirects(pinned, part.with_suffix('')))
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        stated = error.headers.get('Content-Range', '').rpartition('/')[2]
        if stated == str(have) and _version(error.headers) in ('', known):
            return have  # complete: only the renaming was missed
        part.unlink()  # longer than the file that is served now
        return _fetch(url, part, version, pinned, timeout)
    with response:
        start, total = _place(response, part, have, known)
        if response.headers.get('Content-Encoding', 'identity') != 'identity' or response.status not in (200, 206):
            raise DataError(f'{url}: the server answers {response.status} {response.headers.get("Content-Encoding")}')
        if response.headers.get_content_type() == 'text/html':
            raise DataError(f'{url} is a web page, not a file: it may need a login. Open it in a browser')
        if total is None and not (pinned or response.chunked):
            raise DataError(f'{url}: the server gives no length: an incomplete file would not be noticed')
        if total is not None:
            require_space(part.parent, 2 * total - start, f'{url} ({total:,} bytes) and its contents')
        if not start:
            part.unlink(missing_ok=True)  # first: a part never stands beside the name of another version
            version.write_text(_version(response.headers))
        with (
            part.open('ab' if start else 'wb') as file,
            tqdm(total=total, initial=start, unit='B', unit_scale=True, desc=part.stem, mininterval=1) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    return total


def _place(response: Any, part: Path, have: int, known: str) -> tuple[int, int | None]:
    """Where the body belongs: its first byte in the file, and the size of the whole file if the server states it.

    Raises:
        _WrongPart: A part of another version, or one that does not follow on the bytes on disk, which are removed.
    """
    length = response.headers.get('Content-Length')
    if response.status != 206:
        return 0, int(length) if length and length.isdigit() else None
    begin, _, stated = response.headers.get('Content-Range', '').removeprefix('bytes ').partition('/')
    follows = have > 0 and begin.partition('-')[0] == str(have) and stated.isdigit()
    if not follows or _version(response.headers) not in ('', known):
        part.unlink(missing_ok=True)
        raise _WrongPart(f'bytes {begin or "?"} of version {_version(response.headers) or "?"} came, expected {have}-')
    return have, int(stated)


def _version(headers: Any) -> str:
    """The server's name of a version of a file, as ``If-Range`` takes it: no weak tag."""
    tag = headers.get('ETag', '')
    return tag if tag and not tag.startswith('W/') else headers.get('Last-Modified', '')


def _why_damaged(part: Path, suffix: str) -> str | None:
    """Why a file without a known hash cannot be what its name claims, or ``None``."""
    with part.open('rb') as file:
        beginning = file.read(512).lstrip().lower()
    if beginning.startswith((b'<!doctype html', b'<html')):
        return 'it is a web page'
    if suffix == '.zip' and not zipfile.is_zipfile(part):
        return 'it is no complete zip archive'
    if suffix in ('.tar', '.gz', '.tgz') and not tarfile.is_tarfile(part):
        return 'it is no tar archive'
    return None


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
