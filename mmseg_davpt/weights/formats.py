"""Weight files -> tensors: safetensors, torch, TorchScript and NumPy archives.

The content of a file decides on its format, never its name. No function here runs code from a file.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from numpy.lib import format as npy
from safetensors.torch import load_file
from torch import Tensor

from ..files import replacing
from ..packaged import tool_command
from .pickles import BoundedUnpickler, Inert, RefusedError, ScriptUnpickler


class WeightsError(RuntimeError):
    """Pretrained weights or a checkpoint are missing or unreadable, or do not fit the model."""


class UnsafeFileError(WeightsError):
    """A file holds objects whose loading would run code."""


_MAX_RATIO, _MIN_BYTES = 20, 2**26  # of a compressed NumPy archive: weights hardly compress


def check_hash(path: Path) -> None:
    """Compare a file with ``FILE.sha256`` beside it, if there is one; ``get_weights.py`` and ``sha256sum`` write such.

    Args:
        path: The file.

    Raises:
        WeightsError: The file has another hash.
    """
    expected = _hash_path(path)
    if not (expected.is_file() and path.is_file()):
        return
    words = expected.read_text(encoding='utf-8', errors='replace').split()
    if not words or words[0].lower() != hash_file(path):
        raise WeightsError(
            f'{path} has another SHA-256 than {expected} states: the file is damaged or was replaced. Get it again; if '
            f'the change is intended, delete {expected.name}'
        )


def write_hash(path: Path) -> Path:
    """Write ``FILE.sha256`` beside a file, in the format of ``sha256sum``.

    Args:
        path: The file. A ``FILE.sha256`` that states its hash is kept.

    Returns:
        ``FILE.sha256``.

    Raises:
        WeightsError: There is no such file, or ``FILE.sha256`` states another hash.
        OSError: ``FILE.sha256`` cannot be written.
    """
    if not path.is_file():
        raise WeightsError(f'No file at {path}, so there is nothing to write a checksum of')
    check_hash(path)
    expected = _hash_path(path)
    if not expected.is_file():
        with replacing(expected) as temporary:
            temporary.write_bytes(os.fsencode(f'{hash_file(path)}  {path.name}\n'))
    return expected


def describe_check(path: Path) -> str:
    """What finds changed bytes when a weight file is read, for the log.

    Args:
        path: A file that :func:`check_hash` accepts.

    Returns:
        ``Checked: ...``, or ``Not checked: ...`` with the remedy: safetensors files and torch files from before
        version 1.6 have no checksums of their own. Without a line break and without a period.
    """
    if _hash_path(path).is_file():
        return f'Checked: SHA-256 in {_hash_path(path).name}'
    if _kind(path) != 'safetensors' and _is_zip(path):
        return 'Checked: CRC-32 of the records in the archive'
    command = tool_command('get_weights', '--checksum', path)
    return f'Not checked: the file has no checksum; write one: {command}'


def _hash_path(path: Path) -> Path:
    return Path(f'{path}.sha256')


def hash_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()  # hashlib.file_digest needs Python 3.11


def is_npz(path: Path) -> bool:
    """Return whether a file is a NumPy archive, the format of Google's ViTs.

    Raises:
        WeightsError: There is no such file.
    """
    return _kind(path) == 'npz'


def read_checkpoint(path: Path) -> Any:
    """Read a safetensors, torch or TorchScript file.

    Args:
        path: The file, under any name.

    Returns:
        The content of the file: a mapping, often nested, with tensors.

    Raises:
        WeightsError: The file is missing, damaged, of another format, or larger in memory than on the disk.
        UnsafeFileError: It holds objects whose loading would run code.
    """
    kind = _kind(path)
    try:
        if kind == 'safetensors':
            return load_file(path)
        if kind == 'torchscript':
            return _read_torchscript(path)
        return _read_zip(path) if _is_zip(path) else _read_legacy(path)
    except Exception as error:  # a damaged file fails in many ways
        if blocked := re.search(r"GLOBAL ((call|object|state|tensor) of .*|\S+( of '\w+')?)", str(error)):
            raise UnsafeFileError(
                f'Cannot read weights from {path}: it holds objects whose loading would run code ({blocked[1]}). If '
                'you trust the file, save only its tensors: '
                "torch.save(torch.load(FILE, 'cpu', weights_only=False)['state_dict'], NEW_FILE)"
            ) from error
        raise WeightsError(f'Cannot read weights from {path}: {_reason(path, kind, error)}') from error


def check_npz(path: Path) -> None:
    """Refuse a NumPy archive whose arrays are not what its records hold, or much larger than the file.

    NumPy reserves the memory for the shape in the header of an array.

    Raises:
        RefusedError: The message names the array.
        Exception: The archive is damaged, in one of many ways.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if len({record.filename for record in records}) < len(records):
            raise RefusedError('two of its records have one name')
        size = sum(record.file_size for record in records)
        if size > max(_MAX_RATIO * path.stat().st_size, _MIN_BYTES):
            raise RefusedError(f'{size} bytes in a file of {path.stat().st_size}: no weights compress so well')
        for record in records:
            with archive.open(record) as file:
                version = npy.read_magic(file)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(file)
                header = file.tell()
            if dtype.hasobject:
                raise RefusedError(f'{record.filename} is an array of objects, whose loading would run code')
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != record.file_size - header:
                raise RefusedError(f'{record.filename} of shape {shape} has {record.file_size - header} bytes')


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of archives on several disks
        return False


