"""Task files: safetensors with the trained tensors of one task, and a JSON description. docs/task_files.md."""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..models import PromptedViT
from ..weights.fingerprint import trunk_fingerprint
from .plain_config import TaskFileError, check_model_config, plain_model_config

FORMAT, VERSION = 'mmseg_davpt.task', 1
SUFFIX = '.task.safetensors'
FINGERPRINT = 'backbone.trunk_fingerprint'
_TRUNK = 'backbone.trunk.'
_MAX_HEADER = 8 * 2**20  # bytes
_MAX_CLASSES = 4096
_DTYPES = {'F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'U8', 'BOOL'}


@dataclass(frozen=True)
class TaskInfo:
    """What a task file says about itself; all of it is plain data.

    Attributes:
        model: Model config for inference, see :func:`~mmseg_davpt.tasks.plain_model_config`.
        classes: Name of each class.
        palette: RGB color of each class, 0 to 255.
        reduce_zero_label: Whether id 0 of the masks means unlabelled.
        resize: Size to which images are resized for inference, ``dict(scale=[w, h], keep_ratio=bool)``, or ``None``.
        position_grid: Height and width of the trunk's position table in patches, or ``None`` without a table.
        metrics: Name -> value of the last validation.
        versions: Package -> version that wrote the file.
        config_hash: Hash of the run's config.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    reduce_zero_label: bool = False
    resize: dict[str, Any] | None = None
    position_grid: tuple[int, int] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    config_hash: str = ''

    @property
    def arch(self) -> str:
        """timm name of the trunk."""
        return str(self.model['backbone']['arch'])


def task_state(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Everything in a model's state that is no frozen tensor of the trunk, and the fingerprint of the trunk.

    Args:
        model: A segmentor with a :class:`~mmseg_davpt.PromptedViT`; its trunk has its pretrained weights.
        state: Its tensors, if others than the model's own count (averaged weights).

    Raises:
        TaskFileError: More than half of the trunk is trained in place, so that the file would hold the trunk.
    """
    backbone = model.backbone
    assert isinstance(backbone, PromptedViT)
    backbone.require_weights()
    trunk = backbone.trunk.state_dict()
    trained = {name for name, parameter in backbone.trunk.named_parameters() if parameter.requires_grad}
    share = sum(trunk[name].numel() for name in trained) / sum(tensor.numel() for tensor in trunk.values())
    if share > 0.5:
        raise TaskFileError(
            f'tuning={backbone.tuning!r} trains {100 * share:.0f} % of the trunk: a task file would hold the trunk itself. '
            'Keep the full checkpoint'
        )
    state = model.state_dict() if state is None else state
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(_TRUNK)}
    kept |= {_TRUNK + name: state[_TRUNK + name] for name in sorted(trained)}
    kept[FINGERPRINT] = trunk_fingerprint(trunk, trained)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in kept.items()}


def write_task(path: str | Path, state: Mapping[str, Tensor], info: TaskInfo) -> None:
    """Write a task file: under a temporary name, then renamed, so that the final name never holds a part of it.

    Args:
        path: File to write; its folder is made.
        state: Tensors, from :func:`task_state`.
        info: The description.

    Raises:
        TaskFileError: A tensor with inf or nan, or a description that :func:`read_task` would refuse.
    """
    _check_info(info)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TaskFileError(f'{name} has inf or nan: the task file {path} was not written')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    description = json.dumps(dict(format_version=VERSION, **asdict(info)), allow_nan=False)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    try:
        save_file(dict(state), part, metadata={FORMAT: description})
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # mkstemp makes files private
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def is_task_file(path: str | Path) -> bool:
    """Whether a file is a task file, by its content."""
    try:
        return FORMAT in _read_header(Path(path)).get('__metadata__', {})
    except (OSError, TaskFileError):
        return False


def read_info(path: str | Path) -> TaskInfo:
    """Read the description of a task file, and check it.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: It is no task file, of a newer format, damaged or hostile; the message names file and key.
    """
    path = Path(path)
    try:
        header = _read_header(path)
        return _parse(header)
    except TaskFileError as error:
        raise TaskFileError(f'{path}: {error}') from error


