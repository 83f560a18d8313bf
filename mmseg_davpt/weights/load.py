"""Pretrained weights -> trunk: every tensor or none, with one line for the log."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from .checkpoints import value_problem
from .convert import Encoder, find_encoder, is_head, name_final_norm, read_npz
from .formats import WeightsError, check_hash, describe_check, is_npz, read_checkpoint

_MAX_NAMES = 6  # in one list of an error message
# What timm's filters compute anew, rather than rename.
_RESIZED = re.compile(r'(pos_embed|positional_embedding|cls_token|relative_position_bias_table)$')
_FINAL_NORM = ('norm.weight', 'norm.bias')


def load_trunk_weights(trunk: nn.Module, arch: str, pretrained: str | bool, unused: Collection[str] = ()) -> str:
    """Load pretrained weights into all tensors of a trunk.

    Args:
        trunk: A trunk of :func:`~mmseg_davpt.trunks.build.build_trunk`; changed in place.
        arch: Its timm name, with the tag of the weights if ``pretrained`` is ``True``.
        pretrained: ``True`` for timm's hub, or the path of a file in one of the formats of ``docs/weights.md``.
        unused: Tensors of the trunk that no output depends on, e.g. its final norm. The file may lack only these and
            poolers.

    Returns:
        One line for the log: the number of tensors, the source, both position grids, and the skipped names; for a file
        also whether it was checked for changed bytes (:func:`~mmseg_davpt.weights.formats.describe_check`).

    Raises:
        WeightsError: The source is unreadable, or tensors are missing, unexpected, of another shape or type, or not
            finite. The trunk is unchanged then.
    """
    source = f"timm's hub ({arch})" if pretrained is True else str(pretrained)
    encoder = Encoder(_read_hub(arch)) if pretrained is True else _read_file(Path(str(pretrained)), trunk)
    try:
        _require_patch_size(encoder.state, trunk)
        grid = _position_grid(encoder.state, trunk)
    except WeightsError as error:
        raise WeightsError(f'{source} does not fit {arch}: {error}. Nothing was loaded.') from error
    problems = {name: problem for name, tensor in encoder.state.items() if (problem := value_problem(tensor))}
    try:
        _apply_timm_filter(encoder, trunk, source)
    finally:  # a filter may fail because of such values
        _require_numbers(problems, encoder.skipped, source)
    trunk_state = trunk.state_dict()
    absent = {name for name in trunk_state.keys() - encoder.state.keys() if name in unused or is_head(name)}
    required = {name: tensor for name, tensor in trunk_state.items() if name not in absent}
    _require_match(required, encoder.state, source, arch)
    trunk.load_state_dict(encoder.state, strict=False)  # only the absent tensors are not loaded
    line = f'Loaded {len(encoder.state)}/{len(trunk_state)} trunk tensors of {arch} from {source}'
    if encoder.notes:
        line += f': {", ".join(encoder.notes)}'
    if grid:
        line += f', position grid {_format_grid(grid)} -> {_format_grid(_grid_size(trunk))}'
    if encoder.skipped:
        line += f'; skipped: {_group_names(encoder.skipped, trunk_state)}'
    if absent:
        line += f'; left random, as no output depends on them: {_group_names(sorted(absent), {})}'
    check = '' if pretrained is True else f' {describe_check(Path(str(pretrained)))}'
    return f'{line}.{check}'


def _require_numbers(problems: Mapping[str, str], skipped: Collection[str], source: str) -> None:
    """Refuse tensors that are not finite, or not of floating point, unless nothing uses them."""
    used = [f'{name} {problem}' for name, problem in problems.items() if name not in skipped]
    if used:
        raise WeightsError(f'{source}: {_first_names(used)}. Nothing was loaded. Save the tensors as float32.')


def _read_hub(arch: str) -> dict[str, Tensor]:
    try:
        # With the classifier timm loads strictly. Without it, timm would ignore missing tensors.
        model: nn.Module = timm.create_model(arch, pretrained=True)
    except Exception as error:  # the hub client raises exceptions of many types
        raise WeightsError(
            f"Cannot fetch {arch} from timm's hub: {type(error).__name__}: {error}. Give a local file instead "
            f'(pretrained=PATH; tools/get_weights.py {arch.split(".")[0]} fetches one).'
        ) from error
    return model.state_dict()


def _read_file(path: Path, trunk: nn.Module) -> Encoder:
    check_hash(path)
    npz = is_npz(path)
    checkpoint = None if npz else read_checkpoint(path)
    try:
        return read_npz(path, trunk) if npz else find_encoder(checkpoint, trunk)
    except WeightsError as error:
        raise WeightsError(f'Cannot take weights from {path}: {error}. Nothing was loaded.') from error


def _require_patch_size(state: Mapping[str, Tensor], trunk: Any) -> None:
    """Refuse a kernel of another patch size, which timm's filters would resample silently."""
    patch_size = tuple(trunk.patch_embed.proj.weight.shape[-2:])
    for name in ('patch_embed.proj.weight', 'visual.conv1.weight'):
        if name in state and state[name].ndim == 4 and tuple(state[name].shape[-2:]) != patch_size:
            raise WeightsError(
                f'{name} has patches of {_format_grid(state[name].shape[-2:])} pixels instead of '
                f'{_format_grid(patch_size)}'
            )


