"""Prompts as keys and values: the one place where this project reaches into a trunk's attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..trunks import projection
from .prompts import Prompts


@dataclass(frozen=True)
class BlockActivations:
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
    """Takes the place of ``forward`` in one attention module of timm, whose parameters it uses and never copies.

    VPT-Deep lets prompts attend too and drops their outputs after the block. Nothing reads those outputs, so the
    block equals attention in which the prompts are ``M`` more keys and values, the same for every image:

        K_p, V_p = heads(W_k LN1(P) + b_k), heads(W_v LN1(P) + b_v)
        out      = softmax(Q [K_p; K]^T / sqrt(d)) [V_p; V]

    With a gate ``g`` of the block (``prompts.gate``) they are attended to apart, silent at first:

        out      = softmax(Q K^T / sqrt(d)) V + softmax(Q K_p^T / sqrt(d)) g V_p

    Prompts have no position: rotary codes turn the patches' queries and keys only, and a relative position bias
    (BEiT) is zero between a query and a prompt.

    Args:
        block: The pre-norm block; its ``attn.forward`` is replaced.
        index: Index of the block, to look up its prompts.
        prompts: The trunk's prompts, or ``None`` if this block has none.
        biases: Tuned offsets ``(D,)`` of its projections' biases, by ``'q'``, ``'k'``, ``'v'``; may be empty.
        lora: Layers in place of its projections, by ``'q'``, ``'k'``, ``'v'``, ``'proj'``; may be empty.
        num_prefix_tokens: Class token and registers, which are no patches.
    """

    def __init__(
        self,
        block: nn.Module,
        index: int,
        prompts: Prompts | None,
        biases: Mapping[str, Tensor],
        lora: Mapping[str, nn.Module],
        num_prefix_tokens: int,
    ) -> None:
        self.block, self.index, self.prompts, self.biases, self.lora = block, index, prompts, biases, lora
        self.num_prefix_tokens = num_prefix_tokens
        self.activations: dict[int, BlockActivations] | None = None
        self._cache: tuple[tuple, tuple[Tensor, Tensor]] | None = None
        block.attn.forward = self

    def __call__(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        shared_rel_pos_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attention over ``x``, shape ``(B, T + N, D)``, already through ``LN1``; returns the same shape."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError('prompts join full attention only: no attn_mask, no is_causal')
        attn = self.block.attn
        # Each apart, because a fused output would stay alive for backward beside the concatenated keys and values.
        v = self._heads(self.project(x, 'v'))
        q, k = (tokens.type_as(v) for tokens in self._queries_and_keys(x, rope))
        bias = _position_bias(attn, shared_rel_pos_bias)
        prompts = said = None
        if self.prompts is not None and self.prompts.enabled:
            prompts, k_prompts, v_prompts = self._project_prompts(x.device.type)
            if self.prompts.gated and torch.is_grad_enabled():  # scores are made again in backward, not kept
                said = checkpoint(self._ask_prompts, q, k_prompts, v_prompts, use_reentrant=False)
            elif self.prompts.gated:
                said = self._ask_prompts(q, k_prompts, v_prompts)
            else:
                k = torch.cat([k_prompts.to(k.dtype).expand(len(x), -1, -1, -1), k], dim=2)
                v = torch.cat([v_prompts.to(v.dtype).expand(len(x), -1, -1, -1), v], dim=2)
                bias = None if bias is None else F.pad(bias, (k_prompts.shape[-2], 0))
        out = self._attend(q, k, v, bias)
        out = (out if said is None else out + said).transpose(1, 2).flatten(2)
        if self.activations is not None:
            self._tap(x, out, prompts)
        out = self._norm('norm', out)
        if getattr(attn, 'gate', None) is not None:
            out = out * attn.gate(x).sigmoid()
        return attn.proj_drop(self.project(out, 'proj'))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """``softmax(Q K^T / sqrt(d) + bias) V``, ``(B, H, T + N, d)``."""
        attn = self.block.attn
        if attn.fused_attn:  # timm's switch: TIMM_FUSED_ATTN, timm.layers.set_fused_attn
            dropout = attn.attn_drop.p if attn.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        return attn.attn_drop((scores if bias is None else scores + bias).softmax(dim=-1)) @ v

    def _ask_prompts(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``softmax(Q K_p^T / sqrt(d)) g V_p``, ``(B, H, T + N, d)``, of keys and values ``(H, M, d)``.

        All images ask the same prompts: one product a head, with the scale in the few keys.
        """
        attn = self.block.attn
        queries = q.transpose(0, 1).flatten(1, 2)  # (H, B (T + N), d), no copy
        scores = queries @ (k.to(q.dtype) * attn.scale).transpose(-2, -1)
        said = attn.attn_drop(scores.softmax(dim=-1)) @ v.to(q.dtype)
        return said.unflatten(1, (len(q), -1)).transpose(0, 1)

    def project(self, x: Tensor, part: str) -> Tensor:
        """``W x + b`` of a projection (``'q'``, ``'k'``, ``'v'``, ``'proj'``), ``(..., D)``, not split into heads."""
        if part in self.lora:
            out = self.lora[part](x)
            return out + self.biases[part] if part in self.biases else out
        weight, bias = projection(self.block.attn, part)
        if part in self.biases:
            bias = bias + self.biases[part]
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def attention_to_prompts(self, x: Tensor, rope: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Share of each patch's attention that each prompt gets, ``(B, N, M)``, mean over the heads; for diagnosis.

        Behind a gate, prompts share all of an attention of their own.

        Args:
            x: What the attention module gets, ``(B, T + N, D)``.
            rope: Rotary codes, as the module gets them.
            bias: Relative positions that blocks share, as the module gets them.
        """
        q, k = self._queries_and_keys(x, rope)
        k_prompts, _ = self._keys_and_values(self.block.norm1(self.prompts(self.index)))
        k_prompts = k_prompts.to(k.dtype).expand(len(x), -1, -1, -1)
        q = q[:, :, self.num_prefix_tokens :] * q.shape[-1] ** -0.5
        if self.prompts.gated:
            return (q @ k_prompts.transpose(-1, -2)).softmax(dim=-1).mean(dim=1)
        scores = q @ torch.cat([k_prompts, k], dim=2).transpose(-1, -2)
        if (positions := _position_bias(self.block.attn, bias)) is not None:
            scores[..., k_prompts.shape[-2] :] += positions[:, :, self.num_prefix_tokens :]
        return scores.softmax(dim=-1)[..., : k_prompts.shape[-2]].mean(dim=1)

    def _queries_and_keys(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of prefix and patches, normed and rotated as the trunk does, ``(B, H, T + N, d)``."""
        q, k = (self._heads(self.project(x, part)) for part in 'qk')
        q, k = self._norm('q_norm', q), self._norm('k_norm', k)
        return (q, k) if rope is None else (self._rotate(q, rope), self._rotate(k, rope))

    def _heads(self, x: Tensor) -> Tensor:
        """``(..., N, D)`` -> ``(..., H, N, d)``."""
        return x.unflatten(-1, (self.block.attn.num_heads, -1)).transpose(-3, -2)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """A norm that not every attention of timm has."""
        norm = getattr(self.block.attn, name, None)
        return x if norm is None else norm(x)

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        """Rotary position codes on the patches of ``x``, shape ``(B, H, T + N, d)``."""
        attn = self.block.attn
        prefix, patches = x[:, :, : attn.num_prefix_tokens], x[:, :, attn.num_prefix_tokens :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2)

    def _project_prompts(self, device: str) -> tuple[Tensor | None, Tensor, Tensor]:
        """``LN1(P)``, ``K_p``, ``V_p``: ``(M, D)`` and twice ``(H, M, d)``. Constants in eval mode: computed once."""
        if (
            self.prompts.training
            or torch.is_grad_enabled()
            or self.activations is not None
            or torch.compiler.is_compiling()
        ):
            prompts = self.block.norm1(self.prompts(self.index))
            return prompts, *self._keys_and_values(prompts)
        amp = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        sources = [
            self.prompts.tokens[str(self.index)],
            *([self.prompts.gates[str(self.index)]] if self.prompts.gated else []),
            *self.block.norm1.parameters(),
            *self.block.attn.parameters(),
            *self.biases.values(),
            *(parameter for layer in self.lora.values() for parameter in layer.parameters()),
        ]
        key = (amp, *((source.data_ptr(), source._version, source.dtype) for source in sources))
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._keys_and_values(self.block.norm1(self.prompts(self.index)))
        return None, *self._cache[1]

    def _keys_and_values(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (self._heads(self.project(prompts, part)) for part in 'kv')
        if self.prompts.gated:
            v = v * self.prompts.gates[str(self.index)]
        return self._norm('k_norm', k), v

    def _tap(self, x: Tensor, out: Tensor, prompts: Tensor | None) -> None:
        prefix = self.num_prefix_tokens
        if prompts is None:  # the assignment's warm-up looks at the trunk alone
            prompts = self.block.norm1(self.prompts(self.index))
        self.activations[self.index] = BlockActivations(out[:, prefix:], x[:, prefix:], prompts, self._project_to)

    def _project_to(self, x: Tensor, to: str) -> Tensor:
        return self.project(x, {'query': 'q', 'key': 'k'}[to])


def _position_bias(attn: nn.Module, shared: Tensor | None) -> Tensor | None:
    """BEiT's relative position bias, ``(1, H, T + N, T + N)``: the block's own, the one that blocks share, or both."""
    if getattr(attn, 'relative_position_bias_table', None) is None:
        return shared
    own = attn._get_rel_pos_bias()
    return own if shared is None else own + shared


class ShallowPrompts:
    """VPT-Shallow: prompts join the tokens before the first block; later blocks carry them along.

    They stand between prefix and patches, ``[prefix, P, patches]``. Rotary attention leaves as many tokens in front
    alone as it is told.

    Args:
        trunk: The trunk; its first block is hooked.
        prompts: Shallow prompts.

    Raises:
        ValueError: The attention looks positions up in a table that has none for prompts (BEiT).
    """

    def __init__(self, trunk: nn.Module, prompts: Prompts) -> None:
        self.prompts, self.num_prefix_tokens = prompts, trunk.num_prefix_tokens
        for block in trunk.blocks:
            if hasattr(block.attn, 'relative_position_bias_table'):
                raise ValueError('tuning: shallow prompts have no place in a table of relative positions: use vpt_deep')
            if hasattr(block.attn, 'num_prefix_tokens'):
                block.attn.num_prefix_tokens += len(prompts.tokens['0'])
        trunk.blocks[0].register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Forward pre-hook of the first block: ``(B, T + N, D)`` tokens become ``(B, T + M + N, D)``."""
        x, prefix = args[0], self.num_prefix_tokens
        prompts = self.prompts(0).to(x.dtype).expand(len(x), -1, -1)
        return (torch.cat([x[:, :prefix], prompts, x[:, prefix:]], dim=1), *args[1:])
