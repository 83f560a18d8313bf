"""Weight files -> tensors: safetensors, torch, TorchScript and NumPy archives.

The content of a file decides on its format, never its name. No function here runs code from a file.
"""

from __future__ import annotations

import argparse
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..compat import checkpoint_types


class WeightsError(RuntimeError):
    """Pretrained weights are missing or unreadable, or do not fit the trunk."""


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
        WeightsError: The file is missing, damaged, of another format, or holds objects whose loading would run code.
    """
    kind = _kind(path)
    try:
        if kind == 'safetensors':
            return load_file(path)
        if kind == 'torchscript':
            return _read_torchscript(path)
        with _checkpoint_globals(), path.open('rb') as file:  # given a path, torch decides by the name
            return torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        raise WeightsError(f'Cannot read weights from {path}: {_reason(path, kind, error)}') from error


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
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith('.npy') for name in names):
            return 'npz'
        if any(name.endswith('/constants.pkl') for name in names):
            return 'torchscript'
    return 'torch'


_lock = threading.Lock()


@contextmanager
def _checkpoint_globals() -> Iterator[None]:
    """Allow argparse's options and what mmengine logs, beside tensors, for one ``torch.load``.

    torch keeps one list for the whole process. It is restored afterwards. An entry of other code that stands for
    ``getattr`` is left out meanwhile: of two entries with one name, torch takes either.
    """
    with _lock:
        before = torch.serialization.get_safe_globals()
        kept = [entry for entry in before if entry is not getattr and not _is_named_getattr(entry)]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([*kept, argparse.Namespace, *checkpoint_types()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _is_named_getattr(entry: Any) -> bool:
    return isinstance(entry, tuple) and entry[1] == 'builtins.getattr'


def _reason(path: Path, kind: str, error: Exception) -> str:
    if kind == 'torch' and not zipfile.is_zipfile(path):
        start = path.read_bytes()[:24]
        if start[:1] != b'\x80':  # the first byte of every pickle, thus of every legacy torch file
            return (
                f'it is no safetensors, torch or .npz file, it starts with {start!r}. Download it again: it is '
                'incomplete, a web page, or a pointer of Git LFS'
            )
    if blocked := re.search(r"GLOBAL (\S+( of '\w+')?)", str(error)):
        return (
            f'it holds objects whose loading would run code ({blocked[1]}). If you trust the file, save only its '
            "tensors: torch.save(torch.load(FILE, 'cpu', weights_only=False)['state_dict'], NEW_FILE)"
        )
    return f'{type(error).__name__}: {error}'


_STORAGES = {
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'DoubleStorage': torch.float64,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'BoolStorage': torch.bool,
}


class _Inert:
    """Replaces every class that a TorchScript archive names. It keeps attributes and has no behaviour."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.__dict__.update(state if isinstance(state, Mapping) else {})


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that resolves tensors and dicts only, so that no file can run code.

    ``torch.load(weights_only=True)`` refuses TorchScript archives, and ``torch.jit.load`` builds the module with its
    code. OpenAI published CLIP in this format only.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f'{root}/data.pkl'))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset).clone()
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        if module == 'torch' and name in _STORAGES:
            return _STORAGES[name]
        return _Inert

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f'{self.root}/data/{key}'))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if numel else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith('/constants.pkl')).rsplit('/', 1)[0]
        if f'{root}/byteorder' in archive.namelist() and archive.read(f'{root}/byteorder') != b'little':
            raise ValueError('the file was written on a big-endian machine')
        return dict(_flatten(_TensorUnpickler(archive, root).load(), ''))


def _flatten(module: object, prefix: str) -> list[tuple[str, Tensor]]:
    tensors = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors.append((prefix + name, value))
        elif isinstance(value, _Inert):
            tensors += _flatten(value, f'{prefix}{name}.')
    return tensors
