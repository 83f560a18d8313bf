"""Whom the prompts speak to: how the attention of patches is spread over prompts, by the patches' class."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..models import PromptedEncoderDecoder


@HOOKS.register_module()
class AttentionMassHook(Hook):
    """Measure :func:`attention_mass` on images of the validation loader before and after training.

    The figures stand in the runner's message hub, as ``attention_before`` and ``attention_after``.

    Args:
        num_batches: How many batches are looked at.
    """

    priority = 'LOW'  # behind PromptAssignmentHook

    def __init__(self, num_batches: int = 20) -> None:
        self.num_batches = num_batches

    def before_train(self, runner: Runner) -> None:
        """Measure, unless the run is resumed."""
        if runner.iter == 0:
            self._measure(runner, 'attention_before')

    def after_train(self, runner: Runner) -> None:
        """Measure."""
        self._measure(runner, 'attention_after')

    def _measure(self, runner: Runner, name: str) -> None:
        loader = runner.val_loop.dataloader
        runner.message_hub.update_info(name, attention_mass(runner.model, islice(loader, self.num_batches)))


@torch.no_grad()
def attention_mass(model: PromptedEncoderDecoder, batches: Iterable[dict], block: int = -1) -> dict[str, float]:
    """Measure a block's attention to its prompts.

    Args:
        model: A segmentor with deep prompts, with or without guidance.
        batches: Of a data loader, with labels.
        block: Which block, as ``guidance.blocks`` counts.

    Returns:
        ``to_prompts``: percent of a patch's attention that goes to prompts (mean over patches).
        ``to_own``: percent of that which goes to the prompt of the patch's own class; only with an assignment.
        ``own_by_chance``: what ``to_own`` would be if prompts did not tell classes apart: the same prompts, the mean
        over all classes, each with the weight of its patches.
        ``bits``: mutual information of the patch's class and the prompt that it attends to; 0 if all classes attend
        alike.
    """
    backbone = model.backbone
    index = sorted(backbone.prompts.blocks)[block]
    attention = backbone.trunk.blocks[index].attn.forward
    table = torch.zeros(model.num_classes, backbone.prompt_counts[index], dtype=torch.float64)
    patches = torch.zeros(model.num_classes, dtype=torch.float64)
    fractions: Tensor | None = None

    def look(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        mass = attention.attention_to_prompts(args[0], kwargs.get('rope'), kwargs.get('shared_rel_pos_bias'))
        table.add_(torch.einsum('bnc,bnm->cm', fractions.double(), mass.double()).cpu())
        patches.add_(fractions.double().sum(dim=(0, 1)).cpu())

    was_training = model.training
    model.eval()
    handle = backbone.trunk.blocks[index].attn.register_forward_pre_hook(look, with_kwargs=True)
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
    return model.guidance.assignments[model.guidance.blocks.index(block)].assignment.cpu()


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
