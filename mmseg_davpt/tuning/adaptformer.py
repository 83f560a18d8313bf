"""Parallel adapters beside the MLPs (AdaptFormer: Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AdaptFormer(nn.Module):
    """A bottleneck beside the MLP of one pre-norm block: ``x + MLP(LN2(x)) + scale * Up(ReLU(Down(LN2(x))))``.

    AdaptFormer, equations 2 and 3. ``Up`` is zero at first. The branch joins the residual stream behind LayerScale,
    where there is one.

    Args:
        block: A block of the trunk, which is hooked.
        width: Width ``D`` of the trunk.
        dim: Width of the bottleneck; AdaptFormer's is 64.
        scale: Scale of the branch; AdaptFormer's is 0.1.

    Raises:
        ValueError: A width below 1.
    """

    def __init__(self, block: nn.Module, width: int, dim: int = 64, scale: float = 0.1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f'tuning.adapter: dim={dim}: expected a width >= 1')
        self.down, self.up, self.scale = nn.Linear(width, dim), nn.Linear(dim, width), scale
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)
        self._branch: Tensor | None = None
        block.norm2.register_forward_hook(self.run)
        block.register_forward_hook(self.join)

    def run(self, _: nn.Module, __: tuple, normed: Tensor) -> None:
        """Forward hook of the block's second norm: compute the branch from ``(B, T + N, D)``."""
        self._branch = self.scale * self.up(F.relu(self.down(normed)))

    def join(self, _: nn.Module, __: tuple, out: Tensor) -> Tensor:
        """Forward hook of the block: add the branch."""
        branch, self._branch = self._branch, None
        return out + branch
