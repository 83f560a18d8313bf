"""``MetricGuidance``: both metric losses of DA-VPT over the guided blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from mmengine.logging import print_log
from mmseg.registry import MODELS
from torch import Tensor, nn

from .assignment import PromptAssignment
from .losses import ProxyAnchorLoss
from .prototypes import class_prototypes

SAMPLE_SPACES = ('attn_out', 'query', 'key', 'token')
PROMPT_SPACES = ('query', 'key', 'token')


class Activations(Protocol):
    """What a guided block hands out; see :class:`mmseg_davpt.prompts.BlockActivations`."""

    attn_out: Tensor
    tokens: Tensor
    prompts: Tensor
    project: Callable[[Tensor, str], Tensor]


@MODELS.register_module()
class MetricGuidance(nn.Module):
    """Metric guidance of prompts by pixel-class prototypes (DA-VPT, sections 3.2 to 3.4, for dense labels).

    Two Proxy-Anchor terms a guided block, averaged over the blocks: per-image prototypes of the attention output
    against the prompts (``loss_guide_patch``), and batch-level prototypes of the block's tokens against the prompts
    (``loss_guide_proto``), in place of the paper's term on the class token.

    Args:
        num_classes: Number of classes ``C``.
        blocks: Guided blocks, negative ones counted from the last that is read; the paper's best is the last alone.
        weight_patch: Weight ``beta`` of the first term; 0 leaves it out.
        weight_proto: Weight ``lambda`` of the second term; 0 leaves it out.
        sample_space: Where the first term's samples live: ``attn_out | query | key | token``.
        prompt_space: Where the prompts live: ``query | key | token``. A prompt's query never reaches the trunk's
            output, its key does: ``query`` samples against ``key`` prompts move the real attention weights.
        proto_space: Where the second term's samples live: the choice of ``sample_space``.
        alpha: Sharpness of :class:`ProxyAnchorLoss`.
        margin: Margin of :class:`ProxyAnchorLoss`.
        center_prototypes: Subtract the mean over a batch's prototypes before they are compared with the prompts.
            Prototypes of one image share most of their direction; the rest separates the classes. Ours, not the
            paper's.

    Raises:
        ValueError: An unknown space, no block, a negative weight.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (-1,),
        weight_patch: float = 0.05,
        weight_proto: float = 0.05,
        sample_space: str = 'attn_out',
        prompt_space: str = 'query',
        proto_space: str = 'query',
        alpha: float = 32.0,
        margin: float = 0.1,
        center_prototypes: bool = False,
    ) -> None:
        super().__init__()
        for key, space, known in (
            ('sample_space', sample_space, SAMPLE_SPACES),
            ('prompt_space', prompt_space, PROMPT_SPACES),
            ('proto_space', proto_space, SAMPLE_SPACES),
        ):
            if space not in known:
                raise ValueError(f'guidance.{key}={space!r}: expected one of {known}')
        if weight_patch < 0 or weight_proto < 0:
            raise ValueError(f'guidance: weights {weight_patch}, {weight_proto}: expected numbers >= 0')
        if not blocks:
            raise ValueError('guidance.blocks is empty: name a block, or leave the guidance out')
        self.num_classes, self.blocks = num_classes, tuple(blocks)
        self.weight_patch, self.weight_proto = weight_patch, weight_proto
        self.sample_space, self.prompt_space, self.proto_space = sample_space, prompt_space, proto_space
        self.metric, self.center_prototypes = ProxyAnchorLoss(alpha, margin), center_prototypes
        self.assignments = nn.ModuleList()
        self._looked = False

    def bind(self, prompt_counts: Sequence[int], embed_dims: int) -> None:
        """Make the state of the guided blocks; the segmentor calls this once, before anything is loaded.

        Args:
            prompt_counts: Prompts of each block of the backbone.
            embed_dims: Width of its tokens.

        Raises:
            ValueError: A guided block has no prompts of its own.
        """
        depth = len(prompt_counts)
        for block in self.blocks:
            if not -depth <= block < depth or not prompt_counts[block]:
                prompted = [index for index, count in enumerate(prompt_counts) if count]
                raise ValueError(
                    f'guidance.blocks={self.blocks}: block {block} has no prompts of its own; prompted (deep) are '
                    f'{prompted or "none"}'
                )
        self.blocks = tuple(sorted({block % depth for block in self.blocks}))
        for block in self.blocks:
            self.assignments.append(PromptAssignment(self.num_classes, prompt_counts[block], embed_dims))

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight; if not, training is VPT-Deep, bit for bit."""
        return self.weight_patch > 0 or self.weight_proto > 0

    def assigned(self) -> bool:
        """Whether any class has a prompt. Waits for the device."""
        return any(bool((part.assignment >= 0).any()) for part in self.assignments)

    def forward(self, activations: Mapping[int, Activations], fractions: Tensor) -> dict[str, Tensor]:
        """Both losses, weighted; also collects the class means that the next assignment is made from.

        Args:
            activations: What each guided block handed out.
            fractions: Label fractions of the patches, ``(B, N, C)``.

        Returns:
            ``loss_guide_patch`` and ``loss_guide_proto``, scalars in float32; a term without weight is left out.
        """
        self._look_for_assignment()
        terms: dict[str, list[Tensor]] = {'loss_guide_patch': [], 'loss_guide_proto': []}
        for block, part in zip(self.blocks, self.assignments, strict=True):
            block_activations = activations[block]
            samples, present = self._collect(part, block_activations, fractions)
            with torch.autocast(fractions.device.type, enabled=False):
                dtype = torch.promote_types(block_activations.prompts.dtype, torch.float32)
                prompts = _project(block_activations, block_activations.prompts.to(dtype), self.prompt_space)
            if self.weight_patch:
                loss = self._compare(samples, present, prompts, part.assignment)
                terms['loss_guide_patch'].append(self.weight_patch * loss)
            if self.weight_proto:
                batch = fractions.flatten(0, 1).unsqueeze(0)  # the batch as one image
                loss = self._compare(*_prototypes(block_activations, batch, self.proto_space), prompts, part.assignment)
                terms['loss_guide_proto'].append(self.weight_proto * loss)
        return {name: torch.stack(losses).mean() for name, losses in terms.items() if losses}

    def _compare(self, prototypes: Tensor, present: Tensor, prompts: Tensor, assignment: Tensor) -> Tensor:
        """The metric loss of prototypes ``(B, C, D)``, where ``present``, and prompts ``(M, D)``."""
        if self.center_prototypes:
            total = (present.unsqueeze(-1) * prototypes).sum(dim=(0, 1))  # a bias makes absent ones more than zero
            prototypes = prototypes - total / present.sum().clamp(min=1)
        labels = torch.arange(self.num_classes, device=present.device)
        labels = torch.where(present, labels, -1)
        return self.metric(prototypes.flatten(0, 1), labels.flatten(), prompts, assignment)

    @torch.no_grad()
    def collect(self, activations: Mapping[int, Activations], fractions: Tensor) -> None:
        """Collect the class means alone, before training."""
        for block, part in zip(self.blocks, self.assignments, strict=True):
            self._collect(part, activations[block], fractions)

    def _collect(self, part: PromptAssignment, activations: Activations, fractions: Tensor) -> tuple[Tensor, Tensor]:
        samples, present = _prototypes(activations, fractions, self.sample_space)
        part.collect(samples.detach(), fractions.sum(dim=1))
        return samples, present

    def _look_for_assignment(self) -> None:
        """Say so, once, if training goes on without one. Only the first step waits for the device."""
        if not self._looked and not self.assigned():
            remedy = "add dict(type='PromptAssignmentHook') to custom_hooks"
            print_log(f'No class has a prompt yet, the guidance is zero: {remedy}.', 'current', logging.WARNING)
        self._looked = True


def _prototypes(activations: Activations, fractions: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Class prototypes in a space. Projections are linear: the means are projected, not every token."""
    tokens = activations.attn_out if space == 'attn_out' else activations.tokens
    prototypes, present = class_prototypes(tokens.reshape(*fractions.shape[:2], -1), fractions)
    with torch.autocast(fractions.device.type, enabled=False):
        return _project(activations, prototypes, space), present


def _project(activations: Activations, x: Tensor, space: str) -> Tensor:
    return activations.project(x, space) if space in ('query', 'key') else x