def _kind(path: Path) -> str:
    if not path.is_file():
        raise WeightsError(
            f"No pretrained weights at {path}. Give an existing file, pretrained=True for timm's hub, or get "
            'them with tools/get_weights.py.'
        )
    with path.open('rb') as file:
        start = file.read(9)
    if start[8:] == b'{':  # 8 bytes: the size of the JSON header
        return 'safetensors'
    if _is_zip(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception:  # a damaged directory fails in many ways; reading it gives the reason
            return 'torch'
        if any(name.endswith('.npy') for name in names):
            return 'npz'
        if any(name.endswith('/constants.pkl') for name in names):
            return 'torchscript'
    return 'torch'


def _reason(path: Path, kind: str, error: Exception) -> str:
    if kind == 'torch' and not _is_zip(path):
        with path.open('rb') as file:
            start = file.read(24)
        if start[:1] != b'\x80':  # the first byte of every pickle, thus of every legacy torch file
            return (
                f'it is no safetensors, torch or .npz file, it starts with {start!r}. Download it again: it is '
                'incomplete, a web page, or a pointer of Git LFS'
            )
    return str(error) if isinstance(error, RefusedError) else f'{type(error).__name__}: {error}'


class _Records:
    """Records of a zip archive of torch, each read whole, with its checksum, which torch does not check."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.left = path.stat().st_size
        names = self.archive.namelist()
        if len(set(names)) < len(names):
            raise RefusedError('two of its records have one name')
        folders = sorted({name.removesuffix('/data.pkl') for name in names if name.endswith('/data.pkl')}, key=len)
        if not folders:
            raise RefusedError('it is a zip archive without data.pkl, thus none of torch')
        self.folder = folders[0]
        if f'{self.folder}/byteorder' in names and self.read('byteorder') != b'little':
            raise RefusedError('it was written on a big-endian machine')

    def read(self, name: str) -> bytearray:
        """Return the content of a record."""
        info = self.archive.getinfo(f'{self.folder}/{name}')
        self.left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or self.left < 0:
            raise RefusedError(f'{info.filename} is larger than the file: torch does not compress')
        data = bytearray(info.file_size)
        with self.archive.open(info) as record:
            if record.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise EOFError(f'{info.filename} is cut short')
        return data

    def read_storage(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """Return the values of a storage, ``(numel,)``."""
        data = self.read(f'data/{key}')
        if len(data) != numel * dtype.itemsize:
            raise RefusedError(f'the storage {key} has {len(data)} bytes instead of {numel * dtype.itemsize}')
        return torch.frombuffer(data, dtype=dtype) if numel else torch.empty(0, dtype=dtype)


def _read_zip(path: Path, unpickler_class: type[BoundedUnpickler] = BoundedUnpickler) -> Any:
    records = _Records(path)
    with records.archive:
        data = records.read('data.pkl')
        return unpickler_class(io.BytesIO(data), len(data), records.read_storage, path.stat().st_size).load()


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    return dict(_flatten(_read_zip(path, ScriptUnpickler), ''))


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def _read_legacy(path: Path) -> Any:
    """Read a file of torch before 1.6: five pickles, then all values, each storage after its size."""
    size = path.stat().st_size
    storages: dict[str, Tensor] = {}

    def make_storage(key: str, dtype: torch.dtype, numel: int) -> Tensor:
        storages[key] = torch.empty(numel, dtype=dtype)  # filled below
        return storages[key]

    with path.open('rb') as file:
        magic, protocol, system = (BoundedUnpickler(file, size).load() for _ in range(3))
        if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL) or not system['little_endian']:
            raise RefusedError('it is a pickle, but not one of torch.save on a little-endian machine')
        content = BoundedUnpickler(file, size, make_storage, size).load()
        keys = BoundedUnpickler(file, size).load()
        if sorted(map(str, keys)) != sorted(storages):
            raise RefusedError('its list of storages is not that of its tensors')
        for key in keys:
            storage = storages[str(key)]
            (numel,) = struct.unpack('<q', file.read(8))
            if numel != storage.numel():
                raise RefusedError(f'the storage {key} has {numel} values instead of {storage.numel()}')
            data = bytearray(file.read(storage.nbytes))
            if len(data) < storage.nbytes:
                raise EOFError(f'the storage {key} is cut short')
            if data:
                storage.copy_(torch.frombuffer(data, dtype=storage.dtype))
    return content


def _flatten(module: object, prefix: str) -> list[tuple[str, Tensor]]:
    tensors = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors.append((prefix + name, value))
        elif isinstance(value, Inert):
            tensors += _flatten(value, f'{prefix}{name}.')
    return tensors
