"""Pretrained weights -> trunk: strict, with a report, never silently random."""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

_SHOWN = 6  # tensors named in an error before it says how many more there are


class WeightsError(RuntimeError):
    """Pretrained weights are missing, unreadable, or do not belong to this trunk."""


def load_trunk_weights(trunk: nn.Module, arch: str, pretrained: str | bool) -> str:
    """Load pretrained weights into a trunk, every tensor of it.

    Args:
        trunk: A trunk of :func:`~mmseg_davpt.trunks.build.build_trunk`; changed in place.
        arch: Its timm name, with the tag of the weights if ``pretrained`` is ``True``.
        pretrained: ``True`` for timm's hub, or the path of a file that timm can read (``.safetensors``, ``.pth``).

    Returns:
        One line for the log: how many tensors, from where, from which position grid to which.

    Raises:
        WeightsError: Unreadable source; tensors missing, left over or of another shape. Nothing is loaded then.
    """
    if pretrained is True:
        source, state = f"timm's hub ({arch})", _read_hub(arch)
    else:
        source, state = str(pretrained), _read_file(Path(pretrained))
    grid = _position_grid(state, trunk)
    state = _convert(state, trunk, source)
    own = trunk.state_dict()
    skipped = sorted(name for name in state if name not in own and name.split('.')[0] in _HEADS)
    state = {name: tensor for name, tensor in state.items() if name not in skipped}
    _require_match(own, state, source, arch)
    trunk.load_state_dict(state)
    line = f'Loaded {len(state)}/{len(own)} trunk tensors of {arch} from {source}'
    if grid:
        line += f', position grid {_x(grid)} -> {_x(trunk.patch_embed.grid_size)}'
    if skipped:
        line += f'; skipped head tensors: {_some(skipped)}'
    return line + '.'


# Classifiers and poolers: nothing of a dense trunk.
_HEADS = ('head', 'head_dist', 'fc_norm', 'attn_pool', 'pre_logits')


def _read_hub(arch: str) -> dict[str, Tensor]:
    try:
        # With its own classifier, timm loads strictly; without, it would let missing tensors pass.
        return timm.create_model(arch, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise WeightsError(
            f"Cannot fetch {arch} from timm's hub: {type(error).__name__}: {error}. Give a local file instead "
            f'(pretrained=PATH; tools/get_weights.py {arch.split(".")[0]} fetches one).'
        ) from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"No pretrained weights at {path}. Give an existing file, pretrained=True for timm's hub, or get "
            'them with tools/get_weights.py.'
        )
    try:
        return load_state_dict(str(path))
    except Exception as error:
        raise WeightsError(f'Cannot read weights from {path}: {type(error).__name__}: {error}') from error


def _convert(state: dict[str, Tensor], trunk: nn.Module, source: str) -> dict[str, Tensor]:
    """Timm's own filter of that model: foreign names, position table, patch kernel."""
    convert = getattr(sys.modules[type(trunk).__module__], 'checkpoint_filter_fn', None)
    if convert is None:
        return state
    try:
        return convert(state, trunk)
    except Exception as error:  # a file of another architecture fails in many ways
        raise WeightsError(
            f'{source} does not hold weights of this architecture: {type(error).__name__}: {error}'
        ) from error


def _require_match(own: dict[str, Tensor], state: dict[str, Tensor], source: str, arch: str) -> None:
    problems = []
    if missing := sorted(own.keys() - state.keys()):
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
    if problems:
        raise WeightsError(f'{source} does not hold the weights of {arch}: {"; ".join(problems)}. Nothing was loaded.')


def _position_grid(state: dict[str, Tensor], trunk: nn.Module) -> tuple[int, int] | None:
    table = state.get('pos_embed')
    if not isinstance(table, torch.Tensor) or table.ndim != 3:
        return None
    prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    side = int((table.shape[1] - prefix) ** 0.5)
    return (side, side) if side * side == table.shape[1] - prefix else None


def _some(names: list[str]) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more


def _x(grid: tuple[int, int]) -> str:
    return f'{grid[0]}x{grid[1]}'