def _position_grid(state: Mapping[str, Tensor], trunk: Any) -> tuple[int, int] | None:
    """Return the grid of the file's position table as timm's filters will read it; ``None`` without a table."""
    trunk_grid = _grid_size(trunk)
    trunk_names = trunk.state_dict().keys()
    for name, table in state.items():
        if name.endswith('relative_position_bias_table') and name in trunk_names:
            distances = (2 * trunk_grid[0] - 1, 2 * trunk_grid[1] - 1)
            h, w = _table_grid(len(table) - 3, distances, f'{name} of {len(table)} rows')
            return (h + 1) // 2, (w + 1) // 2
    names = ('pos_embed', 'visual.pos_embed', 'visual.positional_embedding')
    table_name = next((name for name in names if name in state), None)
    if table_name is None:
        return None
    if trunk.pos_embed is None:
        raise WeightsError(f'it holds a position table ({table_name}), the trunk has none')
    prefix = 0 if getattr(trunk, 'no_embed_class', False) else trunk.num_prefix_tokens
    if 'register_tokens' in state:  # original DINOv2: a position for the class token, none for the registers
        prefix = 1
    length = state[table_name].shape[-2]
    image_size = getattr(trunk, 'pretrained_cfg', {}).get('input_size', (3, 224, 224))[-2:]
    patch_h, patch_w = trunk.patch_embed.patch_size
    pretrained_grid = (image_size[0] // patch_h, image_size[1] // patch_w)
    if pretrained_grid[0] * pretrained_grid[1] == length - prefix:
        return pretrained_grid
    description = f'{table_name} of {length} positions, {prefix} of them for prefix tokens'
    return _table_grid(length - prefix, trunk_grid, description)


def _table_grid(cells: int, trunk_grid: tuple[int, int], description: str) -> tuple[int, int]:
    side = isqrt(max(cells, 0))
    is_square, fits_trunk = side * side == cells, trunk_grid[0] * trunk_grid[1] == cells
    if is_square and fits_trunk and trunk_grid != (side, side):
        raise WeightsError(
            f'{description} may be {side}x{side} or {_format_grid(trunk_grid)}: give img_size a square size'
        )
    if not is_square and not fits_trunk:
        raise WeightsError(
            f'{description}: not square, and not {_format_grid(trunk_grid)}. A table of a rectangular image needs '
            'img_size=(H, W) of that image; otherwise the file belongs to another architecture'
        )
    return (side, side) if is_square else trunk_grid


def _apply_timm_filter(encoder: Encoder, trunk: nn.Module, source: str) -> None:
    """Rename and resize with timm's filter of the model family; record what the filter or the trunk drops."""
    state = encoder.state
    checkpoint_filter = getattr(sys.modules[type(trunk).__module__], 'checkpoint_filter_fn', None)
    if checkpoint_filter is not None:
        try:
            encoder.state = checkpoint_filter(dict(state), trunk)
        except Exception as error:  # a file of another architecture raises exceptions of many types
            raise WeightsError(
                f'{source} does not hold weights of this architecture: {type(error).__name__}: {error}. Nothing was '
                'loaded.'
            ) from error
        kept = {tensor.data_ptr() for tensor in encoder.state.values()}
        encoder.skipped += [
            name for name, tensor in state.items() if tensor.data_ptr() not in kept and not _RESIZED.search(name)
        ]
    trunk_names = trunk.state_dict().keys()
    encoder.state = name_final_norm(encoder.state, trunk)
    droppable = {'mask_token'} if 'norm.weight' in trunk_names else {'mask_token', *_FINAL_NORM}
    dropped = [name for name in encoder.state if name not in trunk_names and (name in droppable or is_head(name))]
    encoder.skipped += dropped
    encoder.state = {name: tensor for name, tensor in encoder.state.items() if name not in dropped}


def _require_match(required: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, arch: str) -> None:
    problems = []
    missing = sorted(required.keys() - state.keys())
    if missing:
        problems.append(f'missing: {_first_names(missing)}')
    unexpected = sorted(state.keys() - required.keys())
    if unexpected:
        problems.append(f'unexpected: {_first_names(unexpected)}')
    shapes = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(required[name].shape)}'
        for name in sorted(required.keys() & state.keys())
        if state[name].shape != required[name].shape
    ]
    if shapes:
        problems.append(f'of another shape: {_first_names(shapes)}')
    if not problems:
        return
    hint = ''
    if missing and not unexpected and set(missing) <= set(_FINAL_NORM):
        hint = (
            " The file has no final norm (mmseg's ViT without final_norm, or a classifier of averaged tokens): set "
            'norm_outputs=False, which needs none.'
        )
    elif any('embeddings.patch_embeddings' in name or name.startswith('vision_model.') for name in unexpected):
        hint = " These are names of transformers, which are not read: use timm's file or the authors' file."
    raise WeightsError(
        f'{source} does not hold the weights of {arch}: {"; ".join(problems)}. Nothing was loaded.{hint}'
    )


def _first_names(names: Sequence[str]) -> str:
    more = f' and {len(names) - _MAX_NAMES} more' if len(names) > _MAX_NAMES else ''
    return ', '.join(names[:_MAX_NAMES]) + more


def _group_names(names: Collection[str], trunk_names: Collection[str]) -> str:
    """Join names into groups: names of the trunk's modules by their path, others by the module before the first dot."""
    modules = {name.split('.')[0] for name in trunk_names}
    groups: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r'((backbone|visual)\.)?(tuned\.)?[^./]+', name)
        module = name if match is None else match[0]
        groups.setdefault(re.sub(r'\.\d+\.', '.*.', name) if module in modules else module, []).append(name)
    texts = [
        ', '.join(members) if len(members) <= 2 else f'{group} ({len(members)} tensors)'
        for group, members in groups.items()
    ]
    return ', '.join(texts)


def _grid_size(trunk: Any) -> tuple[int, int]:
    h, w = trunk.patch_embed.grid_size
    return h, w


def _format_grid(grid: Collection[int]) -> str:
    return 'x'.join(map(str, grid))
