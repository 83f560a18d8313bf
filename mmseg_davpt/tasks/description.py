"""Description of a task: plain data in the header of a task file. ``schema.json`` defines what it may hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from mmengine.config import Config
from torch import nn

from ..models import PromptedViT
from ..version import library_versions
from ..weights import WeightsError
from ..weights.fingerprint import TrunkFingerprint

VERSION = 1
# Options that training alone needs, or that make a class read a file.
DROPPED = frozenset({
    'init_cfg', 'pretrained', 'train_cfg', 'auxiliary_head', 'guidance', 'sampler', 'allow_random', 'with_cp',
    'drop_path_rate', 'trunk_dtype',
})  # fmt: skip
LOSS = dict(type='CrossEntropyLoss')  # heads build one; inference does not compute it


class TaskFileError(WeightsError):
    """A task file is damaged or hostile, or does not fit."""


@dataclass(frozen=True)
class TaskInfo:
    """The description of a task in a task file; all of it is plain data.

    Attributes:
        model: Model config for inference, see :func:`plain_model_config`.
        classes: Name of each class.
        palette: Color of each class: red, green, blue, from 0 to 255.
        trunk: Fingerprint of the frozen trunk.
        reduce_zero_label: Whether id 0 of the dataset's masks means unlabeled, and ids count from 1.
        resize: Options of mmcv's ``Resize`` before the model, ``dict(scale=[w, h], keep_ratio=bool)``, or ``None``.
        assigned_prompts: Index of a guided block, as text -> prompt of each class, -1 without one.
        metrics: Name -> figure of the last validation.
        versions: Package -> version that wrote the file.
        config_hash: 16 hex digits of the SHA-256 of the run's config.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    trunk: TrunkFingerprint
    reduce_zero_label: bool = False
    resize: dict[str, Any] | None = None
    assigned_prompts: dict[str, list[int]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    config_hash: str = ''

    @property
    def arch(self) -> str:
        """Timm name of the trunk."""
        return self.trunk.arch

    def to_json(self) -> str:
        """As JSON text.

        Raises:
            TaskFileError: :meth:`from_json` would refuse it.
        """
        values = {**asdict(self), 'trunk': self.trunk.to_dict(), 'format_version': VERSION}
        try:
            text = json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TaskFileError(f'the description of the task is no plain data: {error}') from error
        self.from_json(text)
        return text

    @classmethod
    def from_json(cls, text: str) -> TaskInfo:
        """Read and check JSON text.

        Raises:
            TaskFileError: The message names the key, and what was expected.
        """
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
            version = values.get('format_version') if isinstance(values, dict) else None
            if version != VERSION:
                raise TaskFileError(
                    f'format_version={str(version)[:20]!r}: this version of mmseg_davpt reads version {VERSION}'
                )
            error = best_match(_validator().iter_errors(values))
        except RecursionError:
            raise TaskFileError('the description is nested too deeply') from None
        except ValueError as problem:
            raise TaskFileError(f'the description is no JSON: {problem}') from problem
        if error is not None:
            raise TaskFileError(f'{error.json_path[2:] or "description"}: {_shorten(error.message)}')
        number, heads = len(values['classes']), values['model']['decode_head']['num_classes']
        if not number == len(values['palette']) == heads:
            raise TaskFileError(
                f'{number} classes, {len(values["palette"])} colors in palette, decode_head.num_classes={heads}: '
                'expected the same number'
            )
        if values['trunk']['arch'] != values['model']['backbone']['arch']:
            raise TaskFileError('trunk.arch and model.backbone.arch differ')
        if any(len(prompts) != number for prompts in values['assigned_prompts'].values()):
            raise TaskFileError(f'assigned_prompts: expected {number} numbers per block, one per class')
        known = {known.name: values[known.name] for known in fields(cls)}
        known |= dict(
            classes=tuple(values['classes']),
            palette=tuple((color[0], color[1], color[2]) for color in values['palette']),
            trunk=TrunkFingerprint.from_dict(values['trunk']),
        )
        return cls(**known)


def plain_model_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a model config that inference needs, as plain data.

    Args:
        model: ``cfg.model`` of a run.

    Returns:
        Nested dicts, lists, texts, numbers, booleans and ``None``. Losses become the default one, ``SyncBN`` becomes
        ``BN``; weights, guidance, auxiliary heads and ``train_cfg`` are left out.

    Raises:
        TaskFileError: A value that is no plain data; the message names its key.
    """
    plain: dict[str, Any] = _plain(model, 'model')
    return plain


def describe_task(
    cfg: Config,
    dataset_meta: Mapping[str, Any],
    model: nn.Module,
    trunk: TrunkFingerprint,
    metrics: Mapping[str, Any] | None = None,
) -> TaskInfo:
    """Describe a task by the config of its run.

    Args:
        cfg: The full config.
        dataset_meta: ``classes`` and ``palette`` of the dataset, and ``reduce_zero_label``.
        model: The segmentor.
        trunk: Fingerprint of its trunk.
        metrics: Figures of the last validation; what is no number is left out.

    Raises:
        TaskFileError: Something that a task file cannot hold; the message names its key.
    """
    if not (dataset_meta.get('classes') and dataset_meta.get('palette')):
        raise TaskFileError('the dataset names no classes or no palette: set metainfo=dict(classes=..., palette=...)')
    plain, backbone = plain_model_config(cfg.model), cast(PromptedViT, model.backbone)
    # Resolved: presets may change, and those of guided methods need a guidance.
    plain['backbone']['tuning'] = _plain(backbone.method_options, 'model.backbone.tuning') or 'frozen'
    plain['backbone']['prompts'] = None
    guidance = getattr(model, 'guidance', None)
    assignments = {} if guidance is None else guidance.assignment_of
    info = TaskInfo(
        model=plain,
        classes=tuple(map(str, dataset_meta['classes'])),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in dataset_meta['palette']),
        trunk=trunk,
        reduce_zero_label=bool(dataset_meta.get('reduce_zero_label', False)),
        resize=_resize_of(cfg.get('test_pipeline') or ()),
        assigned_prompts={str(block): a.assignment.tolist() for block, a in assignments.items()},
        metrics={name: float(value) for name, value in (metrics or {}).items() if isinstance(value, (int, float))},
        versions=library_versions(),
        config_hash=hashlib.sha256(cfg.pretty_text.encode()).hexdigest()[:16],
    )
    info.to_json()
    return info


def _resize_of(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Options of the only step between reading and packing that a task file supports."""
    steps = [step for step in pipeline if not re.search('Load(Annotations|ImageFromFile)|PackSegInputs', step['type'])]
    if not steps:
        return None
    step = steps[0]
    if (
        len(steps) > 1
        or step['type'].rpartition('.')[2] != 'Resize'
        or isinstance(step.get('scale'), (int, type(None)))
    ):
        raise TaskFileError(
            f'test_pipeline: {", ".join(step["type"] for step in steps)}: a task file supports one Resize, with '
            'scale=(width, height) and keep_ratio'
        )
    return dict(scale=list(step['scale']), keep_ratio=bool(step.get('keep_ratio', False)))


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items() if key not in DROPPED}
        if 'loss_decode' in items:
            items['loss_decode'] = LOSS
        if items.get('type') == 'SyncBN':  # it trains on GPUs only, and computes the same in inference
            items['type'] = 'BN'
        return {key: _plain(item, f'{path}.{key}') for key, item in items.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f'{path}[{index}]') for index, item in enumerate(value)]
    if isinstance(value, str):
        return value.rpartition('.')[2] if path.endswith('.type') else value  # mmseg.EncoderDecoder
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, type):
        return value.__name__
    raise TaskFileError(f'{path}={value!r}: a task file holds numbers, texts, lists and dicts')


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(Path(__file__).with_name('schema.json').read_text()))


def _refuse_constant(name: str) -> None:
    raise TaskFileError(f'{name} is no number that a task file may hold')


def _shorten(message: str) -> str:
    """A message of jsonschema begins with the whole value."""
    return message if len(message) <= 200 else f'{message[:80]} ... {message[-100:]}'
