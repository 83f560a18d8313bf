"""``prompts.init='prototype'``: prompts that start as centroids of the classes they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from ..guidance import PromptAssignment, class_prototypes
from .segmentor import PromptedEncoderDecoder


class PrototypeInit:
    """Collects what classes look like at the input of every prompted block, then writes centroids into its prompts.

    A guided block's prompts take the centroids of its assignment; the other blocks cluster their own class means. The
    paper measured that such a start hurts its guidance; ``configs/`` use it all the same (docs/evidence.md).

    Args:
        model: The segmentor, with deep prompts and guidance.
    """

    def __init__(self, model: PromptedEncoderDecoder) -> None:
        self.model = model
        prompts = model.backbone.prompts
        self.means = {
            index: PromptAssignment(model.num_classes, *prompts.tokens[str(index)].shape).to(
                prompts.tokens[str(index)].device
            )
            for index in prompts.blocks
        }

    @torch.no_grad()
    def collect(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> None:
        """Add a batch; shapes as in :meth:`PromptedEncoderDecoder.loss`."""
        backbone, fractions = self.model.backbone, self.model.class_fractions(data_samples)

        def collect(index: int, tokens: Tensor) -> None:
            prototypes, _ = class_prototypes(tokens[:, backbone.num_prefix_tokens :], fractions)
            self.means[index].collect(prototypes, fractions.sum(dim=1))

        handles = [
            backbone.trunk.blocks[index].register_forward_pre_hook(lambda _, args, index=index: collect(index, args[0]))
            for index in self.means
        ]
        try:
            with backbone.without_tuning():
                backbone(inputs)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def write(self, seed: int) -> None:
        """Write the centroids; a prompt without classes keeps its random start."""
        guided = dict(zip(self.model.guidance.blocks, self.model.guidance.assignments))
        for index, own in self.means.items():
            means = own.class_means
            if index in guided:
                assignment = guided[index].assignment
            else:
                own.refresh(seed)
                assignment = own.assignment
            tokens = self.model.backbone.prompts.tokens[str(index)]
            for prompt in assignment[assignment >= 0].unique().tolist():
                tokens[prompt] = means[assignment == prompt].mean(dim=0)
        self.model.backbone.prompts.mark_initialised()
