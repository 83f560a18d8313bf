"""Task files: safetensors with the trained tensors of one task, and a description. ``docs/task_files.md``."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..files import write_atomically
from ..models import PromptedViT
from ..models.trunk_state import FINGERPRINT
from ..weights.checkpoints import FLOATS, value_problem
from ..weights.fingerprint import TrunkFingerprint
from .description import TaskFileError, TaskInfo

# Keys in the metadata of the safetensors header: the description, and a checksum of it and of the tensors.
METADATA, CHECKSUM = 'mmseg_davpt.task', 'mmseg_davpt.sha256'
SUFFIX = '.task.safetensors'
SCHEME = r'(?!\w+://).*\.task\.safetensors$'  # paths, no URLs
TRUNK = 'backbone.trunk.'
_MAX_HEADER = 8 * 2**20  # bytes
_MAX_SHARE = 0.5  # of the trunk that a task may train in place
_TYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


def task_backbone(model: nn.Module) -> PromptedViT:
    """Return the backbone of a segmentor whose task can be kept without its trunk.

    Args:
        model: A segmentor.

    Raises:
        TaskFileError: Its backbone is no :class:`~mmseg_davpt.PromptedViT`, or more than half of the trunk is trained
            in place, so that the file would hold the trunk.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, PromptedViT):
        raise TaskFileError(f'task files are for segmentors with a PromptedViT, not with {type(backbone).__name__}')
    trained = sum(p.numel() for p in backbone.trunk.parameters() if p.requires_grad)
    share = trained / sum(p.numel() for p in backbone.trunk.parameters())
    if share > _MAX_SHARE:
        raise TaskFileError(
            f'tuning={backbone.tuning!r} trains {100 * share:.0f} % of the trunk in place: a task file would hold the '
            'trunk itself. Keep full checkpoints (SafeCheckpointHook)'
        )
    return backbone


def task_state(
    backbone: PromptedViT, state: Mapping[str, Any], fingerprint: TrunkFingerprint, prefix: str = ''
) -> dict[str, Any]:
    """Replace the frozen trunk in a state dict by its fingerprint.

    Args:
        backbone: The backbone that the state dict is of.
        state: State dict of the segmentor, or of its averaged weights.
        fingerprint: Of the backbone's trunk.
        prefix: Text before ``backbone.`` in the names.

    Returns:
        All other entries: parameters and buffers of methods, neck, head and guidance, and the tensors of the trunk that
        are trained in place. ``PromptedViT`` adds its own trunk when it is loaded.
    """
    trained = {name for name, parameter in backbone.trunk.named_parameters() if parameter.requires_grad}
    trunk = prefix + TRUNK
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(trunk) or name.removeprefix(trunk) in trained
    }
    return {**kept, f'{prefix}backbone.{FINGERPRINT}': fingerprint.to_dict()}


def write_task(path: str | Path, info: TaskInfo, state: Mapping[str, Any]) -> None:
    """Write a task file. Its name never holds a part of it.

    Args:
        path: File to write; its folder is made.
        info: Description of the task.
        state: From :func:`task_state`. The fingerprint in it is left out: it is in the description.

    Raises:
        TaskFileError: A tensor of an unknown type or with inf or nan, or a description that :func:`read_task` would
            refuse.
        OSError: The file could not be written.
    """
    description = info.to_json()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    _check_tensors(tensors, str(path))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {METADATA: description, CHECKSUM: _checksum(description, tensors)}
    write_atomically(path, save(tensors, metadata))


def is_task_file(path: str | Path) -> bool:
    """Return whether a file is a task file, by its content."""
    try:
        header, _ = _read_header(Path(path))
    except (OSError, TaskFileError):
        return False
    return METADATA in header.get('__metadata__', {})


def read_info(path: str | Path) -> TaskInfo:
    """Read the description in a task file. The checksum is that of the whole file: :func:`read_task` checks it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: It is no task file, of another version, damaged or hostile; the message names file and key.
    """
    return _read_description(Path(path))[0]


def _read_description(path: Path) -> tuple[TaskInfo, str, str]:
    """The description, its text, and the checksum."""
    try:
        header, length = _read_header(path)
        text, checksum = (header.get('__metadata__', {}).get(key) for key in (METADATA, CHECKSUM))
        if not isinstance(text, str) or not isinstance(checksum, str):
            raise TaskFileError('it is no task file: its header holds no description')
        info = TaskInfo.from_json(text)
        _check_layout(header, path.stat().st_size - length)
    except TaskFileError as error:
        raise TaskFileError(f'{path}: {error}') from error
    return info, text, checksum


def read_task(path: str | Path) -> tuple[TaskInfo, dict[str, Tensor]]:
    """Read a task file. Nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The description, and the tensors by name.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: As :func:`read_info`; or the checksum does not match, or a tensor has an unknown type, inf or
            nan.
    """
    info, description, checksum = _read_description(Path(path))
    try:
        tensors: dict[str, Tensor] = load(Path(path).read_bytes())
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TaskFileError(f'{path} is damaged: {error}') from error
    if _checksum(description, tensors) != checksum:
        raise TaskFileError(f'{path} is damaged: its content has another checksum. Get the file again')
    _check_tensors(tensors, str(path))
    return info, tensors


@CheckpointLoader.register_scheme(SCHEME)
def task_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a task file as mmengine and mmseg expect a checkpoint. They call it for paths that end with ``SUFFIX``.

    Args:
        path: The file.
        map_location: Not used: tensors are on the CPU.

    Returns:
        ``state_dict`` with the fingerprint of the trunk (:func:`task_state`), and ``meta`` with ``dataset_meta``.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: See :func:`read_task`.
    """
    info, tensors = read_task(path)
    meta = dict(
        classes=info.classes,
        palette=[list(color) for color in info.palette],
        reduce_zero_label=info.reduce_zero_label,
    )
    state = {**tensors, f'backbone.{FINGERPRINT}': info.trunk.to_dict()}
    return dict(state_dict=state, meta=dict(dataset_meta=meta))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header and the number of bytes up to its end; its size is bounded before it is read."""
    size = path.stat().st_size
    with path.open('rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise TaskFileError('it is no task file: it has no safetensors header, or is cut short')
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f'its header is damaged: {type(error).__name__}') from error
    if not isinstance(header, dict) or not isinstance(header.get('__metadata__', {}), dict):
        raise TaskFileError('its header is damaged: expected a mapping')
    return header, 8 + length


def _check_layout(header: Mapping[str, Any], size: int) -> None:
    """Refuse a file that is shorter or longer than its tensors."""
    try:
        end = max((entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__'), default=0)
        if end != size:
            raise TaskFileError(f'its tensors take {end} bytes, but the file holds {size}: it is cut short or damaged')
    except (TypeError, KeyError, IndexError) as error:
        raise TaskFileError('its header is damaged: an entry without data_offsets') from error


def _check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise TaskFileError(f'{source}: {name} is {tensor.dtype}: expected one of {", ".join(map(str, _TYPES))}')
        if problem := value_problem(tensor, tensor.dtype):
            raise TaskFileError(f'{source}: {name} {problem}')


def _checksum(description: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the description and of names, types, shapes and values of the tensors."""
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
