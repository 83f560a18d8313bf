"""Files that are never written in part."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that its name never holds a part of it, also after a crash or a power cut.

    The content goes to ``.NAME.tmp`` in the same folder, to the disk, and is then renamed.

    Args:
        path: File to write; its folder is created.
        content: The bytes.

    Raises:
        OSError: The file could not be written, for instance on a full disk. What ``path`` held before is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(
            error.errno,
            f'{path} could not be written: {error.strerror}. Files that were written before are complete and kept. '
            'Free space (or mend the folder), then continue with --resume',
        ) from error
    if os.name == 'posix':  # the rename itself reaches the disk with its folder; not every file system offers that
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
