"""Pretrained weights -> trunk: strict, with a report, never silently random."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from math import isqrt
from pathlib import Path

import timm
from torch import Tensor, nn

from .convert import Encoder, find_encoder, is_head, name_final_norm, read_npz
from .formats import WeightsError, is_npz, read_checkpoint

_SHOWN = 6  # tensors named in an error before it says how many more there are


def load_trunk_weights(trunk: nn.Module, arch: str, pretrained: str | bool, unused: Collection[str] = ()) -> str:
    """Load pretrained weights into a trunk, every tensor of it.

    Args:
        trunk: A trunk of :func:`~mmseg_davpt.trunks.build.build_trunk`; changed in place.
        arch: Its timm name, with the tag of the weights if ``pretrained`` is ``True``.
        pretrained: ``True`` for timm's hub, or the path of a file in one of the formats of ``docs/weights.md``.
        unused: Tensors of the trunk that no output depends on, e.g. its final norm: only they may be missing, beside
            poolers.

    Returns:
        One line for the log: how many tensors, from where, from which position grid to which, what was skipped.

    Raises:
        WeightsError: Unreadable source; tensors missing, left over or of another shape. Nothing is loaded then.
    """
    source = f"timm's hub ({arch})" if pretrained is True else str(pretrained)
    found = Encoder(_read_hub(arch)) if pretrained is True else _read_file(Path(pretrained), trunk)
    try:
        _require_patch(found.state, trunk)
        grid = _position_grid(found.state, trunk)
    except WeightsError as error:
        raise WeightsError(f'{source} does not fit {arch}: {error}. Nothing was loaded.') from error
    _convert(found, trunk, source)
    own, state = trunk.state_dict(), found.state
    spare = {name for name in own.keys() - state.keys() if name in unused or is_head(name)}
    _require_match({name: tensor for name, tensor in own.items() if name not in spare}, state, source, arch)
    trunk.load_state_dict(state, strict=False)  # all but the spare ones
    line = f'Loaded {len(state)}/{len(own)} trunk tensors of {arch} from {source}'
    if found.taken:
        line += f': {", ".join(found.taken)}'
    if grid:
        line += f', position grid {_x(grid)} -> {_x(trunk.patch_embed.grid_size)}'
    if found.skipped:
        line += f'; skipped: {_grouped(found.skipped, own)}'
    if spare:
        line += f'; left random, as no output depends on them: {_grouped(sorted(spare), {})}'
    return line + '.'


def _read_hub(arch: str) -> dict[str, Tensor]:
    try:
        # With its own classifier, timm loads strictly; without, it would let missing tensors pass.
        return timm.create_model(arch, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise WeightsError(
            f"Cannot fetch {arch} from timm's hub: {type(error).__name__}: {error}. Give a local file instead "
            f'(pretrained=PATH; tools/get_weights.py {arch.split(".")[0]} fetches one).'
        ) from error


def _read_file(path: Path, trunk: nn.Module) -> Encoder:
    archive = is_npz(path)
    checkpoint = None if archive else read_checkpoint(path)
    try:
        return read_npz(path, trunk) if archive else find_encoder(checkpoint, trunk)
    except WeightsError as error:
        raise WeightsError(f'Cannot take weights from {path}: {error}. Nothing was loaded.') from error


def _require_patch(state: dict[str, Tensor], trunk: nn.Module) -> None:
    """Timm's filters would resample the kernel of another patch size, and a wrong file would pass."""
    own = tuple(trunk.patch_embed.proj.weight.shape[-2:])
    for name in ('patch_embed.proj.weight', 'visual.conv1.weight'):
        if name in state and state[name].ndim == 4 and tuple(state[name].shape[-2:]) != own:
            raise WeightsError(f'{name} has patches of {_x(state[name].shape[-2:])} pixels instead of {_x(own)}')


