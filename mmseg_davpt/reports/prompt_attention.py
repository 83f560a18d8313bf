"""How the attention of patches is spread over prompts, by the patches' class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from ..models import PromptedEncoderDecoder
from ..tuning import DeepPrompts, TunedBlock


@torch.no_grad()
def attention_to_prompts(block: TunedBlock, x: Tensor, rope: Tensor | None, bias: Tensor | None) -> Tensor:
    """Share of each patch's attention that each prompt gets, mean over the heads.

    Gated prompts and residual values have a softmax of their own: their shares sum to 1.

    Args:
        block: A prompted block.
        x: Input of its attention, ``(B, T + N, D)``.
        rope: Rotary codes, as the attention gets them.
        bias: Relative positions that blocks share, as the attention gets them.

    Returns:
        ``(B, N, M)`` in [0, 1].
    """
    attn = block.attn
    joined = next(prompts for method in block.methods if (prompts := method.join(block)) is not None)
    q, k = attn.queries_and_keys(x, rope)
    keys = joined.keys.to(k.dtype).expand(len(x), -1, -1, -1)
    q = q[:, :, attn.prefix_length :] * attn.scale
    if joined.separate_softmax:
        return (q @ keys.transpose(-1, -2)).softmax(dim=-1).mean(dim=1)
    scores = q @ torch.cat([keys, k], dim=2).transpose(-1, -2)
    if (positions := attn.position_bias(bias)) is not None:
        scores[..., keys.shape[-2] :] += positions[:, :, attn.prefix_length :]
    return scores.softmax(dim=-1)[..., : keys.shape[-2]].mean(dim=1)


@torch.no_grad()
def attention_mass(
    model: PromptedEncoderDecoder, batches: Iterable[dict[str, Any]], block: int = -1
) -> dict[str, float]:
    """Measure a block's attention to its prompts.

    Args:
        model: A segmentor with deep prompts, with or without guidance; not wrapped for distributed training.
        batches: Of a data loader, with labels.
        block: Which of the prompted blocks.

    Returns:
        ``to_prompts``: percent of a patch's attention that goes to prompts (mean over patches).
        ``to_own``: percent of that which goes to the prompt of the patch's own class; only with an assignment.
        ``own_by_chance``: what ``to_own`` would be if prompts did not tell classes apart: the same prompts, the mean
        over all classes, each with the weight of its patches.
        ``bits``: mutual information of a patch's class and the prompt that it attends to; 0 if all classes attend
        alike.
    """
    backbone = model.backbone
    index = sorted(cast(DeepPrompts, backbone.prompts).blocks)[block]
    tuned_block = backbone.trunk.blocks[index]
    table = torch.zeros(model.num_classes, backbone.prompt_counts[index], dtype=torch.float64)
    patches = torch.zeros(model.num_classes, dtype=torch.float64)
    fractions: Tensor  # of the batch in the forward pass

    def measure(_: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        mass = attention_to_prompts(tuned_block, args[0], kwargs.get('rope'), kwargs.get('shared_rel_pos_bias'))
        table.add_(torch.einsum('bnc,bnm->cm', fractions.double(), mass.double()).cpu())
        patches.add_(fractions.double().sum(dim=(0, 1)).cpu())

    was_training = model.training
    model.eval()
    handle = tuned_block.attn.register_forward_pre_hook(measure, with_kwargs=True)
    try:
        for batch in batches:
            batch = model.data_preprocessor(batch, training=True)
            fractions = model.class_fractions(batch['data_samples'])
            backbone(batch['inputs'])
    finally:
        handle.remove()
        model.train(was_training)
    return _describe(table, patches, _assignment(model, index))


def _assignment(model: PromptedEncoderDecoder, block: int) -> Tensor | None:
    if model.guidance is None or block not in model.guidance.blocks:
        return None
    return model.guidance.assignment_of[block].assignment.cpu()


def _describe(table: Tensor, patches: Tensor, assignment: Tensor | None) -> dict[str, float]:
    """``table[c, m]``: attention mass from patches of class ``c`` to prompt ``m``."""
    joint = table / table.sum()
    of_class, of_prompt = joint.sum(dim=1, keepdim=True), joint.sum(dim=0, keepdim=True)
    ratio = torch.where(joint > 0, joint / (of_class * of_prompt), 1.0)
    described = dict(
        to_prompts=100 * (table.sum() / patches.sum()).item(), bits=(joint * ratio.log2()).sum().clamp(min=0).item()
    )
    if assignment is not None and (assignment >= 0).any():
        seen = assignment >= 0
        classes, prompts = torch.nonzero(seen).squeeze(1), assignment[seen]
        described['to_own'] = 100 * joint[classes, prompts].sum().item()
        described['own_by_chance'] = 100 * (of_class[classes, 0] * of_prompt[0, prompts]).sum().item()
    return described
