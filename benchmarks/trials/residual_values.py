"""Variants of residual values: ``benchmarks/suites/camvid_search_residual.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg_davpt.trunks import Trunk
from mmseg_davpt.tuning import TUNING_METHODS, TunedAttention, TunedBlock, policy
from mmseg_davpt.tuning.attention import ResidualValues
from mmseg_davpt.tuning.residual_prompts import ResidualPrompts

policy.PROMPTS = (*policy.PROMPTS, 'residual_variant')  # `prompts` in a config holds for it, too


@TUNING_METHODS.register_module(name='residual_variant')
class ResidualVariant(ResidualPrompts):
    """Residual values with one change.

    Args:
        trunk, depth, num, blocks, init, dropout: As for ``residual_prompts``.
        where: Where the values join: after ``'attention'``, after the ``'mlp'``, after ``'both'`` (values of each), or
            ``'nowhere'``: the prompts are proxies of the guidance and do not act.
        choice: How scores become weights: ``'softmax'``, ``'sigmoid'`` or ``'relu'`` (divided by the number of
            prompts), or ``'top'``: softmax over the four highest scores.
        scaled: A trainable factor of the scores and one of the weights, per head, both one at first.
        null: A further prompt with a trainable key and the value zero.
        free_keys: Trainable keys ``(H, M, d)`` in place of the projected prompts, which then only serve the guidance.
        rank: Values ``A B`` with ``A``, ``(M, rank)``, of each block and ``B``, ``(rank, D)``, shared by the blocks.
    """

    presets = {}

    def __init__(
        self,
        trunk: Trunk,
        depth: int,
        num: int | Sequence[int] = 20,
        blocks: str | Sequence[int] = 'all',
        init: str = 'prototype',
        dropout: float = 0.0,
        where: str = 'attention',
        choice: str = 'softmax',
        scaled: bool = False,
        null: bool = False,
        free_keys: bool = False,
        rank: int | None = None,
    ) -> None:
        super().__init__(trunk, depth, num, blocks, init, dropout)
        assert where in ('attention', 'mlp', 'both', 'nowhere') and choice in ('softmax', 'sigmoid', 'relu', 'top')
        self.where, self.choice = where, choice
        names = list(self.tokens)
        heads = trunk.blocks[0].attn.num_heads
        if where == 'nowhere':
            self.values = nn.ParameterDict()
        self.mlp_values = nn.ParameterDict()
        if where == 'both':
            self.mlp_values = nn.ParameterDict({name: torch.zeros_like(self.tokens[name]) for name in names})
        self.scales = nn.ParameterDict({name: torch.ones(2, heads, 1, 1) for name in names} if scaled else {})
        self.nulls, self.free_keys = nn.ParameterDict(), nn.ParameterDict()
        if null:
            self.nulls = nn.ParameterDict({name: torch.zeros(heads, 1, self.width // heads) for name in names})
        if free_keys:
            self.free_keys = nn.ParameterDict(
                {name: torch.randn(heads, len(self.tokens[name]), self.width // heads) for name in names}
            )
        self.base = None
        if rank is not None:
            self.values = nn.ParameterDict({name: torch.zeros(len(self.tokens[name]), rank) for name in names})
            self.base = nn.Parameter(torch.randn(rank, self.width) / rank**0.5)
        self._weights: dict[int, Tensor] = {}  # of the forward pass, from the attention to the MLP branch

    def _project(self, block: TunedBlock) -> ResidualValues:
        name = str(block.index)
        tokens = block.norm1(self(block.index))
        keys = self.free_keys[name] if self.free_keys else block.attn.prompt_keys(tokens)
        values = self._values(name) if self.where != 'nowhere' else tokens
        if self.nulls:
            keys, values = torch.cat([keys, self.nulls[name]], dim=1), torch.cat([values, torch.zeros_like(values[:1])])
        return VariantValues(tokens, keys, values, self)

    def _values(self, name: str) -> Tensor:
        values = self.values[name]
        return values if self.base is None else values @ self.base

    def mlp_branch(self, block: int, x: Tensor, grid: tuple[int, int] | None) -> Tensor | None:
        """The values that join after the MLP, with the weights of the block's attention."""
        weights = self._weights.pop(block, None)
        if weights is None:
            return None
        values = self.mlp_values[str(block)] if self.where == 'both' else self._values(str(block))
        return (weights @ values.to(weights.dtype)).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class VariantValues(ResidualValues):
    """``ResidualValues`` of a :class:`ResidualVariant`."""

    method: ResidualVariant

    def weights(self, attention: TunedAttention, q: Tensor) -> Tensor:
        """As of the method's ``choice``."""
        score_scale, weight_scale = self.method.scales[str(attention.index)] if self.method.scales else (1.0, 1.0)
        keys = self.keys * score_scale * attention.scale
        scores = q.transpose(0, 1).flatten(1, 2) @ keys.to(q.dtype).transpose(-2, -1)
        if self.method.choice == 'top':
            scores = scores.masked_fill(scores < scores.topk(4, dim=-1).values[..., -1:], float('-inf'))
        if self.method.choice in ('softmax', 'top'):
            return scores.softmax(dim=-1) * weight_scale
        return getattr(scores, self.method.choice)() * weight_scale / scores.shape[-1]

    def residual(self, attention: TunedAttention, q: Tensor) -> Tensor | None:
        """After the attention, unless the values join elsewhere."""
        if self.method.where in ('mlp', 'both'):
            self.method._weights[attention.index] = self.weights(attention, q).mean(dim=0)
        return super().residual(attention, q) if self.method.where in ('attention', 'both') else None


@HOOKS.register_module()
class SemanticValuesHook(Hook):
    """Start the values with differences of class prototypes: the mean update of a class by its block, centered.

    Prompts hold the prototypes of each block's input (``init='prototype'``), so the update of block ``l`` is the
    difference between the prompts of ``l + 1`` and ``l``. For no more classes than prompts, whose order is then the
    same in all blocks. The last block keeps zeros.

    Args:
        scale: Factor of the differences.
    """

    priority = 'LOW'  # behind PromptAssignmentHook

    def __init__(self, scale: float = 0.1) -> None:
        self.scale = scale

    @torch.no_grad()
    def before_train(self, runner: Runner) -> None:
        """Write the values, unless the run is resumed."""
        if runner.iter:
            return
        prompts, guidance = runner.model.backbone.prompts, runner.model.guidance
        used = guidance.assignment_of[guidance.blocks[-1]].assignment
        for block in prompts.blocks[:-1]:
            update = prompts.tokens[str(block + 1)][used] - prompts.tokens[str(block)][used]
            prompts.values[str(block)][used] = self.scale * (update - update.mean(dim=0))
