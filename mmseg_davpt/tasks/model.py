"""A task file and a trunk -> a segmentor; several tasks share the tensors of one trunk."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..models.trunk_state import FINGERPRINT
from ..options import wrong
from ..weights import WeightsError
from .description import TaskFileError, TaskInfo
from .file import TRUNK, read_task


def build_task(path: str | Path, trunk: str | Path | bool = True) -> tuple[TaskInfo, BaseSegmentor]:
    """Build the segmentor of a task file on its trunk.

    The file may come from anybody: nothing in it is executed, and no more memory is used than its tensors and the trunk
    account for.

    Args:
        path: The task file.
        trunk: Weights of the trunk: the path of a file (``docs/weights.md``), or ``True`` or ``'timm'`` for timm's hub.

    Returns:
        The description, and the segmentor in eval mode, frozen, on the CPU.

    Raises:
        FileNotFoundError: There is no task file.
        TaskFileError: It is damaged or hostile, or its tensors are not those of its model.
        WeightsError: The trunk cannot be loaded, or is another one than that of the task.
    """
    info, tensors = read_task(path)
    config = ConfigDict(deepcopy(info.model))
    config['backbone']['pretrained'] = False
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmseg')
    try:
        with torch.device('meta'):
            expected = MODELS.build(config)
    except Exception as error:  # whatever a class raises for unknown options
        raise TaskFileError(f'{path}: its model cannot be built: {type(error).__name__}: {error}') from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith('guidance.')}
    _require_match(tensors, expected, str(path))
    config['backbone']['pretrained'] = _trunk_source(trunk)
    model: BaseSegmentor = MODELS.build(config)
    try:
        model.load_state_dict({**tensors, f'backbone.{FINGERPRINT}': info.trunk.to_dict()})
    except WeightsError as error:
        raise type(error)(f'{path}: {error}') from error
    return info, model.eval().requires_grad_(False)


def _trunk_source(trunk: Any) -> str | bool:
    if trunk is True or trunk == 'timm':
        return True
    if isinstance(trunk, (str, Path)) and str(trunk):
        return str(trunk)
    raise wrong('trunk', trunk, "the path of a file with the trunk's weights, or 'timm' for timm's hub")


def _require_match(tensors: dict[str, Tensor], model: nn.Module, source: str) -> None:
    """Refuse tensors that are not those of the model, but for its frozen trunk."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TRUNK) or name in trained
    }
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise TaskFileError(f'{source}: {name} is {"missing" if name in expected else "no tensor of its model"}')
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape or tensors[name].dtype.is_floating_point != tensor.is_floating_point():
            raise TaskFileError(
                f'{source}: {name} is {tuple(tensors[name].shape)} {tensors[name].dtype} instead of '
                f'{tuple(tensor.shape)} {tensor.dtype}'
            )


def share_trunk(model: BaseSegmentor, other: BaseSegmentor) -> int:
    """Let a model use the tensors of another model's trunk wherever they are equal.

    Args:
        model: Its trunk drops its copies.
        other: The model that keeps them.

    Returns:
        Number of bytes that are now shared. What differs, such as tuned biases, stays the model's own.
    """
    theirs = dict(other.backbone.trunk.named_parameters()) | dict(other.backbone.trunk.named_buffers())
    shared = 0
    for path, module in model.backbone.trunk.named_modules():
        for slots in (module._parameters, module._buffers):
            for name, tensor in slots.items():
                same = theirs.get(f'{path}.{name}'.removeprefix('.'))
                if tensor is None or same is None or same.dtype != tensor.dtype or not torch.equal(tensor, same):
                    continue
                slots[name] = same
                shared += same.nbytes
    return shared
