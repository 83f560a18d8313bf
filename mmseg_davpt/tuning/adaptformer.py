"""Parallel adapters beside the MLPs (AdaptFormer: Chen et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..options import check_integer, check_number
from ..trunks import Trunk, resolve_blocks
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import tune_block


@TUNING_METHODS.register_module(name='adaptformer')
class AdaptFormer(TuningMethod):
    """A bottleneck beside the MLP of each block: ``x + MLP(LN2(x)) + scale * Up(ReLU(Down(LN2(x))))``.

    AdaptFormer, equations 2 and 3. ``Up`` is zero at the start.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        dim: Width of the bottleneck; AdaptFormer's is 64.
        scale: Scale of the branch; AdaptFormer's is 0.1.
        blocks: ``'all'`` or block indices, negative ones counted from the end. Blocks before the first build no graph.

    Raises:
        ValueError: A width below 1, a scale that is not positive, or a block out of range.
    """

    presets = {'adaptformer': Preset(dict(adaptformer={}))}

    def __init__(
        self, trunk: Trunk, depth: int, dim: int = 64, scale: float = 0.1, blocks: str | Sequence[int] = 'all'
    ) -> None:
        super().__init__(trunk, depth)
        dim = check_integer(self.option('dim'), dim)
        self.scale = check_number(self.option('scale'), scale, above=True)
        self.blocks = resolve_blocks(blocks, depth, self.option('blocks'))
        self.branches: Any = nn.ModuleDict()  # block -> nn.ModuleDict of down and up
        for index in self.blocks:
            down, up = nn.Linear(self.width, dim), nn.Linear(dim, self.width)
            nn.init.kaiming_uniform_(down.weight, a=5**0.5)
            for parameter in (down.bias, up.weight, up.bias):
                nn.init.zeros_(parameter)
            self.branches[str(index)] = nn.ModuleDict(dict(down=down, up=up))

    def attach(self, trunk: Trunk) -> None:
        """Add the branches."""
        for index in self.blocks:
            tune_block(trunk, index).methods.append(self)

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``scale * Up(ReLU(Down(x)))``, ``(B, T + N, D)``."""
        branch = self.branches[str(block)]
        return self.scale * branch['up'](F.relu(branch['down'](x)))
