"""The model config of a task file: plain data that names only known classes.

A task file may come from anybody. Its config must build the model and do nothing else: no import, no download, no other
file, no more memory than the file's own tensors account for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Classes that a task file may name. Each only computes: none reads a file or imports a module.
ALLOWED_TYPES = frozenset({
    # segmentors, preprocessing, backbone
    'EncoderDecoder', 'PromptedEncoderDecoder', 'SegDataPreProcessor', 'PromptedViT',
    # necks
    'Feature2Pyramid', 'MultiLevelNeck', 'MLANeck', 'FPN',
    # heads
    'LinearBNHead', 'UPerHead', 'FCNHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'SegformerHead',
    'SegmenterMaskTransformerHead', 'SETRUPHead', 'SETRMLAHead', 'FPNHead',
    # layers
    'BN', 'BN2d', 'SyncBN', 'GN', 'LN', 'LN2d', 'IN', 'ReLU', 'ReLU6', 'GELU', 'SiLU', 'LeakyReLU', 'Conv', 'Conv2d',
    # the loss of a head, which inference does not compute
    'CrossEntropyLoss',
})  # fmt: skip
LOSS = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
# Keys that training alone needs, or that make a class read a file.
_DROPPED = {'init_cfg', 'pretrained', 'train_cfg', 'auxiliary_head', 'guidance', 'sampler', 'allow_random', 'with_cp'}
_MAX_NUMBER = 16384
_MAX_TEXT = 200
_MAX_ITEMS = 2000
_MAX_DEPTH = 12


class TaskFileError(ValueError):
    """A task file is damaged, hostile, or does not fit."""


def plain_model_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model config that inference needs, as plain data.

    Args:
        model: ``cfg.model`` of a run.

    Returns:
        Nested dicts, lists, strings, numbers, booleans and ``None``. Losses are replaced by one default;
        ``pretrained``, ``init_cfg``, the auxiliary head, the guidance and ``train_cfg`` are left out.

    Raises:
        TaskFileError: A class that task files may not name, or a value that is no plain data.
    """
    plain = _plain(model, 'model')
    check_model_config(plain)
    return plain


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items() if key not in _DROPPED}
        if 'loss_decode' in items:
            items['loss_decode'] = LOSS
        return {key: _plain(item, f'{path}.{key}') for key, item in items.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f'{path}[{index}]') for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type):
        return value.__name__
    if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:  # a NumPy number
        return value.item()
    raise TaskFileError(f'{path}={value!r} is no plain data: a task file holds numbers, strings, lists and dicts')


def check_model_config(model: Any) -> None:
    """Refuse a model config that is more than plain data about known classes.

    Args:
        model: The config as read from JSON.

    Raises:
        TaskFileError: The message names the key, and what was expected.
    """
    _check(model, 'model', 0)
    if not isinstance(model, dict) or model.get('type') not in ('EncoderDecoder', 'PromptedEncoderDecoder'):
        raise TaskFileError('model.type: expected EncoderDecoder or PromptedEncoderDecoder')
    for part in ('backbone', 'decode_head', 'data_preprocessor'):
        if not isinstance(model.get(part), dict):
            raise TaskFileError(f'model.{part} is missing')
    if model['backbone'].get('type') != 'PromptedViT':
        raise TaskFileError(f'model.backbone.type={model["backbone"].get("type")!r}: expected PromptedViT')


def _check(value: Any, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise TaskFileError(f'{path[:80]}: nested deeper than {_MAX_DEPTH} levels')
    if isinstance(value, dict):
        _check_size(len(value), path)
        for key, item in value.items():
            _check_text(key, path)
            if key in _DROPPED:
                raise TaskFileError(f'{path}.{key}: a task file may not set it')
            if key == 'type' and item not in ALLOWED_TYPES:
                raise TaskFileError(f'{path}.type={item!r}: a task file may not name this class')
            if key == 'loss_decode' and item != LOSS:
                raise TaskFileError(f'{path}.loss_decode: expected the default loss')
            _check(item, f'{path}.{key}', depth + 1)
    elif isinstance(value, list):
        _check_size(len(value), path)
        for index, item in enumerate(value):
            _check(item, f'{path}[{index}]', depth + 1)
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value) or abs(value) > _MAX_NUMBER:
            raise TaskFileError(f'{path}={value}: expected a number of at most {_MAX_NUMBER}')
    elif value is not None and not isinstance(value, bool):
        raise TaskFileError(f'{path}: {type(value).__name__} is no plain data')


def _check_size(number: int, path: str) -> None:
    if number > _MAX_ITEMS:
        raise TaskFileError(f'{path}: {number} items, expected at most {_MAX_ITEMS}')


def _check_text(text: Any, path: str) -> None:
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not text.isprintable():
        raise TaskFileError(f'{path}: expected printable text of at most {_MAX_TEXT} characters')
