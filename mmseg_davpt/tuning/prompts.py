"""The learnable prompts: one ``(M, D)`` parameter for each prompted block (VPT, ECCV 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..trunks import resolve_blocks

KINDS = ('deep', 'shallow')
INITS = ('xavier', 'prototype')


class Prompts(nn.Module):
    """Prompts ``P^l`` of the prompted blocks.

    Args:
        embed_dims: Width ``D`` of the trunk.
        depth: Number of blocks of the trunk.
        patch_size: Patch size in pixels, for the range of the initialisation.
        num: Prompts a block: one number for all, or one for each prompted block.
        blocks: ``'all'`` or block indices, negative ones counted from the end.
        init: ``'xavier'`` (the default), or ``'prototype'``: :class:`PromptAssignmentHook` writes the centroids of the
            assigned clusters into the prompts before training. The paper measured that initialising with means of
            the data hurts its guidance.
        dropout: Probability that an element of a prompt is zeroed while training; the same for every image.
        kind: ``'deep'``: each prompted block has its own prompts, which end with it. ``'shallow'``: one set, joined
            to the tokens before the first block and carried through.
        gate: Patches attend to the prompts apart from each other, and a block's prompts speak as loudly as its learned
            gate says, which is zero at first: the trunk starts as it was. Ours, not VPT's, after the zero-initialised
            attention of LLaMA-Adapter (Zhang et al., ICLR 2024, section 3.2). Deep prompts only.

    Raises:
        ValueError: An option out of range; the message names it.
    """

    def __init__(
        self,
        embed_dims: int,
        depth: int,
        patch_size: tuple[int, int],
        num: int | Sequence[int] = 20,
        blocks: str | Sequence[int] = 'all',
        init: str = 'xavier',
        dropout: float = 0.0,
        kind: str = 'deep',
        gate: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f'prompts.kind={kind!r}: expected one of {KINDS}')
        if init not in INITS:
            raise ValueError(f'prompts.init={init!r}: expected one of {INITS}')
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f'prompts.dropout={dropout}: expected a probability in [0, 1)')
        if kind == 'shallow':
            if blocks != 'all':
                raise ValueError(f"prompts.blocks={blocks!r}: shallow prompts enter at block 0 only, leave it 'all'")
            if init == 'prototype' or gate:
                raise ValueError(f"prompts.init={init!r}, gate={gate}: prototypes and gates need prompts.kind='deep'")
            blocks = (0,)
        self.blocks = resolve_blocks(blocks, depth, 'prompts.blocks')
        counts = [num] * len(self.blocks) if isinstance(num, int) else list(num)
        if len(counts) != len(self.blocks) or min(counts) < 1:
            raise ValueError(
                f'prompts.num={num!r}: expected a number >= 1, or one for each of {len(self.blocks)} prompted blocks'
            )
        self.kind, self.init, self.dropout, self.gated = kind, init, dropout, gate
        self.enabled = True  # off: blocks run as if they had no prompts of their own
        self.awaits_prototypes = init == 'prototype'
        self.tokens = nn.ParameterDict(
            {str(block): nn.Parameter(torch.empty(count, embed_dims)) for block, count in zip(self.blocks, counts)}
        )
        self.gates = nn.ParameterDict({block: nn.Parameter(torch.zeros(1)) for block in self.tokens if gate})
        self.reset_parameters(patch_size)

    def reset_parameters(self, patch_size: tuple[int, int]) -> None:
        """Xavier-uniform over the patch embedding's fan, as VPT does, divided by 8 as the official DA-VPT code does."""
        for tokens in self.tokens.values():
            bound = (6.0 / (3 * patch_size[0] * patch_size[1] + tokens.shape[1])) ** 0.5 / 8.0
            nn.init.uniform_(tokens, -bound, bound)

    def counts(self, depth: int) -> list[int]:
        """Number of prompts of each of the ``depth`` blocks; 0 where a block has none."""
        return [len(self.tokens[str(block)]) if str(block) in self.tokens else 0 for block in range(depth)]

    def forward(self, block: int) -> Tensor:
        """The prompts of a block, shape ``(M, D)``, after dropout."""
        return F.dropout(self.tokens[str(block)], self.dropout, self.training)