def _position_grid(state: dict[str, Tensor], trunk: nn.Module) -> tuple[int, int] | None:
    """The grid of the file's position table, as timm's filters will take it; ``None`` without a table."""
    own = tuple(trunk.patch_embed.grid_size)
    names = trunk.state_dict().keys()
    for name, table in state.items():
        if name.endswith('relative_position_bias_table') and name in names:
            distances = tuple(2 * side - 1 for side in own)
            h, w = _sides(len(table) - 3, distances, f'{name} of {len(table)} rows')
            return (h + 1) // 2, (w + 1) // 2
    name = next((n for n in ('pos_embed', 'visual.pos_embed', 'visual.positional_embedding') if n in state), None)
    if name is None:
        return None
    if trunk.pos_embed is None:
        raise WeightsError(f'it holds a position table ({name}), the trunk has none')
    prefix = 0 if getattr(trunk, 'no_embed_class', False) else trunk.num_prefix_tokens
    if 'register_tokens' in state:  # original DINOv2: a position for the class token alone
        prefix = 1
    length = state[name].shape[-2]
    size = getattr(trunk, 'pretrained_cfg', {}).get('input_size', (3, 224, 224))[-2:]
    usual = tuple(side // patch for side, patch in zip(size, trunk.patch_embed.patch_size, strict=True))
    if usual[0] * usual[1] == length - prefix:
        return usual
    return _sides(length - prefix, own, f'{name} of {length} positions, {prefix} of them for prefix tokens')


def _sides(cells: int, own: tuple[int, int], what: str) -> tuple[int, int]:
    side = isqrt(max(cells, 0))
    square, same = side * side == cells, own[0] * own[1] == cells
    if square and same and own != (side, side):
        raise WeightsError(f'{what} may be {side}x{side} or {_x(own)}: give img_size a square size')
    if not square and not same:
        raise WeightsError(
            f'{what}: not square, and not {_x(own)}. A table of a rectangular image needs img_size=(H, W) of that '
            'image; otherwise the file belongs to another architecture'
        )
    return (side, side) if square else own


def _convert(found: Encoder, trunk: nn.Module, source: str) -> None:
    """Timm's own filter of that model: foreign names, position tables. What it or the trunk drops is noted."""
    before = found.state
    convert = getattr(sys.modules[type(trunk).__module__], 'checkpoint_filter_fn', None)
    if convert is not None:
        try:
            found.state = convert(dict(before), trunk)
        except Exception as error:  # a file of another architecture fails in many ways
            raise WeightsError(
                f'{source} does not hold weights of this architecture: {type(error).__name__}: {error}. Nothing was '
                'loaded.'
            ) from error
        kept = {tensor.data_ptr() for tensor in found.state.values()}
        found.skipped += [n for n, t in before.items() if t.data_ptr() not in kept and not _RESIZED.search(n)]
    own = trunk.state_dict()
    found.state = name_final_norm(found.state, trunk)
    norm = () if 'norm.weight' in own else ('norm.weight', 'norm.bias')  # a trunk that ends without one
    left = [n for n in found.state if n not in own and (n in norm or n == 'mask_token' or is_head(n))]
    found.skipped += left
    found.state = {name: tensor for name, tensor in found.state.items() if name not in left}


# What timm's filters compute anew, rather than rename.
_RESIZED = re.compile(r'(pos_embed|positional_embedding|cls_token|relative_position_bias_table)$')


def _require_match(own: dict[str, Tensor], state: dict[str, Tensor], source: str, arch: str) -> None:
    problems = []
    missing = sorted(own.keys() - state.keys())
    if missing:
        problems.append(f'missing: {_some(missing)}')
    if unexpected := sorted(state.keys() - own.keys()):
        problems.append(f'unexpected: {_some(unexpected)}')
    shapes = [
        f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if shapes:
        problems.append(f'of another shape: {_some(shapes)}')
    if not problems:
        return
    hint = ''
    if missing and not unexpected and set(missing) <= {'norm.weight', 'norm.bias'}:
        hint = (
            " The file has no final norm (mmseg's ViT without final_norm, or a classifier of averaged tokens): set "
            'norm_outputs=False, which needs none.'
        )
    elif any('embeddings.patch_embeddings' in name or name.startswith('vision_model.') for name in unexpected):
        hint = " These are names of transformers, which are not read: take timm's file or the authors' own."
    raise WeightsError(
        f'{source} does not hold the weights of {arch}: {"; ".join(problems)}. Nothing was loaded.{hint}'
    )


def _some(names: list[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def _grouped(names: list[str], own: Collection[str]) -> str:
    """Names by what they belong to: those of a head under its name, those of the trunk's parts under their own."""
    parts = {name.split('.')[0] for name in own}
    groups: dict[str, list[str]] = {}
    for name in names:
        first = re.match(r'((backbone|visual)\.)?[^./]+', name)[0]
        groups.setdefault(re.sub(r'\.\d+\.', '.*.', name) if first in parts else first, []).append(name)
    texts = [
        ', '.join(members) if len(members) <= 2 else f'{group} ({len(members)} tensors)'
        for group, members in groups.items()
    ]
    return ', '.join(texts)


def _x(grid: Collection[int]) -> str:
    return 'x'.join(map(str, grid))
