"""Blocks that are trained as a whole, and the layers before them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ..trunks import Trunk, resolve_blocks
from .base import TUNING_METHODS, Preset, TuningMethod

# What timm's trunks hold before their blocks.
STEM = (
    'patch_embed',
    'pos_embed',
    'cls_token',
    'dist_token',
    'reg_token',
    'norm_pre',
    'rope',  # mixed rotary frequencies
    'rel_pos_bias',  # BEiT's shared table
)


@TUNING_METHODS.register_module(name='blocks')
class Blocks(TuningMethod):
    """Every parameter of some blocks, trained in place; the final norm goes with the last block.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        indices: ``'all'`` or block indices, negative ones counted from the end.

    Raises:
        ValueError: An index out of range.
    """

    presets = {'full': Preset(dict(blocks={}, stem={}))}
    main_option = 'indices'

    def __init__(self, trunk: Trunk, depth: int, indices: str | Sequence[int] = 'all') -> None:
        super().__init__(trunk, depth)
        self.indices = resolve_blocks(indices, depth, self.option('indices'))

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """All parameters of the blocks."""
        prefixes = [f'blocks.{index}.' for index in self.indices]
        if self.depth - 1 in self.indices:
            prefixes.append('norm.')
        return {name for name in used if name.startswith(tuple(prefixes))}

    def merge(self, state: dict[str, Tensor]) -> None:
        """Nothing to do: the parameters are the trunk's."""


@TUNING_METHODS.register_module(name='stem')
class Stem(TuningMethod):
    """All but the blocks, trained in place: patch embedding, position tables, class token and registers."""

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """The patch embedding and what is added to its tokens."""
        return {name for name in used if name.split('.')[0] in STEM}

    def merge(self, state: dict[str, Tensor]) -> None:
        """Nothing to do: the parameters are the trunk's."""


@TUNING_METHODS.register_module(name='cls_token')
class ClassToken(TuningMethod):
    """The class token, trained in place."""

    def trunk_parameters(self, used: Collection[str]) -> set[str]:
        """The class token."""
        if 'cls_token' not in used:
            raise ValueError('tuning: cls_token matches no parameter of this trunk')
        return {'cls_token'}

    def merge(self, state: dict[str, Tensor]) -> None:
        """Nothing to do: the parameter is the trunk's."""
