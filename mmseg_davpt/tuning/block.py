"""Blocks that tuning methods act on."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..trunks import Trunk
from .attention import JoinedPrompts, TunedAttention, adopt


class _TokenGrid(threading.local):
    """Height and width of the patch grid in the running forward pass of this thread; set by ``PromptedViT.forward``.

    Branches with convolutions need it, and timm hands a block nothing but a sequence of tokens.
    """

    size: tuple[int, int] | None = None


TOKEN_GRID = _TokenGrid()


class BlockMethod(Protocol):
    """What a block needs of a tuning method; see :class:`~mmseg_davpt.tuning.base.TuningMethod`."""

    active: bool

    def join(self, block: TunedBlock) -> JoinedPrompts | None:
        """Prompts for the attention."""

    def attention_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """A branch beside the attention."""

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """A branch beside the MLP."""


class TunedBlock(nn.Module):
    """A pre-norm block of timm, with the branches of tuning methods.

    ::

        x = x + LS1(attention(LN1(x))) + residual values of prompts + attention branches(LN1(x))
        x = x + LS2(MLP(LN2(x)))       + MLP branches(LN2(x))

    It adopts the block's children under timm's names, so that the state dict keeps its keys. Branches and residual
    values join the residual stream behind LayerScale.

    Args:
        block: A block of timm's ViT, EVA or BEiT.
        index: Its index in the trunk.

    Attributes:
        methods: Methods that act on this block. References only: ``PromptedViT.tuned`` holds the modules.
        with_cp: Recompute the block in the backward pass (non-reentrant checkpointing).
    """

    # Adopted from timm's block.
    norm1: nn.Module
    attn: Any  # timm's attention, or a TunedAttention where a method acts on it
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module, index: int) -> None:
        super().__init__()
        adopt(self, block)
        self.index = index
        self.methods: list[BlockMethod] = []
        self.with_cp = False

    def forward(self, x: Tensor, **kwargs: Tensor | bool | None) -> Tensor:
        """Tokens ``(B, T + N, D)`` -> the same shape; ``kwargs`` are what timm hands to the attention."""
        grid = TOKEN_GRID.size  # read here: the backward pass recomputes a checkpointed block outside of it
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._run, x, grid, kwargs, use_reentrant=False)
        return self._run(x, grid, kwargs)

    def _run(self, x: Tensor, grid: tuple[int, int] | None, kwargs: dict[str, Any]) -> Tensor:
        methods = [method for method in self.methods if method.active]
        z = self.norm1(x)
        joined = next((prompts for method in methods if (prompts := method.join(self)) is not None), None)
        out, prompt_out = (self.attn(z, **kwargs), None) if joined is None else self.attn(z, **kwargs, joined=joined)
        x = x + self.drop_path1(self._layer_scale(1, out))
        if prompt_out is not None:
            x = x + prompt_out
        for method in methods:
            if (branch := method.attention_branch(self.index, z, grid)) is not None:
                x = x + branch
        z = self.norm2(x)
        x = x + self.drop_path2(self._layer_scale(2, self.mlp(z)))
        for method in methods:
            if (branch := method.mlp_branch(self.index, z, grid)) is not None:
                x = x + branch
        return x

    def _layer_scale(self, number: int, x: Tensor) -> Tensor:
        """LayerScale: a module in ViT, a parameter or ``None`` in EVA and BEiT."""
        module = getattr(self, f'ls{number}', None)
        if module is not None:
            return module(x)
        gamma = getattr(self, f'gamma_{number}')
        return x if gamma is None else gamma * x


def tune_block(trunk: Trunk, index: int) -> TunedBlock:
    """The block of that index, replaced by a :class:`TunedBlock` at the first call."""
    if not isinstance(trunk.blocks[index], TunedBlock):
        trunk.blocks[index] = TunedBlock(trunk.blocks[index], index)
    return trunk.blocks[index]


def tune_attention(trunk: Trunk, index: int) -> TunedAttention:
    """The attention of the block of that index, replaced by a :class:`TunedAttention` at the first call."""
    block = trunk.blocks[index]
    if not isinstance(block.attn, TunedAttention):
        block.attn = TunedAttention(block.attn, index, trunk.num_prefix_tokens)
    return block.attn
