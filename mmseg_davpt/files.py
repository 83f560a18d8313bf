"""Files that are never written in part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path in the same folder, whose file takes the name ``path`` when the block ends without error.

    ``path`` never holds a part of a file. After an error, what ``path`` held before is unchanged, and the temporary
    file is removed.

    Args:
        path: File to write; its folder is created.
        durable: Wait until the file is on the disk, so that a power cut cannot damage it either. Slow for many files.

    Yields:
        The path to write to: ``.NAME.tmp``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    if durable and os.name == 'posix':  # the rename reaches the disk with its folder; not all file systems offer that
        with suppress(OSError):
            _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file by :func:`replacing`.

    Args:
        path: File to write; its folder is created.
        content: The bytes.

    Raises:
        OSError: The file could not be written, for instance on a full disk. What ``path`` held before is unchanged.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f'{path} could not be written: {error.strerror}. Files that were written before are complete and kept. '
            'Free space (or repair the folder), then continue with --resume',
        ) from error
