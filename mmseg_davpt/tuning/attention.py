"""Attention that tuning methods act on: the one place where this project computes attention itself."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import beit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..trunks import project


class ProjectionMethod(Protocol):
    """What attention needs of a tuning method; see :class:`~mmseg_davpt.tuning.base.TuningMethod`."""

    active: bool

    def project(self, block: int, target: str, x: Tensor, out: Tensor) -> Tensor:
        """Change the output of a projection."""


@dataclass(frozen=True)
class BlockActivations:
    """What the guidance reads of one block.

    Attributes:
        attn_out: Attention output of the patch tokens, heads concatenated, before the output projection, ``(B, N, D)``.
        tokens: Input of the attention, ``LN1(x)``, patch tokens only, ``(B, N, D)``.
        prompts: ``LN1(P)``, ``(M, D)``; ``(0, D)`` where no prompts joined.
        project: ``project(x, 'query' | 'key')`` applies the block's projection to ``(..., D)`` tokens or means.
    """

    attn_out: Tensor
    tokens: Tensor
    prompts: Tensor
    project: Callable[[Tensor, str], Tensor]


class TunedAttention(nn.Module):
    """Self-attention of timm, with projections that tuning methods change and prompts that join as keys and values.

    It adopts the children and parameters of the attention under timm's names, so that the state dict keeps its keys.
    ViT (fused projections), EVA and DINOv3 (rotary codes, split projections) and BEiT (relative positions) share it.

    Args:
        attn: An attention module of timm.
        index: Index of its block.
        num_prefix_tokens: Class token and registers, which are no patches.

    Attributes:
        methods: Methods that change its projections. References only: ``PromptedViT.tuned`` holds the modules.
        recorder: Block -> activations, filled by a forward pass inside of ``PromptedViT.record``; otherwise ``None``.
    """

    # Adopted from timm's attention.
    num_heads: int
    scale: float
    fused_attn: bool
    attn_drop: nn.Dropout
    proj: nn.Linear
    proj_drop: nn.Dropout
    gate: nn.Module  # in few kinds only; it may be None
    num_prefix_tokens: int  # with rotary codes only

    def __init__(self, attn: nn.Module, index: int, num_prefix_tokens: int) -> None:
        super().__init__()
        adopt(self, attn)
        self.index, self.prefix_length = index, num_prefix_tokens
        self.methods: list[ProjectionMethod] = []
        self.recorder: MutableMapping[int, BlockActivations] | None = None

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        shared_rel_pos_bias: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        joined: JoinedPrompts | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Attention over ``x``, shape ``(B, T + N, D)``, after ``LN1``.

        Returns:
            The output, of the shape of ``x``. With ``joined``, a pair: the output, and what the prompts add to the
            residual stream behind LayerScale, of the same shape or ``None`` (:meth:`JoinedPrompts.residual`).

        Raises:
            NotImplementedError: A mask: no supported trunk has one.
        """
        if attn_mask is not None or is_causal:
            raise NotImplementedError('tuned attention is full attention: no attn_mask, no is_causal')
        # Each apart, because a fused output would stay alive for backward beside the concatenated keys and values.
        v = self.split_heads(self.project(x, 'v'))
        q, k = (tokens.type_as(v) for tokens in self.queries_and_keys(x, rope))
        bias = self.position_bias(shared_rel_pos_bias)
        out = self.attend(q, k, v, bias) if joined is None else joined.attend(self, q, k, v, bias)
        out = out.transpose(1, 2).flatten(2)
        if self.recorder is not None:
            prompts = x.new_empty(0, x.shape[-1]) if joined is None else joined.tokens
            attn_out, tokens = (t[:, self.prefix_length :] for t in (out, x))
            self.recorder[self.index] = BlockActivations(attn_out, tokens, prompts, self._project_to)
        out = self._norm('norm', out)
        if getattr(self, 'gate', None) is not None:
            out = out * self.gate(x).sigmoid()
        out = self.proj_drop(self.project(out, 'proj'))
        return out if joined is None else (out, joined.residual(self, q))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """``softmax(Q K^T / sqrt(d) + bias) V``, ``(B, H, T + N, d)``."""
        if self.fused_attn:  # timm's switch: TIMM_FUSED_ATTN, timm.layers.set_fused_attn
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        return self.attn_drop((scores if bias is None else scores + bias).softmax(dim=-1)) @ v

    def project(self, x: Tensor, target: str) -> Tensor:
        """``W x + b`` of ``'q'``, ``'k'``, ``'v'`` or ``'proj'`` with the changes of the methods, ``(..., D)``."""
        out = project(self, target, x)
        for method in self.methods:
            if method.active:
                out = method.project(self.index, target, x, out)
        return out

    def queries_and_keys(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Of prefix and patches, normed and rotated as the trunk does, ``(B, H, T + N, d)``."""
        q, k = (self.split_heads(self.project(x, target)) for target in 'qk')
        q, k = self._norm('q_norm', q), self._norm('k_norm', k)
        return (q, k) if rope is None else (self._rotate(q, rope), self._rotate(k, rope))

    def prompt_keys(self, prompts: Tensor) -> Tensor:
        """Keys of prompts ``LN1(P)``, ``(M, D)`` -> ``(H, M, d)``. Prompts have no position."""
        return self._norm('k_norm', self.split_heads(self.project(prompts, 'k')))

    def prompt_values(self, prompts: Tensor) -> Tensor:
        """Values of prompts ``LN1(P)``, ``(M, D)`` -> ``(H, M, d)``."""
        return self.split_heads(self.project(prompts, 'v'))

    def position_bias(self, shared: Tensor | None = None) -> Tensor | None:
        """BEiT's relative position bias, ``(1, H, T + N, T + N)``: of this block, shared by the blocks, or both."""
        if getattr(self, 'relative_position_bias_table', None) is None:
            return shared
        bias = beit.Attention._get_rel_pos_bias(self)  # type: ignore[arg-type]  # self has adopted what it reads
        return bias if shared is None else bias + shared

    def split_heads(self, x: Tensor) -> Tensor:
        """``(..., N, D)`` -> ``(..., H, N, d)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """A norm that not every attention of timm has."""
        norm = getattr(self, name, None)
        return x if norm is None else norm(x)

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        """Rotary position codes on the patches of ``x``, shape ``(B, H, T + N, d)``."""
        prefix, half = self.num_prefix_tokens, getattr(self, 'rotate_half', False)
        patches = apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)
        return torch.cat([x[:, :, :prefix], patches], dim=2)

    def _project_to(self, x: Tensor, space: str) -> Tensor:
        weight, target = self.proj.weight, {'query': 'q', 'key': 'k'}[space]
        dtype = weight.dtype if isinstance(weight, Tensor) else x.dtype  # a quantised layer takes what it gets
        half = dtype in (torch.bfloat16, torch.float16)  # trainable parameters beside frozen weights are float32
        with torch.autocast(x.device.type, dtype) if half else nullcontext():
            return self.project(x.to(dtype), target).to(x.dtype)


@dataclass(frozen=True)
class JoinedPrompts:
    """Prompts as ``M`` more keys and values of one block, the same for every image (VPT-Deep).

    ::

        K_p, V_p = heads(W_k LN1(P) + b_k), heads(W_v LN1(P) + b_v)
        out      = softmax(Q [K_p; K]^T / sqrt(d)) [V_p; V]

    VPT-Deep lets prompts attend too and drops their outputs after the block. Nothing reads those outputs, so the two
    forms are equal. A relative position bias (BEiT) is zero between a query and a prompt.

    Attributes:
        tokens: ``LN1(P)``, ``(M, D)``.
        keys: ``K_p``, ``(H, M, d)``.
        values: ``V_p``, ``(H, M, d)``.
    """

    separate_softmax: ClassVar[bool] = False  # whether attention to prompts has a separate softmax

    tokens: Tensor
    keys: Tensor
    values: Tensor

    def attend(self, attention: TunedAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of all queries to prompts and tokens, ``(B, H, T + N, d)``."""
        k = torch.cat([self.keys.to(k.dtype).expand(k.shape[0], -1, -1, -1), k], dim=2)
        v = torch.cat([self.values.to(v.dtype).expand(v.shape[0], -1, -1, -1), v], dim=2)
        bias = None if bias is None else F.pad(bias, (self.keys.shape[-2], 0))
        return attention.attend(q, k, v, bias)

    def residual(self, attention: TunedAttention, q: Tensor) -> Tensor | None:
        """What the prompts add to the residual stream, ``(B, T + N, D)``; ``None`` for prompts that are values."""
        return None

    def weights(self, attention: TunedAttention, q: Tensor) -> Tensor:
        """``softmax(Q K_p^T / sqrt(d))``, ``(H, B (T + N), M)``. All images share the prompts: one product per head."""
        queries = q.transpose(0, 1).flatten(1, 2)  # (H, B (T + N), d), no copy
        scores = queries @ (self.keys.to(q.dtype) * attention.scale).transpose(-2, -1)
        return attention.attn_drop(scores.softmax(dim=-1))


@dataclass(frozen=True)
class GatedPrompts(JoinedPrompts):
    """Prompts with a separate softmax and a gate ``g`` per block, zero at the start.

    ::

        out = softmax(Q K^T / sqrt(d)) V + softmax(Q K_p^T / sqrt(d)) g V_p

    ``values`` hold ``g V_p``. After the zero-initialized attention of LLaMA-Adapter (Zhang et al., ICLR 2024, section
    3.2); not part of VPT or DA-VPT.
    """

    separate_softmax = True

    def attend(self, attention: TunedAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of all queries to the tokens, plus their attention to the prompts, ``(B, H, T + N, d)``."""
        return attention.attend(q, k, v, bias) + recomputed(self._attend_to_prompts, attention, q)

    def _attend_to_prompts(self, attention: TunedAttention, q: Tensor) -> Tensor:
        """``softmax(Q K_p^T / sqrt(d)) g V_p``, ``(B, H, T + N, d)``."""
        out = self.weights(attention, q) @ self.values.to(q.dtype)
        return out.unflatten(1, (q.shape[0], -1)).transpose(0, 1)


@dataclass(frozen=True)
class ResidualValues(JoinedPrompts):
    """Prompts with a separate softmax and free values that join the residual stream.

    ::

        a    = mean over heads of softmax(Q K_p^T / sqrt(d))
        x_n += LS1(softmax(Q K^T / sqrt(d)) V W_o) + sum_m a_nm V_m

    ``values`` hold ``V``, ``(M, D)``. They pass neither the frozen value and output projections nor LayerScale.
    """

    separate_softmax = True

    def attend(self, attention: TunedAttention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of all queries to the tokens alone, ``(B, H, T + N, d)``."""
        return attention.attend(q, k, v, bias)

    def residual(self, attention: TunedAttention, q: Tensor) -> Tensor:
        """``sum_m a_nm V_m``, ``(B, T + N, D)``."""
        return recomputed(self._mix_values, attention, q)

    def _mix_values(self, attention: TunedAttention, q: Tensor) -> Tensor:
        out = self.weights(attention, q).mean(dim=0) @ self.values.to(q.dtype)
        return out.unflatten(0, (q.shape[0], -1))


def recomputed(function: Callable[[TunedAttention, Tensor], Tensor], attention: TunedAttention, q: Tensor) -> Tensor:
    """``function(attention, q)``. With gradients, the backward pass computes it again instead of keeping the scores."""
    if torch.is_grad_enabled():
        return checkpoint(function, attention, q, use_reentrant=False)
    return function(attention, q)


def adopt(module: nn.Module, source: nn.Module) -> None:
    """Give a new module the children, parameters, buffers and plain attributes of another one, under the same names."""
    for kind in ('_modules', '_parameters', '_buffers', '_non_persistent_buffers_set'):
        getattr(module, kind).update(getattr(source, kind))
    for name, value in vars(source).items():
        if not name.startswith('_'):
            setattr(module, name, value)
