"""Scaled parallel adapters (He et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from ..trunks import Trunk
from .adaptformer import AdaptFormer
from .base import TUNING_METHODS, Preset


@TUNING_METHODS.register_module(name='parallel_adapter')
class ScaledParallelAdapter(AdaptFormer):
    """A bottleneck beside the MLP of each block: ``x + MLP(LN2(x)) + scale * Up(ReLU(Down(LN2(x))))``.

    He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6. The form is AdaptFormer's
    with a scale above one. ``Down`` and ``Up`` start as in LoRA: Kaiming-uniform and zero. He et al. combine it with a
    change of attention; the preset ``parallel_adapter_lora`` combines it with LoRA on query and value.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        dim: Width of the bottleneck.
        scale: Scale of the branch; He et al. use 4.
        blocks: ``'all'`` or block indices, negative ones counted from the end. Blocks before the first build no graph.

    Raises:
        ValueError: A width below 1, a scale that is not positive, or a block out of range.
    """

    presets = {
        'parallel_adapter': Preset(dict(parallel_adapter={})),
        'parallel_adapter_lora': Preset(dict(parallel_adapter={}, lora={})),
    }

    def __init__(
        self, trunk: Trunk, depth: int, dim: int = 64, scale: float = 4.0, blocks: str | Sequence[int] = 'all'
    ) -> None:
        super().__init__(trunk, depth, dim, scale, blocks)
