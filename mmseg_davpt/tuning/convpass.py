"""Convolutional bypasses beside attention and MLP (Convpass: Jie and Deng, 2022, arXiv 2207.07039)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..options import check_integer, check_number
from ..trunks import Trunk, resolve_blocks
from .base import TUNING_METHODS, Preset, TuningMethod
from .block import tune_block


class Bypass(nn.Module):
    """``Up(g(Conv3x3(g(Down(x)))))`` with ``g(x) = x sigmoid(1.702 x)``; the convolution runs over the patch grid.

    Class token and registers have no neighbors: each passes the center of the kernel alone. At the start the kernel is
    the identity and ``Up`` is zero.

    Args:
        width: ``D``.
        dim: Width of the bottleneck.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        for parameter in (self.down.bias, cast(Tensor, self.conv.bias), self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens ``(B, T + N, D)`` of a grid of ``N = h * w`` patches -> the same shape."""
        z = self._activate(self.down(x))
        prefix, patches = z[:, : -grid[0] * grid[1]], z[:, -grid[0] * grid[1] :]
        patches = self.conv(patches.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        prefix = nn.functional.linear(prefix, self.conv.weight[:, :, 1, 1], self.conv.bias)
        return self.up(self._activate(torch.cat([prefix, patches], dim=1)))

    @staticmethod
    def _activate(x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@TUNING_METHODS.register_module(name='convpass')
class ConvPass(TuningMethod):
    """``x + MHSA(LN1(x)) + scale * Bypass(LN1(x))``, and the same beside the MLP (Convpass, equations 4 to 6).

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        dim: Width of the bottlenecks; the paper's is 8.
        scale: Scale of the branches; the authors search it per dataset.
        blocks: ``'all'`` or block indices, negative ones counted from the end. Blocks before the first build no graph.

    Raises:
        ValueError: A width below 1, a scale that is not positive, or a block out of range.
    """

    presets = {'convpass': Preset(dict(convpass={}))}

    def __init__(
        self, trunk: Trunk, depth: int, dim: int = 8, scale: float = 1.0, blocks: str | Sequence[int] = 'all'
    ) -> None:
        super().__init__(trunk, depth)
        dim = check_integer(self.option('dim'), dim)
        self.scale = check_number(self.option('scale'), scale, above=True)
        self.blocks = resolve_blocks(blocks, depth, self.option('blocks'))
        self.attention, self.mlp = (
            nn.ModuleDict({str(index): Bypass(self.width, dim) for index in self.blocks}) for _ in range(2)
        )

    def attach(self, trunk: Trunk) -> None:
        """Add the branches."""
        for index in self.blocks:
            tune_block(trunk, index).methods.append(self)

    def attention_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``scale * Bypass(LN1(x))``."""
        return self.scale * self.attention[str(block)](x, grid)

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """``scale * Bypass(LN2(x))``."""
        return self.scale * self.mlp[str(block)](x, grid)