def read_task(path: str | Path) -> tuple[TaskInfo, dict[str, Tensor]]:
    """Read a task file. Nothing in it is executed.

    Args:
        path: The file.

    Returns:
        The description, and the tensors.

    Raises:
        FileNotFoundError: There is no such file.
        TaskFileError: As :func:`read_info`; or a tensor has inf or nan.
    """
    info = read_info(path)
    state = {}
    try:
        with safe_open(str(path), framework='pt') as file:
            for name in file.keys():
                state[name] = file.get_tensor(name)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise TaskFileError(f'{path}: damaged: {error}') from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TaskFileError(f'{path}: {name} has inf or nan')
    if FINGERPRINT not in state:
        raise TaskFileError(f'{path}: {FINGERPRINT} is missing')
    return info, state


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON header, with bounds on its size before anything is parsed."""
    size = path.stat().st_size
    with path.open('rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise TaskFileError('no task file: it has no safetensors header, or a part of the file is missing')
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f'damaged header: {error}') from error
    if not isinstance(header, dict) or not isinstance(header.get('__metadata__', {}), dict):
        raise TaskFileError('damaged header: expected a mapping')
    return header


def _parse(header: Mapping[str, Any]) -> TaskInfo:
    text = header.get('__metadata__', {}).get(FORMAT)
    if not isinstance(text, str):
        raise TaskFileError('no task file: the header holds no description')
    for name, entry in header.items():
        if name != '__metadata__' and (not isinstance(entry, dict) or entry.get('dtype') not in _DTYPES):
            raise TaskFileError(f'{name[:80]}: expected a tensor of one of the types {", ".join(sorted(_DTYPES))}')
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskFileError(f'damaged description: {error}') from error
    version = values.pop('format_version', None) if isinstance(values, dict) else None
    if version != VERSION:
        raise TaskFileError(f'format_version={version!r}: this version of mmseg_davpt reads {VERSION}')
    if unknown := sorted(values.keys() - TaskInfo.__annotations__.keys()):
        raise TaskFileError(f'{unknown[0][:80]}: unknown key')
    try:
        info = TaskInfo(**values)
        palette = tuple(tuple(color) for color in info.palette)
        grid = info.position_grid
        values |= dict(classes=tuple(info.classes), palette=palette, position_grid=grid and tuple(grid))
        info = TaskInfo(**values)
    except TypeError as error:
        raise TaskFileError(f'damaged description: {error}') from error
    _check_info(info)
    return info


def _check_info(info: TaskInfo) -> None:
    check_model_config(info.model)
    number = len(info.classes)
    if not 1 <= number <= _MAX_CLASSES or not all(_is_text(name) for name in info.classes):
        raise TaskFileError(f'classes: expected 1 to {_MAX_CLASSES} names of 1 to 100 printable characters')
    if number != info.model['decode_head'].get('num_classes'):
        raise TaskFileError(
            f'classes: {number} names, but decode_head.num_classes={info.model["decode_head"].get("num_classes")!r}'
        )
    colors = [list(color) for color in info.palette]
    if len(colors) != number or not all(len(color) == 3 and all(_is_byte(x) for x in color) for color in colors):
        raise TaskFileError(f'palette: expected {number} colors of three numbers from 0 to 255')
    if not isinstance(info.reduce_zero_label, bool):
        raise TaskFileError(f'reduce_zero_label={info.reduce_zero_label!r}: expected true or false')
    if info.resize is not None and not _is_resize(info.resize):
        raise TaskFileError(f'resize={info.resize!r}: expected scale: [width, height] and keep_ratio: true or false')
    if info.position_grid is not None and not _is_pair(info.position_grid, 4096):
        raise TaskFileError(f'position_grid={info.position_grid!r}: expected height and width in patches')
    for name, value in info.metrics.items():
        if not _is_text(name) or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TaskFileError(f'metrics: expected names and finite numbers, not {str(name)[:40]}={value!r}')
    for name, value in info.versions.items():
        if not _is_text(name) or not _is_text(value):
            raise TaskFileError('versions: expected names and versions')
    if not isinstance(info.config_hash, str) or len(info.config_hash) > 64:
        raise TaskFileError('config_hash: expected at most 64 characters')


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 100 and value.isprintable()


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_pair(value: object, most: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(x, int) and not isinstance(x, bool) and 0 < x <= most for x in value)
    )


def _is_resize(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {'scale', 'keep_ratio'}
        and _is_pair(value['scale'], 100_000)
        and isinstance(value['keep_ratio'], bool)
    )


__all__ = [
    'FINGERPRINT',
    'SUFFIX',
    'TaskFileError',
    'TaskInfo',
    'is_task_file',
    'plain_model_config',
    'read_info',
    'read_task',
    'task_state',
    'write_task',
]
