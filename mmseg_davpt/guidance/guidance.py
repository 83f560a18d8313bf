"""``MetricGuidance``: both metric losses of DA-VPT over the guided blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..options import check_bool, check_choice, check_integer, check_integers, check_number
from .assignment import PromptAssignment
from .losses import ProxyAnchorLoss
from .prototypes import class_prototypes

SAMPLE_SPACES = ('attn_out', 'query', 'key', 'token')
PROMPT_SPACES = ('query', 'key', 'token')


class Activations(Protocol):
    """What a guided block records in a forward pass; see :class:`mmseg_davpt.tuning.BlockActivations`."""

    @property
    def attn_out(self) -> Tensor:
        """Attention output of the patches before the output projection, ``(B, N, D)``."""
        ...

    @property
    def tokens(self) -> Tensor:
        """Input of the attention, patches only, ``(B, N, D)``."""
        ...

    @property
    def prompts(self) -> Tensor:
        """``LN1`` of the prompts, ``(M, D)``."""
        ...

    def project(self, x: Tensor, space: str, /) -> Tensor:
        """The query or key projection of the block, ``(..., D)`` to the same shape, for ``x`` of its weight's dtype."""
        ...


@MODELS.register_module()
class MetricGuidance(nn.Module):
    """Metric guidance of prompts by pixel-class prototypes (DA-VPT, sections 3.2 to 3.4, for dense labels).

    Two Proxy-Anchor terms per guided block, averaged over the blocks: per-image prototypes of the attention output
    against the prompts (``loss_guide_patch``), and batch-level prototypes of the block's tokens against the prompts
    (``loss_guide_proto``), in place of the paper's term on the class token.

    Args:
        num_classes: Number of classes ``C``.
        prompt_counts: Number of prompts of each block of the backbone; 0 where a block has none. Set by
            :class:`~mmseg_davpt.PromptedEncoderDecoder`, like ``embed_dims``: configs leave both out.
        embed_dims: Width ``D`` of the backbone's tokens.
        blocks: Guided blocks, negative ones counted from the last that is read; the paper's best is the last alone.
        weight_patch: Weight ``beta`` of the first term; 0 leaves it out.
        weight_proto: Weight ``lambda`` of the second term; 0 leaves it out.
        sample_space: Space of the first term's samples: ``attn_out | query | key | token``.
        prompt_space: Space of the prompts: ``query | key | token``. A prompt's query never reaches the trunk's output,
            its key does: ``query`` samples against ``key`` prompts change the attention weights of the forward pass.
        proto_space: Space of the second term's samples: the choice of ``sample_space``.
        alpha: Sharpness of :class:`ProxyAnchorLoss`.
        margin: Margin of :class:`ProxyAnchorLoss`.
        center_prototypes: Subtract the mean over a batch's prototypes before they are compared with the prompts, and
            the mean over the class means before they are clustered. Prototypes of one image share most of their
            direction; the rest separates the classes. Ours, not the paper's.

    Attributes:
        blocks: Guided blocks, ascending, counted from 0.
        assignments: :class:`~mmseg_davpt.guidance.PromptAssignment` of each guided block, in the order of ``blocks``.

    Raises:
        ValueError: An option out of range, a block without prompts or one given twice; the message names the option.
    """

    def __init__(
        self,
        num_classes: int,
        prompt_counts: Sequence[int],
        embed_dims: int,
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
        self.num_classes = check_integer('guidance.num_classes', num_classes, low=2)
        self.blocks = _resolve_blocks(blocks, prompt_counts)
        self.weight_patch = check_number('guidance.weight_patch', weight_patch)
        self.weight_proto = check_number('guidance.weight_proto', weight_proto)
        self.sample_space = check_choice('guidance.sample_space', sample_space, SAMPLE_SPACES)
        self.prompt_space = check_choice('guidance.prompt_space', prompt_space, PROMPT_SPACES)
        self.proto_space = check_choice('guidance.proto_space', proto_space, SAMPLE_SPACES)
        self.metric = ProxyAnchorLoss(alpha, margin)
        self.center_prototypes = check_bool('guidance.center_prototypes', center_prototypes)
        self.assignments = nn.ModuleList(
            PromptAssignment(self.num_classes, prompt_counts[block], embed_dims, self.center_prototypes)
            for block in self.blocks
        )
        self._assignment_checked = False

    @property
    def enabled(self) -> bool:
        """Whether any term has a weight; if not, training is VPT-Deep, bit for bit."""
        return self.weight_patch > 0 or self.weight_proto > 0

    @property
    def assignment_of(self) -> dict[int, PromptAssignment]:
        """Guided block -> its assignment."""
        return {block: cast(PromptAssignment, module) for block, module in zip(self.blocks, self.assignments)}

    def unassigned_blocks(self) -> list[int]:
        """Guided blocks of which no prompt has a class yet. Waits for the device."""
        return [block for block, item in self.assignment_of.items() if not bool((item.assignment >= 0).any())]

    def forward(self, activations: Mapping[int, Activations], fractions: Tensor) -> dict[str, Tensor]:
        """Both losses, weighted. In training mode it also collects the class means for the next assignment.

        Args:
            activations: What each guided block recorded.
            fractions: Label fractions of the patches, ``(B, N, C)``.

        Returns:
            ``loss_guide_patch`` and ``loss_guide_proto``, scalars in float32; a term without weight is left out.

        Raises:
            RuntimeError: In the first training step, if a guided block has no class with a prompt.
        """
        if self.training:
            self._require_assignment()
        terms: dict[str, list[Tensor]] = {'loss_guide_patch': [], 'loss_guide_proto': []}
        for block, item in self.assignment_of.items():
            recorded, assignment = activations[block], item.assignment
            samples, present = _prototypes(recorded, fractions, self.sample_space)
            if self.training:
                item.collect(samples.detach(), fractions.sum(dim=1))
            dtype = torch.promote_types(recorded.prompts.dtype, torch.float32)
            prompts = _project(recorded, recorded.prompts.to(dtype), self.prompt_space)
            if self.weight_patch:
                loss = self._compare(samples, present, prompts, assignment)
                terms['loss_guide_patch'].append(self.weight_patch * loss)
            if self.weight_proto:
                batch = fractions.flatten(0, 1).unsqueeze(0)  # the batch as one image
                loss = self._compare(*_prototypes(recorded, batch, self.proto_space), prompts, assignment)
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
        """Collect the class means alone, before training; in any mode.

        Args:
            activations: Guided block -> what it recorded. Guided blocks that are left out collect nothing.
            fractions: Label fractions of the patches, ``(B, N, C)``.
        """
        for block, recorded in activations.items():
            samples, _ = _prototypes(recorded, fractions, self.sample_space)
            self.assignment_of[block].collect(samples, fractions.sum(dim=1))

    def _require_assignment(self) -> None:
        """Fail if training starts without an assignment. Only the first step waits for the device."""
        if self._assignment_checked:
            return
        if missing := self.unassigned_blocks():
            raise RuntimeError(
                f'guidance: no class has a prompt in guided blocks {missing}, so their losses would stay 0. Add '
                "dict(type='PromptAssignmentHook') to custom_hooks. If it is there, its warm-up batches held no "
                "labeled pixel: check the annotations, reduce_zero_label and the decode head's ignore_index, or "
                'raise num_batches of the hook.'
            )
        self._assignment_checked = True


def _resolve_blocks(blocks: Sequence[int], prompt_counts: Sequence[int]) -> tuple[int, ...]:
    """Guided blocks, ascending, counted from 0; each must have prompts."""
    blocks = check_integers('guidance.blocks', blocks)
    if not blocks:
        raise ValueError('guidance.blocks is empty: name a block, or leave the guidance out')
    depth = len(prompt_counts)
    for block in blocks:
        if not -depth <= block < depth or not prompt_counts[block]:
            prompted = [index for index, count in enumerate(prompt_counts) if count]
            raise ValueError(
                f'guidance.blocks={blocks}: block {block} has no prompts; blocks with deep prompts are '
                f'{prompted or "none"}'
            )
    resolved = sorted(block % depth for block in blocks)
    if len(set(resolved)) < len(resolved):
        raise ValueError(f'guidance.blocks={blocks}: a block is given twice')
    return tuple(resolved)


def _prototypes(recorded: Activations, fractions: Tensor, space: str) -> tuple[Tensor, Tensor]:
    """Class prototypes in a space. Projections are linear: the means are projected, not every token."""
    tokens = recorded.attn_out if space == 'attn_out' else recorded.tokens
    prototypes, present = class_prototypes(tokens.reshape(*fractions.shape[:2], -1), fractions)
    return _project(recorded, prototypes, space), present


def _project(recorded: Activations, x: Tensor, space: str) -> Tensor:
    """Project ``x`` outside of autocast, in the dtype of the block's weights; the result has the dtype of ``x``.

    Under autocast the weights are float32. Without it, they have the dtype of the tokens that the block projects.
    """
    if space not in ('query', 'key'):
        return x
    device = x.device.type
    dtype = x.dtype if torch.is_autocast_enabled(device) else recorded.tokens.dtype
    with torch.autocast(device, enabled=False):
        return recorded.project(x.to(dtype), space).to(x.dtype)
