"""Prompts with free values in the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..trunks import Trunk
from .attention import ResidualValues
from .base import TUNING_METHODS, Preset
from .block import TunedBlock
from .prompts import DeepPrompts


@TUNING_METHODS.register_module(name='residual_prompts')
class ResidualPrompts(DeepPrompts):
    """Prompts ``P^l`` are the keys, ``V^l`` their values: both of shape ``(M, D)``, in each prompted block.

    ::

        k_m  = W_k LN1(P_m) + b_k
        a_nm = mean over heads of softmax_m(q_n . k_m / sqrt(d))
        x_n += LS1(attention output) + sum_m a_nm V_m

    The attention weights come from the frozen queries. The guidance with ``sample_space='query'`` and
    ``prompt_space='key'`` acts on the same scores. The values are zero at the start, so training begins with the
    unchanged trunk.

    The keys are those of VPT and DA-VPT. The separate softmax that starts without effect is from LLaMA-Adapter (Zhang
    et al., ICLR 2024, section 3.2). Trainable tokens that change the residual stream are from Rein (Wei et al., CVPR
    2024, section 3.2); Rein's tokens have low rank, and its projections are trainable.

    Args:
        trunk: The trunk.
        depth: Number of blocks up to the last output.
        num: Prompts per block: one number, or one for each prompted block.
        blocks: ``'all'`` or block indices, negative ones counted from the end.
        init: Of the prompts, see :class:`~mmseg_davpt.tuning.DeepPrompts`.
        dropout: Probability that an element of a prompt is zeroed in training.

    Attributes:
        tokens: Block index, as a string -> prompts ``(M, D)``.
        values: Block index, as a string -> values ``(M, D)``.

    Raises:
        ValueError: An option out of range; the message names it.
    """

    presets = {
        'vpt_residual': Preset(dict(residual_prompts={})),
        'davpt_residual': Preset(dict(residual_prompts=dict(init='prototype')), guided=True),
        'davpt_residual_lora': Preset(dict(residual_prompts=dict(init='prototype'), lora={}), guided=True),
    }

    def __init__(
        self,
        trunk: Trunk,
        depth: int,
        num: int | Sequence[int] = 20,
        blocks: str | Sequence[int] = 'all',
        init: str = 'xavier',
        dropout: float = 0.0,
    ) -> None:
        super().__init__(trunk, depth, num, blocks, init, dropout)
        self.values = nn.ParameterDict({name: torch.zeros_like(tokens) for name, tokens in self.tokens.items()})

    def _project(self, block: TunedBlock) -> ResidualValues:
        tokens = block.norm1(self(block.index))
        return ResidualValues(tokens, block.attn.prompt_keys(tokens), self.values[str(block.index)])
