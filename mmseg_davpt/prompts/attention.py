"""Prompts as keys and values: the one place where this project reaches into a trunk's attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .prompts import Prompts


@dataclass(frozen=True)
class BlockTap:
    """What a guided block hands to the guidance, while training with guidance on.

    Attributes:
        attn_out: Attention output of the patch tokens, heads concatenated, before the output projection, ``(B, N, D)``.
        tokens: What the attention projects: ``LN1`` of the block's input, patch tokens only, ``(B, N, D)``.
        prompts: ``LN1(P)``, ``(M, D)``.
        project: ``project(x, 'query' | 'key')`` applies the block's own projection to ``(..., D)`` tokens or means.
    """

    attn_out: Tensor
    tokens: Tensor
    prompts: Tensor
    project: Callable[[Tensor, str], Tensor]


class PromptedAttention:
    """Takes the place of ``forward`` in one timm ``Attention``, whose parameters it uses and never copies.

    VPT-Deep lets prompts attend too and drops their outputs after the block. Nothing reads those outputs, so the
    block equals attention in which the prompts are ``M`` more keys and values, the same for every image:

        K_p, V_p = heads(W_k LN1(P) + b_k), heads(W_v LN1(P) + b_v)
        out      = softmax(Q [K_p; K]^T / sqrt(d)) [V_p; V]

    Args:
        block: The pre-norm block; its ``attn.forward`` is replaced.
        index: Index of the block, to look up its prompts.
        prompts: The trunk's prompts, or ``None`` if this block has none.
        bias: Tuned offsets of the q, k and v biases, a module that returns ``(3 D,)``, or ``None``.
        num_prefix_tokens: Class token and registers, which are no patches.
    """

    def __init__(
        self, block: Block, index: int, prompts: Prompts | None, bias: nn.Module | None, num_prefix_tokens: int
    ) -> None:
        self.block, self.index, self.prompts, self.bias = block, index, prompts, bias
        self.num_prefix_tokens = num_prefix_tokens
        self.taps: dict[int, BlockTap] | None = None
        self._cache: tuple[tuple, Tensor] | None = None
        block.attn.forward = self

    def __call__(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attention over ``x``, shape ``(B, T + N, D)``, already through ``LN1``; returns the same shape."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError('prompts join full attention only: no attn_mask, no is_causal')
        attn, width = self.block.attn, self.block.attn.attn_dim
        weight_q, weight_kv = attn.qkv.weight.split([width, 2 * width])
        bias_q, bias_kv = _split(self._qkv_bias(), width)
        # Apart, because a fused output would stay alive for backward beside the concatenated keys and values.
        q = F.linear(x, weight_q, bias_q)
        kv = F.linear(x, weight_kv, bias_kv)
        prompts = None
        if self.prompts is not None and self.prompts.enabled:
            prompts, kv_prompts = self._project_prompts(weight_kv, bias_kv, x.device.type)
            kv = torch.cat([kv_prompts.to(kv.dtype).expand(len(x), -1, -1), kv], dim=1)
        q = q.unflatten(-1, (attn.num_heads, attn.head_dim)).transpose(1, 2)
        k, v = kv.unflatten(-1, (2, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        dropout = attn.attn_drop.p if attn.training else 0.0
        out = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=dropout)
        out = out.transpose(1, 2).flatten(2)
        if self.taps is not None:
            self._tap(x, out, prompts)
        out = attn.norm(out)
        if attn.gate is not None:
            out = out * attn.gate(x).sigmoid()
        return attn.proj_drop(attn.proj(out))

    def _qkv_bias(self) -> Tensor | None:
        bias = self.block.attn.qkv.bias
        return bias if self.bias is None else bias + self.bias()

    def _project_prompts(self, weight: Tensor, bias: Tensor | None, device: str) -> tuple[Tensor | None, Tensor]:
        """``LN1(P)`` and ``[K_p, V_p]``, ``(M, D)`` and ``(M, 2 D)``. Constants in eval mode: computed once."""
        if self.prompts.training or torch.is_grad_enabled() or self.taps is not None or torch.compiler.is_compiling():
            prompts = self.block.norm1(self.prompts(self.index))
            return prompts, F.linear(prompts, weight, bias)
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        sources = [
            self.prompts.tokens[str(self.index)],
            *self.block.norm1.parameters(),
            *self.block.attn.qkv.parameters(),
        ]
        if self.bias is not None:
            sources += self.bias.parameters()
        key = (amp, *((source.data_ptr(), source._version, source.dtype) for source in sources))
        if self._cache is None or self._cache[0] != key:
            self._cache = key, F.linear(self.block.norm1(self.prompts(self.index)), weight, bias)
        return None, self._cache[1]

    def _tap(self, x: Tensor, out: Tensor, prompts: Tensor | None) -> None:
        prefix = self.num_prefix_tokens
        if prompts is None:  # the assignment's warm-up looks at the trunk alone
            prompts = self.block.norm1(self.prompts(self.index))
        self.taps[self.index] = BlockTap(out[:, prefix:], x[:, prefix:], prompts, partial(_project, self))


def _project(attention: PromptedAttention, x: Tensor, to: str) -> Tensor:
    """``W_q x + b_q`` or ``W_k x + b_k``, shape ``(..., D)``, before the split into heads."""
    width, part = attention.block.attn.attn_dim, ('query', 'key').index(to)
    bias = attention._qkv_bias()
    rows = slice(part * width, (part + 1) * width)
    return F.linear(x, attention.block.attn.qkv.weight[rows], None if bias is None else bias[rows])


def _split(bias: Tensor | None, width: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if bias is None else (bias[:width], bias[width:])


def carry_prompts(block: Block, prompts: Prompts) -> None:
    """VPT-Shallow: join the prompts to the tokens before the first block; later blocks carry them along.

    They stand behind the patches, ``[prefix, patches, P]``: attention has no order, and the patches keep their place.
    """

    def append(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if not prompts.enabled:
            return args
        return (torch.cat([x, prompts(0).to(x.dtype).expand(len(x), -1, -1)], dim=1), *args[1:])

    block.register_forward_pre_hook(append)
